"""All violations of a table in one report, each with its count and first rows.

A check is a boolean expression that is true on rows that break it. The counts of all checks are one
streaming pass; only for checks that some rows break does a second query look for the rows, so a
sound table costs one pass and a broken one of any size stays within memory.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import polars as pl

NUM_EXAMPLES = 5
ROW = "row:"  # a name that no canonical column can have
Hint = Callable[[float, float], str]


@dataclass(frozen=True)
class Check:
    """One law that every row must keep."""

    what: str  # "numeric column 'x': above 40 %"
    broken: pl.Expr
    value: pl.Expr  # shown for the first rows that break the law
    hint: Hint | None = None  # what the least and greatest broken value suggest; for numbers only


def run_checks(frame: pl.LazyFrame, checks: Sequence[Check]) -> list[str]:
    """Return one line for each check that some rows break."""
    if not checks:
        return []
    counts = (
        frame.select(
            check.broken.fill_null(False).sum().alias(str(k)) for k, check in enumerate(checks)
        )
        .collect(engine="streaming")
        .row(0)
    )
    return [
        _explain(frame, check, count) for check, count in zip(checks, counts, strict=True) if count
    ]


def _explain(frame: pl.LazyFrame, check: Check, count: int) -> str:
    broken = (
        frame.with_row_index(ROW)
        .filter(check.broken.fill_null(False))
        .select(pl.col(ROW), check.value.alias("value"))
    )
    found = broken.head(NUM_EXAMPLES).collect(engine="streaming")
    hint = ""
    if check.hint is not None:
        low, high = (
            broken.select(pl.col("value").min().alias("low"), pl.col("value").max().alias("high"))
            .collect(engine="streaming")
            .row(0)
        )
        hint = check.hint(low, high)
    examples = sorted({_show(value) for value in found["value"].to_list() if value is not None})
    values = f", e.g. {', '.join(examples[:3])}" if examples and not hint else ""
    return (
        f"{check.what}: {count_of(count, 'row')}{hint}{values};"
        f" {rows_text(found[ROW].to_list(), count)}"
    )


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


def first_rows(frame: pl.LazyFrame, key: pl.Expr, values: Iterable[str]) -> dict[str, list[int]]:
    """Return for each value of a text column the first rows that have it."""
    wanted = list(values)
    matching = (
        frame.with_row_index(ROW)
        .select(pl.col(ROW), key.alias("key"))
        .filter(pl.col("key").is_in(wanted))
    )
    found = (
        matching.group_by("key").agg(pl.col(ROW).bottom_k(NUM_EXAMPLES)).collect(engine="streaming")
    )
    return {value: sorted(rows) for value, rows in found.iter_rows()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known name most like `name`, or nothing."""
    by_lower = {candidate.strip().lower(): candidate for candidate in known}
    near = get_close_matches(name.strip().lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def range_hint(low: float | None, high: float | None, unit: str) -> Hint:
    """Return a hint for values out of [low, high]: how far out they lie, and whether another unit
    would bring all of them in.
    """

    def inside(*values: float) -> bool:
        return all(
            (low is None or value >= low) and (high is None or value <= high) for value in values
        )

    def hint(least: float, greatest: float) -> str:
        extent = (
            f" ({_show(least)})" if least == greatest else f" ({_show(least)} to {_show(greatest)})"
        )
        bound = high if high is not None and greatest > high else low
        near, extreme = (
            sorted(abs(value - bound) for value in (least, greatest))
            if bound is not None
            else (0.0, 0.0)
        )
        # a tail just beyond the bound is no matter of units
        far = bound is not None and extreme > 0.5 * abs(bound) and near > 0.1 * abs(bound)
        offset = {"K": 273.15, "degC": -273.15, "°C": -273.15, "C": -273.15}.get(unit, 0.0)
        repairs = (
            [f"shifted by {offset:+g}"]
            if offset and far and inside(least + offset, greatest + offset)
            else []
        )
        for factor in (10, 100, 1000, 1_000_000) if far else ():
            repairs += (
                [f"divided by {factor:,}"] if inside(least / factor, greatest / factor) else []
            )
            repairs += (
                [f"multiplied by {factor:,}"] if inside(least * factor, greatest * factor) else []
            )
        return extent + (
            f"; {repairs[0]} they would all be in range: another unit?" if repairs else ""
        )

    return hint


def _show(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)[:80]
