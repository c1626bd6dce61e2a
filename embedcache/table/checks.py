"""All violations of a table in one report, each with its count and first rows.

A check is a boolean expression that is true on rows that break it. The counts of all checks are one
streaming pass; only for checks that some rows break does a second query look for the rows, so a
sound table costs one pass and a broken one of any size stays within memory.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from embedcache.text import NUM_EXAMPLES, count_of, nearest, rows_text

ROW = "row:"  # a name that no canonical column can have
KELVIN_OFFSETS = {"K": 273.15, "degC": -273.15, "°C": -273.15, "C": -273.15}
UNIT_FACTORS = (10, 100, 1000, 1_000_000)
Hint = Callable[[float, float], str]
Advice = Callable[[Sequence[str]], str]
MISSING = {"na", "n/a", "#n/a", "null", "none", "nil", "missing", "nd", "n.d.", "nan", "<na>"}
_MISSING = {*MISSING, "-", "--", "?"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([ ,'\u2019\u00a0\u202f]\d{3})+(\.\d*)?")
_OTHER_MINUS = re.compile(r"[\u2010-\u2014\u2212](?=[\d.])")
_BOUND = re.compile(r"[<>≤≥≲≳]=?\s*[+-]?[\d.].*")
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = re.compile(
    rf"\d{{4}}-\d\d?-\d\d?.*|\d\d?[./]\d\d?[./]\d+.*|\d+-({_MONTHS}).*|({_MONTHS})-\d+",
    re.IGNORECASE,
)
_WITH_MORE = re.compile(r"[<>~≈=±]?\s*[+-]?\d+(\.\d+)?\s*\D.*|[<>~≈=±].*\d.*")


@dataclass(frozen=True)
class Check:
    """One requirement on every row."""

    what: str  # "numeric column 'x': above 40 %"
    broken: pl.Expr  # true on rows that break it
    value: pl.Expr  # shown for the first of them
    hint: Hint | None = None  # what the least and greatest broken value suggest; for numbers only
    known: tuple[str, ...] = ()  # admissible texts; each other one is shown with what is near it
    advice: Advice | None = None  # what the first broken texts suggest


def run_checks(frame: pl.LazyFrame, checks: Sequence[Check]) -> list[tuple[Check, str]]:
    """Return each check that some rows break, with a line on it."""
    if not checks:
        return []
    broken = [check.broken.fill_null(False) for check in checks]
    counts = frame.select(rows.sum().alias(str(k)) for k, rows in enumerate(broken))
    found = zip(checks, counts.collect(engine="streaming").row(0), strict=True)
    return [(check, _explain(frame, check, count)) for check, count in found if count]


def _explain(frame: pl.LazyFrame, check: Check, count: int) -> str:
    """Return the line on a check that `count` rows break."""
    broken = (
        frame.with_row_index(ROW)
        .filter(check.broken.fill_null(False))
        .select(ROW, value=check.value)
    )
    first = broken.head(NUM_EXAMPLES).collect(engine="streaming")
    rows = rows_text(first[ROW].to_list(), count)
    if check.hint is not None:
        extremes = broken.select(low=pl.col("value").min(), high=pl.col("value").max())
        low, high = extremes.collect(engine="streaming").row(0)
        shown = check.hint(low, high)
    elif check.known:
        shown = _wrong_texts(broken, check.known)
    else:
        values = sorted({_show(value) for value in first["value"].drop_nulls().to_list()})
        shown = f", e.g. {', '.join(values[:3])}" if values else ""
    if check.advice is not None:
        shown += check.advice(first["value"].drop_nulls().to_list())
    return f"{check.what}: {count_of(count, 'row')}{shown}; {rows}"


def _wrong_texts(broken: pl.LazyFrame, known: Sequence[str]) -> str:
    """Return the commonest broken texts, each with its rows and the known one that is near."""
    counts = broken.group_by("value").len().sort("len", "value", descending=[True, False])
    found = counts.head(NUM_EXAMPLES).collect(engine="streaming").rows()
    return "".join(
        f"; {count_of(rows, 'row')} {'without a value' if text is None else repr(text)[:80]}"
        + ("" if text is None else nearest(text, known).replace("; ", ", ", 1))
        for text, rows in found
    )


def advice_on_text(texts: Sequence[str]) -> str:
    """Return what texts that are no numbers suggest: a mark of missing values, a decimal comma, a
    unit, what a spreadsheet made of a number.
    """
    if any(text.lower() in _MISSING for text in texts):
        return "; if that stands for a missing value, list it in data.null_values"
    if any(_OTHER_MINUS.match(text) for text in texts):
        signs = {f"U+{ord(text[0]):04X}" for text in texts if _OTHER_MINUS.match(text)}
        return f"; the minus sign is {', '.join(sorted(signs))}, not the hyphen-minus of numbers"
    if any(_DATE.fullmatch(text) for text in texts):
        return "; is it a number that a spreadsheet took for a date? correct it there"
    if any(_DECIMAL_COMMA.fullmatch(text) for text in texts):
        either = any(_THOUSANDS.fullmatch(text) for text in texts)
        return "; if that is a decimal comma, set data.csv.decimal: ','" + (
            "; if it sets thousands apart, take it out" if either else ""
        )
    if any(_THOUSANDS.fullmatch(text) for text in texts):
        return "; take out what sets thousands apart"
    if any(_BOUND.fullmatch(text) for text in texts):
        return "; a bound is no value: leave the cell empty, or write the number that it stands for"
    if any(_WITH_MORE.fullmatch(text) for text in texts):
        return "; write the number alone, its unit in `unit`"
    return ""


def advice_on_classes(texts: Sequence[str]) -> str:
    """Return what texts that are no truths suggest: two classes in words."""
    return advice_on_text(texts) or (
        "; name the negative and the positive one in the task's `classes`, or set kind: multiclass"
    )


def first_rows(frame: pl.LazyFrame, key: pl.Expr, values: Iterable[str]) -> dict[str, list[int]]:
    """Return for each value of a text column the first rows that have it."""
    wanted = list(values)
    keys = frame.with_row_index(ROW).select(ROW, key=key)
    first = keys.filter(pl.col("key").is_in(wanted)).group_by("key")
    found = first.agg(pl.col(ROW).bottom_k(NUM_EXAMPLES)).collect(engine="streaming")
    return {value: sorted(rows) for value, rows in found.iter_rows()}


@dataclass(frozen=True)
class RangeHint:
    """How far out of [low, high] values lie, and whether another unit would bring them in."""

    low: float | None
    high: float | None
    unit: str

    def __call__(self, least: float, greatest: float) -> str:
        """Return the extent of the broken values, and the first repair that would fit them."""
        extent = _show(least) if least == greatest else f"{_show(least)} to {_show(greatest)}"
        repairs = self._repairs(least, greatest) if self._is_far(least, greatest) else []
        return f" ({extent})" + (
            f"; {repairs[0]} they would all be in range: another unit?" if repairs else ""
        )

    def _is_far(self, least: float, greatest: float) -> bool:
        """Whether values lie well beyond the bound; a tail just beyond is no matter of units."""
        bound = self.high if self.high is not None and greatest > self.high else self.low
        if bound is None:
            return False
        near, extreme = sorted(abs(value - bound) for value in (least, greatest))
        return extreme > 0.5 * abs(bound) and near > 0.1 * abs(bound)

    def _repairs(self, least: float, greatest: float) -> list[str]:
        """Return the shifts and factors that would bring the values in, the likeliest first."""
        offset = KELVIN_OFFSETS.get(self.unit)
        repairs = []
        if offset is not None and self._holds(least + offset, greatest + offset):
            repairs.append(f"shifted by {offset:+g}")
        for factor in UNIT_FACTORS:
            if self._holds(least / factor, greatest / factor):
                repairs.append(f"divided by {factor:,}")
            if self._holds(least * factor, greatest * factor):
                repairs.append(f"multiplied by {factor:,}")
        return repairs

    def _holds(self, *values: float) -> bool:
        return all(
            (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
            for value in values
        )


def _show(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)[:80]
