"""What a config's values may be: the types that keys share, each with the bounds of what can exist.

A bound is where the machine, a format or arithmetic in fp32 ends, or far beyond what makes sense
(a learning rate of 10, a layer 16,384 wide): it is there so that a slip of the hand is told by name
instead of as a traceback after an hour, not to say what is good.
"""

import os
import re
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's and scikit-learn's generators take
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]  # part of file names
Width = Annotated[int, Field(ge=1, le=16_384)]  # features of a layer
Layers = Annotated[int, Field(ge=0, le=256)]
Count = Annotated[int, Field(ge=1, le=10**9)]  # of rows or steps, in what is held at once
Share = Annotated[float, Field(ge=0, lt=1)]  # of what is dropped
Amount = Annotated[float, Field(ge=-1e30, le=1e30)]  # in a column's own unit; fp32 ends at 3e38
# numbers that name something: the sign and the digits that are kept
WHOLE = r"\+?(-?)0*([0-9]+)(?:\.0*)?"
DECIMAL = r"\+?(-?)0*([0-9]+\.[0-9]*?[1-9])0*"
Spread = Annotated[float, Field(ge=1e-30, le=1e30)]  # the same, where it divides
Weight = Annotated[float, Field(ge=0, le=1e6)]  # a factor in the loss
MOST_PATH_BYTES = 3_000  # of the 4,096 of Linux: the current folder, and what lies in a cache
MOST_NAME_BYTES = 200  # of the 255 of most file systems: suffixes such as .partial are added
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\})")


def expanded_path(path: str) -> str:
    """Return a path with `~` and environment variables filled in; ValueError for what is no path.

    Without that, `cache.path=~/c.zarr` would make a folder of the name `~`.
    """
    if not path.strip():
        raise ValueError("is empty; give a path")
    for plain, braced in _VARIABLE.findall(path):
        if (plain or braced) not in os.environ:
            raise ValueError(
                f"names the environment variable {plain or braced}, which is not set; set it, or"
                " write the path out"
            )
    full = os.path.expanduser(os.path.expandvars(path))
    if full.startswith("~"):
        raise ValueError(
            f"begins with {full.split('/')[0]}, which is nobody's home folder; write it out, or"
            f" ./{full.split('/')[0]} for a folder of that name"
        )
    if "\0" in full:
        raise ValueError("has a NUL character, which no file's name can have")
    if len(os.fsencode(full)) > MOST_PATH_BYTES:
        raise ValueError(f"is longer than {MOST_PATH_BYTES:,} bytes")
    if any(len(os.fsencode(name)) > MOST_NAME_BYTES for name in PurePath(full).parts):
        raise ValueError(f"has a name of more than {MOST_NAME_BYTES} bytes")
    return full


def _folder_to_write(path: str) -> str:
    """Return the path of a folder that we make; the root of the file system is none."""
    if os.path.realpath(path) == os.path.abspath(os.sep):
        raise ValueError("is the root of the file system; name a folder in it")
    return path


def spelled(text: str) -> str:
    """Return a value that names something as all formats spell it (see `table.spelling`).

    Whole numbers are 7, not 007, +7 or 7.0, other decimals have no zeros around them, truths are
    true and false, and there are no blanks at either end.
    """
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    for pattern in (WHOLE, DECIMAL):
        if found := re.fullmatch(pattern, text):
            return f"{found[1]}{found[2]}"
    return text


def _written(value: Any) -> Any:
    """Return a number that YAML read as text of a cell; a truth stays, since it may be a `no`."""
    return str(value) if type(value) in (int, float) else value


def _mark(value: Any) -> Any:
    """Return a cell that stands for a missing value as text: YAML reads a bare null as nothing."""
    return "null" if value is None else _written(value)


FilePath = Annotated[str, AfterValidator(expanded_path)]
Mark = Annotated[str, BeforeValidator(_mark)]  # a cell that stands for a missing value
Spelled = Annotated[str, BeforeValidator(_written), AfterValidator(spelled)]  # names a category
FolderToWrite = Annotated[FilePath, AfterValidator(_folder_to_write)]


def twice(names: list[str]) -> list[str]:
    """Return the names that are there more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})


def check_order(low: float | None, high: float | None) -> None:
    """Raise ValueError where the least admissible value is above the greatest."""
    if low is not None and high is not None and low > high:
        raise ValueError(f"low must not be above high, found {low} and {high}")
