"""What a column's name says: its words, what it is called, and the unit in it."""

import re
from collections.abc import Collection

from embedcache.text import most_like

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SUFFIXES = ("id", "ids", "no", "nr", "num", "number", "name", "code", "key", "index", "title")
_IN_BRACKETS = re.compile(r"^(.*?)\s*[\[(]([^\[\]()]{1,20})[\])]\s*$")
_UNITS = {
    "C": "degC", "degC": "degC", "K": "K", "pct": "%", "percent": "%", "eV": "eV", "GPa": "GPa",
    "MPa": "MPa", "kPa": "kPa", "Pa": "Pa", "bar": "bar", "mm": "mm", "um": "um", "nm": "nm",
    "cm": "cm", "mg": "mg", "kg": "kg", "kDa": "kDa", "Hz": "Hz", "kHz": "kHz",
}  # fmt: skip


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in lower case: patientID is patient and id."""
    return [word.lower() for word in _WORD.findall(name)]


def is_called(name: str, wanted: Collection[str]) -> bool:
    """Whether the name, or its last word apart from id, no., code and such, is one of some."""
    words = words_of(name)
    while len(words) > 1 and words[-1] in _SUFFIXES:
        words.pop()
    return name.lower() in wanted or (bool(words) and words[-1] in wanted)


def is_index(name: str) -> bool:
    """Whether the name is what pandas or R call row numbers, or empty."""
    return not name.strip() or bool(re.fullmatch(r"Unnamed: ?\d+|index|level_0|row|rownames", name))


def unit_of(name: str) -> str:
    """Return the unit that a column's name ends in, such as tg (K) or pressure_bar, or nothing."""
    if found := _IN_BRACKETS.match(name):
        return found[2].strip()
    words = name.rsplit("_", 1)
    return _UNITS.get(words[-1], "") if len(words) == 2 else ""


def short_name(column: str, taken: Collection[str], otherwise: str) -> str:
    """Return a name for files and reports: the column's, without signs and unit, told apart."""
    if found := _IN_BRACKETS.match(column):
        column = found[1]
    name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")[:50]
    if not name or not name[0].isalpha():
        name = f"{otherwise}_{name}".strip("_")
    number = 2
    base = name
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def nearest_column(name: str, columns: Collection[str]) -> str:
    """Return "; did you mean 'x'?", or which columns there are."""
    near = most_like(name, columns)
    shown = ", ".join(list(columns)[:12]) + (", ..." if len(columns) > 12 else "")
    return f"; did you mean '{near}'?" if near else f"; the table has {shown}"
