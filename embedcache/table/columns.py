"""Canonical columns: what each configured column means, as one expression over the source, and the
laws that its rows must keep.

Everything after this file sees canonical names (`string:polymer`, `numeric:bz_stress_kPa`,
`target:ef`, `group`, ...) and canonical types; the user's names, types and units appear in messages
only.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from embedcache.config import (
    SPLITS,
    CategoryColumn,
    DataConfig,
    NumericColumn,
    RowWeight,
    SplitConfig,
    StringColumn,
    TargetColumn,
)
from embedcache.scaling import DOMAIN_LOW
from embedcache.table.checks import Check, nearest, range_hint
from embedcache.table.reader import Source

FLOAT32_MAX = float(np.finfo(np.float32).max)
NO_VALUE = "(null)"  # how a facet shows rows without a value


@dataclass
class Canonical:
    """The canonical columns of one table, gathered column by column together with what is wrong."""

    source: Source
    columns: dict[str, pl.Expr] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    absent_targets: list[str] = field(default_factory=list)

    def frame(self) -> pl.LazyFrame:
        """Return the canonical table, lazily."""
        return self.source.frame.select(expr.alias(name) for name, expr in self.columns.items())

    def usable(self, column: str, what: str, fits: bool, expected: str) -> bool:
        """Note a column of the wrong type; return whether it can be checked further."""
        if not fits:
            self.violations.append(
                f"{what} has type {self.source.columns[column]}, expected {expected}"
            )
        return fits

    def exists(self, column: str, what: str) -> bool:
        """Note a missing or ambiguous column; return whether it exists."""
        source = self.source
        if column in source.twice:
            self.violations.append(f"{what} appears more than once in the header")
        if column not in source.columns:
            some = ", ".join(list(source.columns)[:8])
            self.violations.append(
                f"{what} is"
                f" missing{nearest(column, source.columns) or f'; the table has {some}, ...'}"
            )
        return column in source.columns

    def law(self, what: str, broken: pl.Expr, value: pl.Expr, **kwargs: object) -> None:
        """Add a check."""
        self.checks.append(Check(what, broken, value, **kwargs))


def canonical_columns(
    source: Source, data: DataConfig, targets: tuple[TargetColumn, ...], split: SplitConfig
) -> Canonical:
    """Return all canonical columns that the configuration asks for, with their checks; missing and
    mistyped ones are noted as violations.
    """
    table = Canonical(source)
    for string in data.strings:
        _add_string(table, string)
    for numeric in data.numeric:
        _add_numeric(table, numeric)
    for category in data.categories:
        _add_category(table, category)
    for target in targets:
        _add_target(table, target)
    for name, column in (("group", data.group), ("stratum", data.stratum)):
        if column is not None:
            _add_key(table, name, column)
    if data.row_weight is not None:
        _add_weight(table, data.row_weight)
    for column in data.report_by:
        what = f"report_by column '{column}'"
        if table.exists(column, what) and table.usable(
            column, what, source.is_key(column), "text, integers or booleans"
        ):
            table.columns[f"facet:{column}"] = source.text(column).fill_null(NO_VALUE)
    if split.strategy == "column" and split.column is not None:
        _add_split(table, split.column)
    _refuse_leaks(table, data, targets)
    return table


def _add_string(table: Canonical, column: StringColumn) -> None:
    what = f"string column '{column.column}'"
    if not (
        table.exists(column.column, what)
        and table.usable(column.column, what, table.source.is_text(column.column), "text")
    ):
        return
    text = table.source.text(column.column)
    if column.if_null is None:
        table.law(f"{what}: null", text.is_null(), text)
    else:
        text = text.fill_null(column.if_null)
    table.columns[f"string:{column.name}"] = text


def _add_numeric(table: Canonical, column: NumericColumn) -> None:
    what = f"numeric column '{column.column}'"
    source = table.source
    if not (
        table.exists(column.column, what)
        and table.usable(
            column.column, what, source.is_number(column.column), "numbers or booleans"
        )
    ):
        return
    number = source.number(column.column)
    if column.if_null is None:
        table.law(f"{what}: null", pl.col(column.column).is_null(), number)
    else:
        number = (
            pl.when(pl.col(column.column).is_not_null())
            .then(number)
            .otherwise(pl.lit(column.if_null))
        )
    _number_laws(table, what, column, number)
    if column.transform in DOMAIN_LOW:
        limit = DOMAIN_LOW[column.transform]
        # as stored, which is what the transform will read
        beyond = number.cast(pl.Float32) <= pl.lit(limit, dtype=pl.Float32)
        table.law(
            f"{what}: transform {column.transform} needs values above {limit:g}",
            number.is_finite() & beyond,
            number,
        )
    table.columns[f"numeric:{column.column}"] = number.cast(pl.Float32)


def _number_laws(
    table: Canonical, what: str, column: NumericColumn | TargetColumn, number: pl.Expr
) -> None:
    """Add the checks that features and targets share: numbers, finite, within float32 and within
    their range.
    """
    source, unit = table.source, f" {column.unit}" if column.unit else ""
    if source.is_text(column.column):
        table.law(
            f"{what}: not a number",
            pl.col(column.column).is_not_null() & number.is_null(),
            source.text(column.column),
        )
    finite = number.is_finite()
    remedy = "; write unobserved labels as null" if isinstance(column, TargetColumn) else ""
    table.law(f"{what}: NaN{remedy}", number.is_nan(), pl.lit(None, dtype=pl.Float64))
    table.law(f"{what}: infinite", number.is_infinite(), number)
    table.law(f"{what}: too large for float32", finite & (number.abs() > FLOAT32_MAX), number)
    # bounds are compared as the cache stores them: float32(0.1) is not above 0.1
    stored = number.cast(pl.Float32)
    hint = range_hint(column.low, column.high, column.unit)
    if column.low is not None:
        table.law(
            f"{what}: below {column.low:g}{unit}",
            finite & (stored < pl.lit(column.low, dtype=pl.Float32)),
            number,
            hint=hint,
        )
    if column.high is not None:
        table.law(
            f"{what}: above {column.high:g}{unit}",
            finite & (stored > pl.lit(column.high, dtype=pl.Float32)),
            number,
            hint=hint,
        )


def _add_category(table: Canonical, column: CategoryColumn) -> None:
    what = f"category column '{column.column}'"
    if table.exists(column.column, what) and table.usable(
        column.column, what, table.source.is_key(column.column), "text, integers or booleans"
    ):
        text = table.source.text(column.column)
        table.law(f"{what}: null or empty", text.is_null() | (text.str.strip_chars() == ""), text)
        table.columns[f"category:{column.column}"] = text


def _add_target(table: Canonical, target: TargetColumn) -> None:
    what, source = f"target column '{target.column}'", table.source
    if target.optional and target.column not in source.columns:
        table.absent_targets.append(target.name)
        return
    if not table.exists(target.column, what):
        return
    fits = source.is_number(target.column) or (
        target.kind == "binary" and source.is_text(target.column)
    )
    if not table.usable(target.column, what, fits, "numbers or booleans"):
        return
    number = source.number(target.column)
    _number_laws(table, what, target, number)
    if target.kind == "binary":
        table.law(
            f"{what}: binary, but neither 0, 1, true nor false",
            number.is_finite() & ~number.is_in([0.0, 1.0]),
            number,
        )
    table.columns[f"target:{target.name}"] = number.cast(pl.Float32)


def _add_key(table: Canonical, name: str, column: str) -> None:
    what = f"{name} column '{column}'"
    if table.exists(column, what) and table.usable(
        column, what, table.source.is_key(column), "text, integers or booleans"
    ):
        text = table.source.text(column)
        table.law(f"{what}: null or empty", text.is_null() | (text.str.strip_chars() == ""), text)
        table.columns[name] = text


def _add_weight(table: Canonical, rule: RowWeight) -> None:
    what, source = f"row_weight column '{rule.column}'", table.source
    if not table.exists(rule.column, what):
        return
    if isinstance(rule.equals, str):
        fits, expected = source.is_key(rule.column), "text, integers or booleans"
    else:
        fits, expected = (
            source.is_number(rule.column) or source.is_text(rule.column),
            "booleans or numbers",
        )
    if not table.usable(rule.column, what, fits, expected):
        return
    value = source.text(rule.column) if isinstance(rule.equals, str) else source.number(rule.column)
    table.law(f"{what}: null", pl.col(rule.column).is_null(), value)
    if isinstance(rule.equals, bool):
        table.law(
            f"{what}: neither true nor false",
            pl.col(rule.column).is_not_null() & ~value.is_in([0.0, 1.0]).fill_null(False),
            value,
        )
    chosen = value == (rule.equals if isinstance(rule.equals, str) else float(rule.equals))
    table.columns["weight"] = (
        pl.when(chosen)
        .then(pl.lit(rule.weight, dtype=pl.Float32))
        .otherwise(pl.lit(1.0, dtype=pl.Float32))
    )
    table.columns["weighted"] = chosen


def _add_split(table: Canonical, column: str) -> None:
    what = f"split column '{column}'"
    if table.exists(column, what) and table.usable(
        column, what, table.source.is_text(column), "text"
    ):
        text = table.source.text(column)
        table.law(
            f"{what}: must be one of {', '.join(SPLITS)}",
            ~text.is_in(SPLITS).fill_null(False),
            text,
        )
        table.columns["split"] = text


def _refuse_leaks(table: Canonical, data: DataConfig, targets: tuple[TargetColumn, ...]) -> None:
    """Note every column that is both something to predict and something to predict it from."""
    features = (
        {s.column for s in data.strings}
        | {n.column for n in data.numeric}
        | {c.column for c in data.categories}
    )
    for target in targets:
        if target.column in features:
            table.violations.append(
                f"column '{target.column}' is both a feature and a target: the model would read the"
                " answer"
            )
