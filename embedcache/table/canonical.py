"""The canonical columns of a table while they are gathered, and what is asked of several kinds."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from embedcache.config.columns import NumericColumn
from embedcache.config.targets import TargetColumn
from embedcache.scaling import DOMAIN_LOW
from embedcache.table.checks import (
    Advice,
    Check,
    Hint,
    RangeHint,
    advice_on_classes,
    advice_on_text,
)
from embedcache.table.source import ColumnType, Source
from embedcache.text import nearest

FLOAT32_MAX = float(np.finfo(np.float32).max)
EXACT_MAX = float(1 << 53)  # beyond, two whole numbers may be one float64


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


def check_domain(table: Canonical, what: str, transform: str, number: pl.Expr) -> None:
    """Add the check that a transform is defined for what it will read, as it is stored."""
    if transform in DOMAIN_LOW:
        limit = DOMAIN_LOW[transform]
        below = number.cast(pl.Float32) <= pl.lit(limit, dtype=pl.Float32)
        table.check(
            f"{what}: transform {transform} needs values above {limit:g}",
            number.is_finite() & below,
            number,
        )


def check_numbers(
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


def refuse_inexact(table: Canonical, what: str, column: str) -> None:
    """Add the check that a column of names has no floats that stand for several numbers."""
    if table.source.columns[column].is_float():
        number = pl.col(column).cast(pl.Float64)
        table.check(
            f"{what}: floats that may stand for several whole numbers; write it as text or whole"
            " numbers, which a join with missing values makes floats",
            number.abs() > EXACT_MAX,
            number,
        )
