"""Which table, how it is written, and which of its columns are read."""

import codecs
from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from embedcache.config.columns import (
    CategoryColumn,
    NumericColumn,
    RowWeight,
    StringColumn,
    indicator_of,
)
from embedcache.config.encoder import EncoderConfig
from embedcache.schema import Config, also_called
from embedcache.values import FilePath, Mark, twice

OnInvalid = Literal["refuse", "skip"]


class CsvConfig(Config):
    """How a text file is written; each key that is unset is found from the file."""

    separator: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description=(
            "the character between cells; unset: a tab in .tsv files, else of comma, semicolon, tab"
            " and | the one that divides the header most"
        ),
    )
    decimal: Literal[".", ","] = Field(
        default=".", description="what stands before the decimals of a number"
    )
    encoding: str = Field(
        default="utf-8",
        description="of the text: utf-8, utf-16, cp1252 (Excel in Western Europe), latin-1, ...",
    )

    @model_validator(mode="after")
    def _can_be_read(self) -> "CsvConfig":
        if self.separator is not None and self.separator in '"\r\n' + self.decimal:
            raise ValueError(
                f"separator {self.separator!r} is a quote, a line's end or the decimal mark; set"
                " csv.decimal too, or another separator"
            )
        if self.separator is not None and not self.separator.isascii():
            raise ValueError(f"separator {self.separator!r} is no ASCII character")
        try:
            "".encode(codecs.lookup(self.encoding).name)
        except (LookupError, ValueError):
            raise ValueError(
                f"encoding names {self.encoding!r:.80}, which Python does not know as one of text;"
                " common are utf-8, utf-16, cp1252, latin-1"
            ) from None
        return self


class DataConfig(Config):
    """Which table, and what its columns mean."""

    path: FilePath | tuple[FilePath, ...] = Field(
        description=(
            "a table: .parquet, .csv or .tsv (also .gz, .bz2, .xz, .zst), .arrow or .feather, .xlsx"
            " (with the extra `excel`), or a folder of Parquet files; or several: the first, then"
            " what was appended to it, in that order"
        )
    )
    csv: CsvConfig = Field(default=CsvConfig(), description="how text files are written")
    null_values: tuple[Mark, ...] = Field(
        default=(),
        description=(
            "cells that stand for a missing value, besides empty ones and NaN, e.g. [NA, n/a, -999]"
        ),
    )
    on_invalid: OnInvalid = Field(
        default="refuse",
        description=(
            "what becomes of a table with rows that break a rule: refuse: it is refused, with all"
            " of them; skip: they are left out of the cache and predicted as null, and the report"
            " says how many and why"
        ),
    )
    strings: tuple[StringColumn, ...] = Field(
        default=(),
        description="text columns, which an encoder reads; none: the encoder is left aside",
    )
    numeric: tuple[NumericColumn, ...] = Field(
        default=(),
        description="numeric features",
        json_schema_extra=also_called("features"),
    )
    categories: tuple[CategoryColumn, ...] = Field(default=(), description="categorical features")
    exclude_rows: tuple[str, ...] = Field(
        default=(),
        description="SQL conditions; rows that meet one are left out, e.g. 'length(smiles) > 500'",
    )
    group: str | None = Field(
        default=None,
        description="rows of one group (a patient, a batch, a paper) never straddle two splits",
    )
    stratum: str | None = Field(
        default=None,
        description="groups are assigned to the splits separately inside each value of this column",
    )
    row_weight: RowWeight | None = Field(
        default=None, description="how much each row counts in the loss; unset: all alike"
    )
    report_by: tuple[str, ...] = Field(
        default=(), description="columns by whose values the evaluation is broken down"
    )

    @property
    def features(self) -> tuple[NumericColumn, ...]:
        """The numeric features in their order, each with its indicator behind it if it has one."""
        return tuple(
            feature
            for column in self.numeric
            for feature in (column, *([indicator_of(column)] if column.fill == "indicator" else []))
        )

    def unread(self, encoder: EncoderConfig) -> list[str]:
        """Return the names of string columns that neither an encoder nor features read.

        `encoder` is that of columns without one of their own.
        """
        return [
            column.name
            for column in self.strings
            if not (column.features or (column.encoder or encoder).reads)
        ]

    @property
    def files(self) -> tuple[str, ...]:
        """The table's files, in the order of their rows."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def title(self) -> str:
        """The names of the files, without their folders."""
        return ", ".join(PurePath(file).name for file in self.files)

    @model_validator(mode="after")
    def _there_are_features(self) -> "DataConfig":
        if not (self.strings or self.numeric or self.categories):
            raise ValueError(
                "nothing would be read to predict from: name at least one column in strings,"
                " numeric or categories"
            )
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "DataConfig":
        if not self.files:
            raise ValueError("path must name at least one file")
        named = (
            ("the files of path", list(self.files)),
            ("strings.name", [column.name for column in self.strings]),
            ("numeric.column", [column.column for column in self.features]),
            ("categories.column", [column.column for column in self.categories]),
            ("report_by", list(self.report_by)),
        )
        wrong = [
            f"{what} has twice: {', '.join(twice(names))}" for what, names in named if twice(names)
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}; take one of each away")
        return self
