"""The rows that `data.exclude_rows` leaves out, by SQL conditions on the table's columns.

A condition means the same for a text file as for Parquet: columns that the config reads as numbers
are numbers in it, and so are others if each of their cells is one; columns of truths are truths.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import polars as pl

from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError
from embedcache.table.cellkinds import CellKind, kinds_of_cells
from embedcache.table.source import PARSED, Source
from embedcache.text import nearest

_TEXT = "text:"  # before a column's name: its cells, while the name stands for numbers


def without_excluded(
    source: Source, data: DataConfig, targets: tuple[TargetColumn, ...]
) -> tuple[Source, int]:
    """Return the source without the rows that meet any of the conditions, and their number.

    A condition that is unknown (null) leaves its row in. Raises ConfigError for what is no
    condition on the table's columns.
    """
    if not data.exclude_rows:
        return source, 0
    met = [_condition(source, condition) for condition in data.exclude_rows]
    names = {name for each in met for name in each.meta.root_names()}
    types = _types(source, data, targets, names) if source.is_csv else {}
    typed = source.frame.with_columns(
        *(pl.col(name).alias(_TEXT + name) for name in types),
        *(cells.alias(name) for name, cells in types.items()),
    )
    for condition, expression in zip(data.exclude_rows, met, strict=True):
        with _refused_by(condition):
            checked = typed.select(met=expression)
            if checked.collect_schema()["met"] != pl.Boolean:
                raise ConfigError(
                    f"data.exclude_rows: '{condition}' is not a condition: it is neither true nor"
                    " false of a row"
                )
            checked.select(pl.col("met").any()).collect(engine="streaming")
    meets = pl.any_horizontal(each.fill_null(False) for each in met)
    num_excluded = int(typed.select(meets.sum()).collect(engine="streaming").item())
    texts = [_TEXT + name for name in types]
    kept = typed.filter(~meets).with_columns(
        pl.col(text).alias(text.removeprefix(_TEXT)) for text in texts
    )
    return replace(source, frame=kept.drop(texts)), num_excluded


def _condition(source: Source, condition: str) -> pl.Expr:
    """Return a condition as an expression on columns that the table has."""
    with _refused_by(condition):
        expression = pl.sql_expr(condition)
    for name in expression.meta.root_names():
        if name not in source.columns:
            raise ConfigError(
                f"data.exclude_rows: '{condition}' names '{name}', which is no column of the"
                f" table{nearest(name, source.columns)}"
            )
    return expression


@contextmanager
def _refused_by(condition: str) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise ConfigError(
            f"data.exclude_rows: '{condition}' is not a condition on the table's columns: {error}"
        ) from None


def _types(
    source: Source, data: DataConfig, targets: tuple[TargetColumn, ...], names: Collection[str]
) -> dict[str, pl.Expr]:
    """Return those of a text file's columns that are no text in conditions, as what they are."""
    read = {column.column for column in data.numeric} | {target.column for target in targets}
    strings = {column.column for column in data.strings}
    numbers = {name: pl.col(PARSED + name).fill_nan(None) for name in names}
    found = kinds_of_cells(source, sorted(set(names) - strings))
    types = {}
    for name, kind in found.items():
        if kind is CellKind.TRUTHS:
            types[name] = numbers[name].cast(pl.Boolean)
        elif name in read or kind in (CellKind.WHOLE, CellKind.NUMBERS):
            types[name] = numbers[name]
    return types
