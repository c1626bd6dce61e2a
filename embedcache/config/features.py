"""Which features strings have beside what an encoder makes of them."""

from typing import Literal

from pydantic import Field

from embedcache.schema import Config
from embedcache.values import FilePath

FeatureKind = Literal["rdkit", "morgan"]  # of what is computed of a string


class FeatureTable(Config):
    """A user's own features of each string: the numbers of a table, found by the string."""

    table: FilePath = Field(
        description="a file of any kind that data.path may name; all columns but `key` are numbers"
    )
    key: str = Field(description="the column that holds the string, spelled as in the data or not")
