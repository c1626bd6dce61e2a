"""Canonical columns: each configured column as an expression, with the requirements on its rows.

Everything after this file sees canonical names (`string:polymer`, `numeric:bz_stress_kPa`,
`target:ef`, `group`, ...) and canonical types; the user's names, types and units appear in messages
only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import polars as pl

from embedcache.config.table import (
    DataConfig,
    NumericColumn,
    RowWeight,
    StringColumn,
    TargetColumn,
    Transform,
    indicator_of,
)
from embedcache.scaling import DOMAIN_LOW
from embedcache.table.checks import (
    Advice,
    Check,
    Hint,
    RangeHint,
    advice_on_classes,
    advice_on_text,
)
from embedcache.table.source import KEY, NUMBER, NUMBER_IN_WORDS, RECORD, TEXT, ColumnType, Source
from embedcache.table.spelling import as_spelled
from embedcache.text import nearest
from embedcache.values import spelled

FLOAT32_MAX = float(np.finfo(np.float32).max)
EXACT_MAX = float(1 << 53)  # beyond, two whole numbers may be one float64
Reach = Mapping[str, tuple[float, float]]  # by column
NO_REACH: Reach = MappingProxyType({})
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

    def require(self, column: str, what: str, wanted: ColumnType) -> pl.Expr | None:
        """Return a source column as its type is read, or None after noting why it cannot be.

        It may be missing, ambiguous, or of another type; `what` names it in the report.
        """
        source = self.source
        if column in source.twice:
            self.violations.append(f"{what} appears more than once in the header")
        if column not in source.columns:
            known = f"; the table has {', '.join(list(source.columns)[:8])}, ..."
            self.violations.append(f"{what} is missing{nearest(column, source.columns) or known}")
            return None
        if not wanted.fits(source, column):
            self.violations.append(
                f"{what} has type {source.columns[column]}, expected {wanted.expected}"
            )
            return None
        return wanted.read(source, column)

    def check(
        self,
        what: str,
        broken: pl.Expr,
        value: pl.Expr,
        hint: Hint | None = None,
        advice: Advice | None = None,
    ) -> None:
        """Add a requirement on every row, by the expression that is true where it is broken."""
        self.checks.append(Check(what, broken, value, hint, advice=advice))


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
        _add_target(table, target)
    for name, column in (("group", data.group), ("stratum", data.stratum)):
        if column is not None:
            _add_key(table, name, column, f"{name} column '{column}'")
    if data.row_weight is not None:
        _add_weight(table, data.row_weight)
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
    _check_numbers(table, what, column, number)
    if reach is not None:
        low, high = reach
        table.check(
            f"{what}: so far from the train rows that fp32 overflows",
            number.is_finite() & ~number.is_between(low, high),
            number,
            RangeHint(None, None, column.unit),
        )
    _check_domain(table, what, column.transform, number)
    stored = number.cast(pl.Float32)
    if column.fill is not None:  # the statistics of the train rows will fill it
        stored = stored.fill_null(float("nan"))
    table.columns[f"numeric:{column.column}"] = stored
    if column.fill == "indicator":
        name = f"numeric:{indicator_of(column).column}"
        table.columns[name] = missing.cast(pl.Float32)


def _check_domain(table: Canonical, what: str, transform: Transform, number: pl.Expr) -> None:
    """Add the check that a transform is defined for what it will read, as it is stored."""
    if transform in DOMAIN_LOW:
        limit = DOMAIN_LOW[transform]
        below = number.cast(pl.Float32) <= pl.lit(limit, dtype=pl.Float32)
        table.check(
            f"{what}: transform {transform} needs values above {limit:g}",
            number.is_finite() & below,
            number,
        )


def _check_numbers(
    table: Canonical, what: str, column: NumericColumn | TargetColumn, number: pl.Expr
) -> None:
    """Add the checks that features and targets share: finite, within float32 and their range."""
    source = table.source
    is_binary = isinstance(column, TargetColumn) and column.kind == "binary"
    if source.is_text(column.column):
        table.check(
            f"{what}: not a number",
            source.is_garbled(column.column),
            source.text(column.column),
            advice=advice_on_classes if is_binary else advice_on_text,
        )
    finite = number.is_finite()
    table.check(f"{what}: infinite", number.is_infinite(), number)
    table.check(f"{what}: too large for float32", finite & (number.abs() > FLOAT32_MAX), number)
    # bounds are compared as the cache stores them: float32(0.1) is not above 0.1
    stored = number.cast(pl.Float32)
    unit = f" {column.unit}" if column.unit else ""
    hint = RangeHint(column.low, column.high, column.unit)
    if column.low is not None:
        below = finite & (stored < pl.lit(column.low, dtype=pl.Float32))
        table.check(f"{what}: below {column.low:g}{unit}", below, number, hint)
    if column.high is not None:
        above = finite & (stored > pl.lit(column.high, dtype=pl.Float32))
        table.check(f"{what}: above {column.high:g}{unit}", above, number, hint)


def _add_target(table: Canonical, target: TargetColumn) -> None:
    if target.optional and target.column not in table.source.columns:
        table.absent_targets.append(target.name)
        return
    what, is_binary = f"target column '{target.column}'", target.kind == "binary"
    number = table.require(target.column, what, NUMBER_IN_WORDS if is_binary else NUMBER)
    if number is None:
        return
    _check_numbers(table, what, target, number)
    if is_binary:
        table.check(
            f"{what}: binary, but neither 0, 1, true nor false",
            number.is_finite() & ~number.is_in([0.0, 1.0]),
            number,
        )
    _check_domain(table, what, target.transform, number)
    table.columns[f"target:{target.name}"] = number.fill_nan(None).cast(pl.Float32)


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
    if text is not None and table.source.columns[column].is_float():
        number = pl.col(column).cast(pl.Float64)
        table.check(
            f"{what}: floats that may stand for several whole numbers; write it as text or whole"
            " numbers, which a join with missing values makes floats",
            number.abs() > EXACT_MAX,
            number,
        )


def _add_facet(table: Canonical, column: str) -> None:
    text = table.require(column, f"report_by column '{column}'", KEY)
    if text is not None:
        table.columns[f"facet:{column}"] = text.fill_null(NO_VALUE)


def _add_weight(table: Canonical, rule: RowWeight) -> None:
    what, is_text = f"row_weight column '{rule.column}'", isinstance(rule.equals, str)
    value = table.require(rule.column, what, KEY if is_text else NUMBER_IN_WORDS)
    if value is None:
        return
    column = pl.col(rule.column)
    missing = column.is_null() if is_text else table.source.is_missing(rule.column)
    table.check(f"{what}: null", missing, value)
    if isinstance(rule.equals, bool):
        is_truth = value.is_in([0.0, 1.0]).fill_null(False)
        table.check(f"{what}: neither true nor false", ~missing & ~is_truth, value)
    chosen = value == (spelled(rule.equals) if isinstance(rule.equals, str) else float(rule.equals))
    weight, one = pl.lit(rule.weight, dtype=pl.Float32), pl.lit(1.0, dtype=pl.Float32)
    table.columns["weight"] = pl.when(chosen).then(weight).otherwise(one)
    table.columns["weighted"] = chosen


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
