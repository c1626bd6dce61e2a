"""What all cells of a text file's column are: for conditions on rows, and for Parquet from CSV."""

from collections.abc import Sequence
from enum import Enum

import polars as pl

from embedcache.table.source import PARSED, Source

_WHOLE_NUMBER = r"^-?(0|[1-9][0-9]{0,17})$"  # that Int64 holds and writes as it was
_CODE = r"^[+-]?(0[0-9]|[0-9]{17,}$)"  # digits that a number would lose


class CellKind(Enum):
    """What all cells of a text file's column are, empty ones aside."""

    TEXT = "text, or nothing"
    TRUTHS = "true and false"
    WHOLE = "whole numbers"
    NUMBERS = "numbers"


def kinds_of_cells(source: Source, names: Sequence[str]) -> dict[str, CellKind]:
    """Return what the cells of a text file's columns are, by a pass over all of them.

    Codes whose digits a number would lose are text.
    """
    if not names:
        return {}
    lower = {name: pl.col(name).str.to_lowercase() for name in names}
    tests = {
        name: (
            pl.col(name).is_not_null().any(),
            lower[name].is_in(["true", "false"]).all(),
            pl.col(name).str.contains(_WHOLE_NUMBER).all(),
            (~source.is_garbled(name) & ~pl.col(name).str.contains(_CODE)).all(),
        )
        for name in names
    }
    found = source.frame.select(
        test.alias(f"{number}{name}") for name in names for number, test in enumerate(tests[name])
    )
    outcomes = found.collect(engine="streaming").row(0)
    kinds = {}
    for number, name in enumerate(names):
        has_any, are_truths, are_whole, are_numbers = outcomes[4 * number : 4 * number + 4]
        kinds[name] = CellKind.TEXT
        if has_any and are_truths:
            kinds[name] = CellKind.TRUTHS
        elif has_any and are_whole:
            kinds[name] = CellKind.WHOLE
        elif has_any and are_numbers:
            kinds[name] = CellKind.NUMBERS
    return kinds


def typed(source: Source) -> pl.LazyFrame:
    """Return a text file's rows with each column as the type that all of its cells have."""
    columns = []
    for name, kind in kinds_of_cells(source, list(source.columns)).items():
        column = pl.col(name)
        if kind is CellKind.TRUTHS:
            column = column.str.to_lowercase() == "true"
        elif kind is CellKind.WHOLE:
            column = column.cast(pl.Int64)
        elif kind is CellKind.NUMBERS:
            column = pl.col(PARSED + name)
        columns.append(column.alias(name))
    return source.frame.select(columns)
