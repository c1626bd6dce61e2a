"""How values are written for readers: one `number`, and the few other forms that tables need."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column of a published table."""

    title: str
    value: str | Callable[[Any], Any]  # a path into the row, as "rows_per_s.median", or a function
    form: str | Callable[[Any], str] = ""  # a format, as ",.1f", or a function; unset: `number`


class Table(NamedTuple):
    """A published table: its columns, and its rows, mostly mappings."""

    columns: Sequence[Column]
    rows: Iterable[Any]


def rendered(table: Table) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [[column.title for column in table.columns], ["---"] * len(table.columns)]
    lines += [[cell(column, row) for column in table.columns] for row in table.rows]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    rows[1] = rows[1].replace(" ", "")
    return rows


def cell(column: Column, row: Any) -> str:
    """Return what a table shows of a row in a column."""
    if callable(column.value):
        value = column.value(row)
    else:
        value = row
        for key in column.value.split("."):
            value = value[key]
    if callable(column.form):
        return column.form(value)
    if value is None or isinstance(value, str):
        return value or "-"
    return format(value, column.form) if column.form else number(value)


def named(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of several things as rows, each with its name under "name"."""
    return [{"name": name, **result} for name, result in results.items()]


def number(value: float | None) -> str:
    """Return a number with about three figures, as a reader wants it.

    Integers are written whole; None, where nothing is defined, as "-".
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 1e9:
        return f"{value:,.3g}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.3g}"


def with_spread(spread: Mapping[str, float]) -> str:
    """Return a median with its 20th and 80th percentile in brackets."""
    low, middle, high = (number(spread[key]) for key in ("p20", "median", "p80"))
    return f"{middle} ({low} to {high})"


def mean_and_sd(values: tuple[float, float | None], form: str = ".3f") -> str:
    """Return a mean with its standard deviation, where there is one."""
    mean, sd = values
    return f"{mean:{form}}" if sd is None else f"{mean:{form}} ± {sd:{form}}"


def times(value: float | None) -> str:
    """Return a ratio."""
    return "-" if value is None else f"{number(value)} x"


def gib(num_bytes: float) -> str:
    """Return bytes in GiB."""
    return f"{num_bytes / 2**30:.2f}"


def mib(num_bytes: float) -> str:
    """Return bytes in MiB."""
    return f"{num_bytes / 2**20:,.0f}"


def megabytes(num_bytes: float) -> str:
    """Return bytes in MB."""
    return f"{num_bytes / 1e6:,.1f}"


def counts(rows: Mapping[str, int]) -> str:
    """Return how many rows each split has."""
    return f"{' / '.join(f'{count:,}' for count in rows.values())} {' / '.join(rows)} rows"
