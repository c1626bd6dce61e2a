"""What the root attributes of a cache hold, as its readers rely on it.

The digest says that they are as someone wrote them, not that a build of this project did.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.manifest import REBUILD
from embedcache.errors import CorruptCacheError, StaleCacheError

MOST_NAMED = 4  # problems in one message
Count = Annotated[int, Field(ge=0)]
Spellings = dict[str, dict[str, list[str]]]  # by string column and string


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class FileEntry(_Part):
    """What the manifest says of one file."""

    bytes: Count
    sha256: str


class Data(_Part):
    """The config's table."""

    path: list[str]


class BuildConfig(_Part):
    """The config that the cache was built by, as far as it is shown."""

    data: Data


class Provenance(_Part):
    """Where the cache came from."""

    config: BuildConfig
    versions: dict[str, str]
    built: str
    rows_of_files: list[Count]


class Encoding(_Part):
    """What the encoding took."""

    seconds: float
    ranks: int


def _phase(pair: list[str | int | float]) -> list[str | int | float]:
    if [isinstance(each, str) for each in pair] != [True, False]:
        raise ValueError("is not a phase's name and its seconds")
    return pair


class Report(_Part):
    """What `BuildReport` tells of the build; it judges the split's counts itself."""

    num_encoded: Count
    num_stored: Count = 0
    encoding: Encoding
    num_excluded: Count
    num_blank: Count
    num_invalid: Count
    invalid: list[str]
    remarks: list[str]
    saving: Annotated[list[float], Field(min_length=5, max_length=5)] | None = None
    unknown: Spellings
    merged: Spellings
    split: dict[str, Any]
    seconds: list[Annotated[list[str | int | float], AfterValidator(_phase)]]


def _inside(files: dict[str, FileEntry]) -> dict[str, FileEntry]:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"names the file {name!r:.80}, which lies outside of the cache")
    return files


def _of_a_table(entries: dict[str, str]) -> dict[str, str]:
    if "table" not in entries:
        raise ValueError("does not say which table the cache was built from")
    return entries


class Root(_Part):
    """The root's attributes; the layout is judged when the names of the groups are read."""

    identity: Annotated[dict[str, str], AfterValidator(_of_a_table)]
    layout: dict[str, Any]
    provenance: Provenance
    report: Report
    files: Annotated[dict[str, FileEntry], AfterValidator(_inside)]


def check_root(folder: Path, attributes: dict[str, Any]) -> None:
    """Raise StaleCacheError for another format, CorruptCacheError for another kind of root."""
    version = attributes.get("format_version")
    if type(version) is int and version != FORMAT_VERSION:
        raise StaleCacheError(
            f"{folder} has format {version}, this version reads {FORMAT_VERSION}; {REBUILD}"
        )
    try:
        if type(version) is not int:
            raise ValueError("format_version is no number")
        Root.model_validate(attributes)
    except ValueError as error:
        raise corrupt_root(folder, error) from None


def corrupt_root(folder: Path, error: ValueError) -> CorruptCacheError:
    """Return the error that says what is wrong with a root's attributes."""
    lines = [str(error)]
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(map(str, each['loc'])):.120}: {each['msg']}" for each in problems]
    more = f"; and {len(lines) - MOST_NAMED} more" if len(lines) > MOST_NAMED else ""
    return CorruptCacheError(
        f"{folder}: the root metadata is not that of a cache:"
        f" {'; '.join(lines[:MOST_NAMED])}{more}; {REBUILD}"
    )
