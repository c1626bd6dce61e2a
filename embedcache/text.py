"""Numbers and tables as plain text, for terminals and reports."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NUM_EXAMPLES = 5  # rows in one message
NEAR = 0.6  # of two names' letters that are the same, in order; below, guesses are far-fetched
NONE = "\N{EN DASH}"  # stands where there is no number


def number(value: int | float | None, none: str = NONE) -> str:
    """Return a number to about four significant digits, counts whole; `none` where there is none.

    From 100 on one decimal is kept, so that neighbours in a table can be compared. What four
    decimals would round away is written with its power of ten.
    """
    if value is None:
        return none
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.2e}"
    decimals = 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.1 else 4
    return f"{value:,.{decimals}f}"


def visible(text: str, longest: int | None = None) -> str:
    """Return text on one line, cut to `longest` characters, for people to read.

    What would end the line, or steer a terminal, becomes the replacement character.
    """
    shown = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    if longest is None or len(shown) <= longest:
        return shown
    return f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def aligned(cells: Sequence[str], widths: Sequence[int], num_left: int = 0) -> str:
    """Return one line of a table: the first `num_left` columns flush left, the others right."""
    padded = [
        cell.ljust(width) if column < num_left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def text_table(rows: Sequence[Sequence[str]], num_left: int = 1) -> list[str]:
    """Return the lines of a table, its columns as wide as their widest cell; a head is a row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [aligned(cells, widths, num_left) for cells in rows]


def rows_text(rows: Sequence[int], count: int) -> str:
    """Return the first rows as text: "rows 3, 17, 18, ..."."""
    return (
        f"row{'s' if count > 1 else ''} "
        + ", ".join(str(row) for row in rows)
        + (", ..." if count > len(rows) else "")
    )


def count_of(count: int, noun: str) -> str:
    """Return "1 row", "1,204 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name most like `name`, or nothing."""
    near = most_like(name, known)
    return "" if near is None else f"; did you mean '{near}'?"


def most_like(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is a slip or the beginning of; None where none is near."""
    wanted = name.strip().lower()
    by_lower = {candidate.strip().lower(): candidate for candidate in known}
    begun = [lower for lower in by_lower if len(wanted) > 2 and lower.startswith(wanted)]
    near = get_close_matches(wanted, by_lower, n=1, cutoff=NEAR) or begun
    return by_lower[near[0]] if near else None
