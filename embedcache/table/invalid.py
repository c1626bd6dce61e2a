"""Rows that break a rule, where they may be left out: which, and why (`on_invalid: skip`).

Rules on a row are the checks of its columns, strings that are not what their column holds, and
categories that nobody knows. A column that is missing or of another type is no matter of rows: it
is always refused.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from embedcache.table.canonical import Canonical
from embedcache.table.checks import run_checks
from embedcache.table.survey import Survey

INVALID, REASON = "invalid:", "reason"  # columns that no table's canonical columns are called
MOST_REASONS = 50  # told apart, of the strings of one column


@dataclass(frozen=True)
class Invalid:
    """The rows of a table that cannot be used."""

    canonical: Canonical  # checked; its source's frame says in the column INVALID which rows
    lines: tuple[str, ...]  # on each rule that is broken, with count and first rows
    num_rows: int
    reason: pl.Expr  # on the source's frame: what is wrong with a row, null for a sound one

    def left_out(self) -> Canonical:
        """Return the canonical columns of the other rows."""
        source = self.canonical.source
        kept = replace(source, frame=source.frame.filter(~pl.col(INVALID)).drop(INVALID))
        return replace(self.canonical, source=kept)

    def marked(self) -> Canonical:
        """Return the canonical columns of all rows, null in those, with what is wrong in REASON."""
        columns = {
            name: pl.when(~pl.col(INVALID)).then(column)
            for name, column in self.canonical.columns.items()
        }
        return replace(self.canonical, columns={**columns, REASON: self.reason})


def find_invalid(canonical: Canonical, survey: Survey) -> Invalid:
    """Return the rows that break a check, or have a value that the `survey` refused."""
    source = canonical.source
    failing = run_checks(source.frame, canonical.checks)
    reasons = [(check.broken.fill_null(False), pl.lit(check.what)) for check, _ in failing]
    for name, refused in survey.refused.items():
        text = canonical.columns[name]
        for reason, values in _by_reason(refused).items():
            reasons.append((text.is_in(values).fill_null(False), pl.lit(reason)))
    broken = pl.any_horizontal([which for which, _ in reasons]) if reasons else pl.lit(False)
    frame = source.frame.with_columns(broken.alias(INVALID))
    num_rows = int(frame.select(pl.col(INVALID).sum()).collect(engine="streaming").item() or 0)
    told = pl.lit(None, dtype=pl.String)
    if reasons:
        parts = [pl.when(which).then(reason) for which, reason in reasons]
        text = pl.concat_str(parts, separator="; ", ignore_nulls=True)
        told = pl.when(pl.col(INVALID)).then(text)
    lines = (*(line for _, line in failing), *survey.violations)
    checked = replace(canonical, source=replace(source, frame=frame), checks=[], violations=[])
    return Invalid(checked, lines, num_rows, told)


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the refused values by their reason, the rarer reasons of many as one."""
    found: dict[str, list[str]] = defaultdict(list)
    for value, reason in refused.items():
        is_told = reason in found or len(found) < MOST_REASONS
        found[reason if is_told else "a string that is refused, as many are"].append(value)
    return found
