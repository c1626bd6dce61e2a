"""Canonical columns: each configured column as an expression, with the requirements on its rows.

Everything after this file sees canonical names (`string:polymer`, `numeric:bz_stress_kPa`,
`target:ef`, `group`, ...) and canonical types; the user's names, types and units appear in messages
only.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import polars as pl

from embedcache.config.columns import NumericColumn, StringColumn, indicator_of
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.table.canonical import Canonical, check_domain, check_numbers, refuse_inexact
from embedcache.table.checks import (
    RangeHint,
)
from embedcache.table.labels import add_target, add_weight
from embedcache.table.source import KEY, NUMBER, RECORD, TEXT, Source
from embedcache.table.spelling import as_spelled

Reach = Mapping[str, tuple[float, float]]  # by column
NO_REACH: Reach = MappingProxyType({})
NO_VALUE = "(null)"  # how a facet shows rows without a value


def canonical_columns(
    source: Source,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    reach: Reach = NO_REACH,
) -> Canonical:
    """Return all canonical columns that the configuration asks for, with their checks.

    `reach` says between which values a trained model can compute with a feature. Missing and
    mistyped ones are noted as violations.
    """
    table = Canonical(_noting_spellings(source, data))
    if source.row_cells is not None:
        table.violations.append(_other_header(source.num_cells, source.row_cells))
        return table
    if source.ragged:
        rows, cells = list(source.ragged), list(source.ragged.values())
        table.check(
            f"another number of cells than the header's {source.num_cells} (an unquoted separator,"
            " or a decimal comma)",
            pl.col(RECORD).is_in(rows),
            pl.col(RECORD).replace_strict(rows, cells, default=None, return_dtype=pl.Int64),
        )
    for string in data.strings:
        _add_string(table, string)
    for numeric in data.numeric:
        _add_numeric(table, numeric, reach.get(numeric.column))
    for category in data.categories:
        what = f"category column '{category.column}'"
        name = f"category:{category.column}"
        _add_key(table, name, category.column, what, category.if_null)
    for target in targets:
        add_target(table, target)
    for name, column in (("group", data.group), ("stratum", data.stratum)):
        if column is not None:
            _add_key(table, name, column, f"{name} column '{column}'")
    if data.row_weight is not None:
        add_weight(table, data.row_weight)
    for column in data.report_by:
        _add_facet(table, column)
    _refuse_leaks(table, data, targets)
    return table


def _other_header(num_cells: int, row_cells: int) -> str:
    """Return what is wrong with a header that has another number of cells than each row."""
    if row_cells == num_cells + 1:
        return (
            f"each row has one cell more than the header's {num_cells}: a separator at the end of"
            " each line, row names without a name in the header (as R writes them), or a decimal"
            " comma; give the header one name more, or take that cell away"
        )
    return (
        f"each row has {row_cells} cells, the first line {num_cells}: if it is a title or remark,"
        " take out all lines above the header; if it is the header, cells have separators in them"
        " that are not quoted, or decimal commas"
    )


def _noting_spellings(source: Source, data: DataConfig) -> Source:
    """Return the source knowing which of its columns are spelled as all formats spell them.

    One pass over their distinct values spares every later pass from spelling each row anew.
    """
    keys = {column.column for column in data.categories} | set(data.report_by)
    keys |= {name for name in (data.group, data.stratum) if name is not None}
    texts = {column.column for column in data.strings} - keys
    return replace(source, as_spelled=as_spelled(source.frame, source.columns, keys, texts))


def _add_string(table: Canonical, column: StringColumn) -> None:
    what = f"string column '{column.column}'"
    text = table.require(column.column, what, TEXT)
    if text is None:
        return
    # an empty cell is null in a CSV; so is an empty or blank text in any other table
    text = pl.when(text.str.strip_chars() != "").then(text)
    if column.if_null is None:
        table.check(f"{what}: null or empty", text.is_null(), text)
    else:
        text = text.fill_null(column.if_null)
    table.columns[f"string:{column.name}"] = text


def _add_numeric(
    table: Canonical, column: NumericColumn, reach: tuple[float, float] | None
) -> None:
    what = f"numeric column '{column.column}'"
    number = table.require(column.column, what, NUMBER)
    if number is None:
        return
    missing = table.source.is_missing(column.column)
    if column.if_null is None:
        table.check(f"{what}: null or NaN", missing, pl.lit(None))
    elif not isinstance(column.if_null, str):
        number = pl.when(missing).then(pl.lit(column.if_null)).otherwise(number)
    check_numbers(table, what, column, number)
    if reach is not None:
        low, high = reach
        table.check(
            f"{what}: so far from the train rows that fp32 overflows",
            number.is_finite() & ~number.is_between(low, high),
            number,
            RangeHint(None, None, column.unit),
        )
    check_domain(table, what, column.transform, number)
    stored = number.cast(pl.Float32)
    if column.fill is not None:  # the statistics of the train rows will fill it
        stored = stored.fill_null(float("nan"))
    table.columns[f"numeric:{column.column}"] = stored
    if column.fill == "indicator":
        name = f"numeric:{indicator_of(column).column}"
        table.columns[name] = missing.cast(pl.Float32)


def _add_key(
    table: Canonical, name: str, column: str, what: str, if_null: str | None = None
) -> None:
    """Add a column whose text names something, which is never null; `if_null` stands for that."""
    text = table.require(column, what, KEY)
    if text is not None and if_null is not None:
        empty = text.is_null() | (text == "")
        table.columns[name] = pl.when(empty).then(pl.lit(if_null)).otherwise(text)
    elif text is not None:
        table.check(f"{what}: null or empty", text.is_null() | (text.str.strip_chars() == ""), text)
        table.columns[name] = text
    if text is not None:
        refuse_inexact(table, what, column)


def _add_facet(table: Canonical, column: str) -> None:
    text = table.require(column, f"report_by column '{column}'", KEY)
    if text is not None:
        table.columns[f"facet:{column}"] = text.fill_null(NO_VALUE)


def _refuse_leaks(table: Canonical, data: DataConfig, targets: tuple[TargetColumn, ...]) -> None:
    """Note every column that is both something to predict and something to predict it from."""
    features = {column.column for column in data.strings}
    features |= {column.column for column in data.numeric}
    features |= {column.column for column in data.categories}
    for target in targets:
        if target.column in features:
            table.violations.append(
                f"column '{target.column}' is both a feature and a target: the model would read the"
                " answer"
            )
