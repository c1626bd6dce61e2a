"""A user's table, checked at the border and trusted from there on.

A table is one file, or a first file and others that were appended to it; each is a `Table` that
knows the names in the files before it. Reading one means: open it, turn every configured column
into its canonical form (`columns`), check all laws in one streaming pass (`violations`), take a
census of all text columns (which values, how many rows), and raise one TableError with everything
that is wrong. Nothing is written before that.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from embedcache.config import (
    CategoryColumn,
    DataConfig,
    SplitConfig,
    StringColumn,
    TargetColumn,
)
from embedcache.errors import ConfigError, TableError
from embedcache.table.checks import count_of, first_rows, nearest, rows_text, run_checks
from embedcache.table.columns import Canonical, canonical_columns
from embedcache.table.reader import Source, open_source
from embedcache.table.strings import DistinctStrings, distinct_strings
from embedcache.table.table import Table
from embedcache.table.vocabulary import (
    NO_VOCABULARIES,
    Census,
    Vocabularies,
    Vocabulary,
    after_known,
    followed_by,
)

MOST_FACETS = 10_000  # distinct values of a report_by column: each is a line of a report
MOST_LINES = 10  # of one kind in the report of violations


def read_table(
    file: str,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    known: Vocabularies = NO_VOCABULARIES,
) -> Table:
    """Return one of the files of a config, or raise one TableError that lists every violation with
    its count and first rows.
    """
    source = open_source(file)
    kept = _without(source, data.exclude_rows)
    table = read_source(kept, data, targets, split, known)
    return replace(table, num_excluded=0 if kept is source else _num_rows(source) - table.num_rows)


def read_source(
    source: Source,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    known: Vocabularies = NO_VOCABULARIES,
) -> Table:
    """Return an opened table, checked as `read_table` does."""
    label = _stratifying_target(targets, split)
    canonical = canonical_columns(source, data, targets, split)
    if not canonical.columns:
        raise _report(source, canonical.violations)
    frame = canonical.frame()
    try:
        table, violations = _survey(source, canonical, frame, data, targets, label, known)
    except pl.exceptions.PolarsError as error:
        raise TableError(f"{source.path} cannot be read: {error}") from None
    if violations:
        raise _report(source, violations)
    assert table is not None
    return table


def _without(source: Source, conditions: Sequence[str]) -> Source:
    """Return the source without the rows that meet any of the SQL conditions; a condition that is
    unknown (null) leaves its row in.
    """
    frame = source.frame
    for condition in conditions:
        try:
            frame = frame.filter(~pl.sql_expr(condition).fill_null(False))
            frame.collect_schema()
        except pl.exceptions.PolarsError as error:
            raise ConfigError(
                f"data.exclude_rows: '{condition}' is not a condition on the table's columns:"
                f" {error}"
            ) from None
    return replace(source, frame=frame) if conditions else source


def _num_rows(source: Source) -> int:
    return int(source.frame.select(pl.len()).collect(engine="streaming").item())


def _stratifying_target(targets: tuple[TargetColumn, ...], split: SplitConfig) -> str | None:
    """Return the canonical column of the label whose rate the splits should share."""
    if split.stratify_by is None:
        return None
    for target in targets:
        if target.column == split.stratify_by and target.kind == "binary":
            return f"target:{target.name}"
    raise ConfigError(
        f"split.stratify_by names '{split.stratify_by}', which is not the column of a binary target"
    )


def _survey(
    source: Source,
    canonical: Canonical,
    frame: pl.LazyFrame,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    label: str | None,
    known: Vocabularies,
) -> tuple[Table | None, list[str]]:
    """Return the table, or None and all violations."""
    violations = list(canonical.violations)
    num_rows = _num_rows(source)
    if num_rows == 0:
        return None, [*violations, "the table has no rows"]
    violations += run_checks(source.frame, canonical.checks)
    columns = canonical.columns
    present, absent = _observed_targets(
        frame, columns, targets, canonical.absent_targets, violations, known.targets
    )
    if label is not None and label.removeprefix("target:") in absent:
        violations.append(
            "the optional target that split.stratify_by names has no labels in this table; unset"
            " split.stratify_by"
        )
    label = label if label in columns else None
    if (
        "weighted" in columns
        and not known.num_rows
        and not frame.select(pl.col("weighted").any()).collect(engine="streaming").item()
    ):
        rule = data.row_weight
        violations.append(
            f"row_weight column '{rule.column}': no row equals {rule.equals!r}; correct"
            " row_weight.equals, or leave row_weight out"
        )
    strata = (
        followed_by(known.strata, _census(frame, "stratum", None, False).values)
        if "stratum" in columns
        else ()
    )
    groups = _group_census(frame, columns, label, strata, violations, known)
    spellings, strings = {}, {}
    for column in data.strings:
        name = f"string:{column.name}"
        if name in columns:
            spellings[column.name] = _census(frame, name, label, False)
            strings[column.name] = _check_strings(
                frame, column, spellings[column.name], violations, known
            )
    categories = tuple(
        Vocabulary(c.column, _check_category(frame, c, violations, known))
        for c in data.categories
        if f"category:{c.column}" in columns
    )
    facets = tuple(
        Vocabulary(column, _check_facet(frame, column, violations, known))
        for column in data.report_by
        if f"facet:{column}" in columns
    )
    if violations:
        return None, violations
    in_slices = not source.is_csv and not data.exclude_rows
    names = (present, absent, strings, spellings, categories, facets, strata, groups)
    return Table(frame, frozenset(columns), known.num_rows, in_slices, num_rows, *names), []


def _observed_targets(
    frame: pl.LazyFrame,
    columns: dict[str, pl.Expr],
    targets: tuple[TargetColumn, ...],
    absent: list[str],
    violations: list[str],
    known: frozenset[str],
) -> tuple[tuple[TargetColumn, ...], tuple[str, ...]]:
    """Return the targets that have labels, and the names of the optional ones that have none; those
    of which labels are `known` need no more of them.
    """
    readable = [
        target
        for target in targets
        if f"target:{target.name}" in columns and target.name not in known
    ]
    if not readable:
        present = [target for target in targets if target.name in known]
        return tuple(present), tuple(name for name in absent if name not in known)
    counted = [
        pl.col(f"target:{target.name}").count().alias(f"labels:{target.name}")
        for target in readable
    ]
    counted += [
        (pl.col(f"target:{target.name}") == 1).sum().alias(f"positives:{target.name}")
        for target in readable
    ]
    counts = frame.select(counted).collect(engine="streaming").row(0, named=True)
    present, empty = set(known), set(absent).difference(known)
    for target in readable:
        labels, positives = counts[f"labels:{target.name}"], counts[f"positives:{target.name}"]
        if labels:
            present.add(target.name)
        elif target.optional:
            empty.add(target.name)
        else:
            violations.append(
                f"target column '{target.column}': no row has a label; drop the target, or mark it"
                " optional"
            )
        if labels and target.kind == "binary" and positives in (0, labels):
            violations.append(
                f"target column '{target.column}': all {count_of(labels, 'label')} belong to one"
                f" class, {'1' if positives else '0'}"
            )
    return tuple(target for target in targets if target.name in present), tuple(
        target.name for target in targets if target.name in empty
    )


def _census(
    frame: pl.LazyFrame,
    column: str,
    label: str | None,
    with_stratum: bool,
    strata: tuple[str, ...] = (),
) -> Census:
    """Return the distinct non-null values of a text column, sorted."""
    counts = [pl.len().alias("0")]
    if label is not None:
        value = pl.col(label)
        counts = [
            (value == 0).sum().alias("0"),
            (value == 1).sum().alias("1"),
            value.is_null().sum().alias("2"),
        ]
    stratum = [pl.col("stratum").min()] if with_stratum else []
    query = (
        frame.filter(pl.col(column).is_not_null())
        .group_by(pl.col(column).alias("value"))
        .agg(*counts, *stratum)
    )
    found = query.collect(engine="streaming").sort("value")
    place = {name: code for code, name in enumerate(strata)}
    stratum_of = (
        [place.get(name, 0) for name in found["stratum"].to_list()]
        if with_stratum
        else [0] * found.height
    )
    numbers = found.select(pl.col(str(k)).cast(pl.Int64) for k in range(len(counts))).to_numpy()
    return Census(
        tuple(found["value"].to_list()),
        np.ascontiguousarray(numbers),
        np.array(stratum_of, dtype=np.int64),
    )


def _group_census(
    frame: pl.LazyFrame,
    columns: dict[str, pl.Expr],
    label: str | None,
    strata: tuple[str, ...],
    violations: list[str],
    known: Vocabularies,
) -> Census | None:
    """Return the groups, known ones first, and note those whose stratum is not one value."""
    if "group" not in columns:
        return None
    if "stratum" not in columns:
        return after_known(_census(frame, "group", label, False), known, violations)
    spread = frame.group_by("group").agg(
        pl.col("stratum").min().alias("low"), pl.col("stratum").max().alias("high")
    )
    varying = (
        spread.filter(pl.col("low") != pl.col("high")).collect(engine="streaming").sort("group")
    )
    if varying.height:
        shown = ", ".join(
            f"{group!r} ({low!r}, {high!r})" for group, low, high in varying.head(5).iter_rows()
        )
        violations.append(
            f"stratum column: {count_of(varying.height, 'group')} with several values, e.g."
            f" {shown}; a group must lie in one stratum"
        )
    return after_known(_census(frame, "group", label, True, strata), known, violations)


def _check_strings(
    frame: pl.LazyFrame,
    column: StringColumn,
    census: Census,
    violations: list[str],
    known: Vocabularies,
) -> DistinctStrings:
    """Return the distinct prepared strings, and note the spellings that are refused."""
    strings, refused = distinct_strings(
        column, census.values, census.num_rows, known.strings.get(column.name, ())
    )
    if refused:
        num_rows = dict(zip(census.values, census.num_rows.tolist(), strict=True))
        shown = list(refused)[:MOST_LINES]
        rows = first_rows(frame, pl.col(f"string:{column.name}"), shown)
        violations += [
            f"string column '{column.column}': {spelling!r:.120} is not a {column.kind}: it"
            f" {refused[spelling]}; {count_of(num_rows[spelling], 'row')}:"
            f" {rows_text(rows[spelling], num_rows[spelling])}"
            for spelling in shown
        ]
        violations += _and_more(f"string column '{column.column}'", len(refused), "string")
    return strings


def _check_category(
    frame: pl.LazyFrame, column: CategoryColumn, violations: list[str], known: Vocabularies
) -> tuple[str, ...]:
    """Return the categories in their order, and note the unknown ones."""
    census = _census(frame, f"category:{column.column}", None, False)
    if column.values is None:
        return followed_by(known.categories.get(column.column, ()), census.values)
    num_rows = dict(zip(census.values, census.num_rows.tolist(), strict=True))
    unknown = [value for value in census.values if value not in column.values and value.strip()]
    rows = (
        first_rows(frame, pl.col(f"category:{column.column}"), unknown[:MOST_LINES])
        if unknown
        else {}
    )
    violations += [
        f"category column '{column.column}': unknown category"
        f" {value!r:.80}{nearest(value, column.values)}: {count_of(num_rows[value], 'row')}; "
        + rows_text(rows[value], num_rows[value])
        for value in unknown[:MOST_LINES]
    ]
    violations += _and_more(f"category column '{column.column}'", len(unknown), "unknown categorie")
    return column.values


def _check_facet(
    frame: pl.LazyFrame, column: str, violations: list[str], known: Vocabularies
) -> tuple[str, ...]:
    """Return the values of a report_by column, and note if there are too many to report."""
    values = followed_by(
        known.facets.get(column, ()), _census(frame, f"facet:{column}", None, False).values
    )
    if len(values) > MOST_FACETS:
        violations.append(
            f"report_by column '{column}' has {len(values):,} distinct values, at most"
            f" {MOST_FACETS:,} can be reported"
        )
    return values


def _and_more(what: str, count: int, noun: str) -> list[str]:
    return [f"{what}: and {count_of(count - MOST_LINES, noun)} more"] if count > MOST_LINES else []


def _report(source: Source, violations: list[str]) -> TableError:
    ways = "1 way" if len(violations) == 1 else f"{len(violations)} ways"
    lines = "\n".join(f"  - {violation}" for violation in violations)
    return TableError(
        f"{source.path} breaks its config in {ways} (rows are counted from 0, without the"
        f" header):\n{lines}"
    )
