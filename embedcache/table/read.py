"""From a file to a checked table: trusted from there on.

A table is one file, or a first file and others that were appended to it; each is a `Table` that
knows the names in the files before it. Reading one means: open it (`reader`), turn every configured
column into its canonical form (`columns`), check all requirements in one streaming pass (`checks`),
survey the values of all text columns (`survey`), and raise one TableError with everything that is
wrong. Nothing is written before that.
"""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig, TargetColumn
from embedcache.errors import ConfigError, TableError
from embedcache.table.checks import run_checks
from embedcache.table.columns import NO_REACH, Canonical, Reach, canonical_columns
from embedcache.table.reader import Source, open_source
from embedcache.table.survey import Survey
from embedcache.table.table import Table
from embedcache.table.vocabulary import NO_VOCABULARIES, Vocabularies, Vocabulary


def read_table(
    file: str,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    known: Vocabularies = NO_VOCABULARIES,
) -> Table:
    """Return one of the files of a config, given the names in those before it.

    Raises one TableError that lists every violation with its count and first rows; ConfigError
    where the config contradicts itself.
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
    reach: Reach = NO_REACH,
) -> Table:
    """Return an opened table, checked as `read_table` does, and its features against `reach`."""
    label = _stratifying_label(targets, split)
    canonical = canonical_columns(source, data, targets, split, reach)
    if not canonical.columns:
        raise _table_error(source, canonical.violations)
    try:
        return _checked(canonical, data, targets, label, known)
    except pl.exceptions.PolarsError as error:
        raise TableError(f"{source.path} cannot be read: {error}") from None


def _checked(
    canonical: Canonical,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    label: str | None,
    known: Vocabularies,
) -> Table:
    """Return the table of these canonical columns, or raise one TableError with all violations."""
    source, frame, columns = canonical.source, canonical.frame(), frozenset(canonical.columns)
    num_rows = _num_rows(source)
    if num_rows == 0:
        raise _table_error(source, [*canonical.violations, "the table has no rows"])
    violations = canonical.violations + run_checks(source.frame, canonical.checks)
    survey = Survey(frame, columns, known, label, violations)
    observed, absent = survey.targets(targets, canonical.absent_targets)
    survey.check_label(absent)
    survey.check_weight(data.row_weight)
    strata = survey.strata()
    groups = survey.groups(strata)
    strings = [column for column in data.strings if f"string:{column.name}" in columns]
    categories = [column for column in data.categories if f"category:{column.column}" in columns]
    facets = [column for column in data.report_by if f"facet:{column}" in columns]
    spellings = {column.name: survey.spellings(column) for column in strings}
    table = Table(
        frame=frame,
        columns=columns,
        first_row=known.num_rows,
        in_slices=not (source.is_csv or data.exclude_rows),
        num_rows=num_rows,
        targets=observed,
        absent_targets=absent,
        strings={column.name: survey.strings(column, spellings[column.name]) for column in strings},
        spellings=spellings,
        categories=tuple(Vocabulary(c.column, survey.category(c)) for c in categories),
        facets=tuple(Vocabulary(column, survey.facet(column)) for column in facets),
        strata=strata,
        groups=groups,
    )
    if survey.violations:
        raise _table_error(source, survey.violations)
    return table


def _without(source: Source, conditions: Sequence[str]) -> Source:
    """Return the source without the rows that meet any of the SQL conditions.

    A condition that is unknown (null) leaves its row in.
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
    # polars counts the lines of a CSV in a map of the whole file, which counts as memory in use
    rows = pl.nth(0).is_null().count() if source.is_csv else pl.len()
    return int(source.frame.select(rows).collect(engine="streaming").item())


def _stratifying_label(targets: tuple[TargetColumn, ...], split: SplitConfig) -> str | None:
    """Return the canonical column of the label whose rate the splits should share."""
    if split.stratify_by is None:
        return None
    for target in targets:
        if target.column == split.stratify_by and target.kind == "binary":
            return f"target:{target.name}"
    raise ConfigError(
        f"split.stratify_by names '{split.stratify_by}', which is not the column of a binary target"
    )


def _table_error(source: Source, violations: Sequence[str]) -> TableError:
    """Return the report of all violations."""
    ways = "1 way" if len(violations) == 1 else f"{len(violations)} ways"
    lines = "\n".join(f"  - {violation}" for violation in violations)
    return TableError(
        f"{source.path} breaks its config in {ways} (rows are counted from 0, without the"
        f" header):\n{lines}"
    )
