"""Canonical columns of what the loss reads: labels, and the weights of rows."""

import polars as pl

from embedcache.config.columns import RowWeight
from embedcache.config.targets import TargetColumn
from embedcache.table.canonical import (
    Canonical,
    check_domain,
    check_numbers,
    refuse_inexact,
)
from embedcache.table.checks import Check, advice_on_text
from embedcache.table.source import KEY, NUMBER, NUMBER_IN_WORDS
from embedcache.values import spelled

MOST_WEIGHT = 1e6  # of a row


def add_target(table: Canonical, target: TargetColumn) -> None:
    """Add a label column; an optional one may be missing."""
    if target.optional and target.column not in table.source.columns:
        table.absent_targets.append(target.name)
        return
    what, is_binary = f"target column '{target.column}'", target.kind == "binary"
    if target.has_codes or target.classes is not None:
        _add_classes(table, target, what)
        return
    number = table.require(target.column, what, NUMBER_IN_WORDS if is_binary else NUMBER)
    if number is None:
        return
    check_numbers(table, what, target, number)
    if is_binary:
        table.check(
            f"{what}: binary, but neither 0, 1, true nor false (name others in `classes`: negative,"
            " positive)",
            number.is_finite() & ~number.is_in([0.0, 1.0]),
            number,
        )
    check_domain(table, what, target.transform, number)
    table.columns[f"target:{target.name}"] = number.fill_nan(None).cast(pl.Float32)


def _add_classes(table: Canonical, target: TargetColumn, what: str) -> None:
    """Add labels that name classes: text, but 0 and 1 where there are two; null if unobserved."""
    text = table.require(target.column, what, KEY)
    if text is None:
        return
    if table.source.columns[target.column].is_float():
        text = pl.when(~pl.col(target.column).is_nan()).then(text)
    text = pl.when(text.str.strip_chars() != "").then(text)
    if target.classes is not None:
        table.checks.append(
            Check(f"{what}: unknown class", ~text.is_in(target.classes), text, known=target.classes)
        )
    refuse_inexact(table, what, target.column)
    if target.kind == "binary" and target.classes is not None:
        negative, positive = target.classes
        text = pl.when(text == positive).then(1.0).when(text == negative).then(0.0)
        text = text.cast(pl.Float32)
    table.columns[f"target:{target.name}"] = text


def add_weight(table: Canonical, rule: RowWeight) -> None:
    """Add the rows' weights in the loss, and `weighted`: which rows the rule is about."""
    if rule.weight is None:
        _add_weights(table, rule.column)
        return
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


def _add_weights(table: Canonical, column: str) -> None:
    """Add a column whose numbers are the rows' weights."""
    what = f"row_weight column '{column}'"
    number = table.require(column, what, NUMBER)
    if number is None:
        return
    if table.source.is_text(column):
        broken, text = table.source.is_garbled(column), table.source.text(column)
        table.check(f"{what}: not a number", broken, text, advice=advice_on_text)
    table.check(f"{what}: null or NaN", table.source.is_missing(column), pl.lit(None))
    beyond = ~number.is_between(0.0, MOST_WEIGHT) & number.is_not_nan()
    table.check(f"{what}: not between 0 and {MOST_WEIGHT:,.0f}", beyond, number)
    table.columns["weight"] = number.cast(pl.Float32)
    table.columns["weighted"] = number > 0
