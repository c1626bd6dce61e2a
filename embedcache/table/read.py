"""From a file to a checked table: trusted from there on.

A table is one file, or a first file and others that were appended to it; each is a `Table` that
knows the names in the files before it. Reading one means: open it (`reader`), leave out the rows
that its config excludes (`exclude`), turn every configured column into its canonical form
(`columns`), check all requirements in one streaming pass (`checks`), survey the values of all text
columns (`survey`), and raise one TableError with everything that is wrong; or, where the config
says so, do without the rows that break a rule (`invalid`). Nothing is written before that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl

from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError, TableError
from embedcache.table.canonical import Canonical
from embedcache.table.checks import run_checks
from embedcache.table.columns import NO_REACH, Reach, canonical_columns
from embedcache.table.counting import Label
from embedcache.table.exclude import without_excluded
from embedcache.table.invalid import find_invalid
from embedcache.table.reader import open_source
from embedcache.table.source import Source
from embedcache.table.splitcolumn import add_split_column
from embedcache.table.survey import Judge, Survey
from embedcache.table.table import Table
from embedcache.table.vocabulary import NO_VOCABULARIES, Vocabularies, Vocabulary


@dataclass(frozen=True)
class _Wanted:
    """What is read of a file, and what is known before."""

    data: DataConfig
    targets: tuple[TargetColumn, ...]
    label: Label | None  # the one whose shares the splits have in common
    known: Vocabularies
    judge: Judge | None
    for_prediction: bool
    is_judge_strict: bool = False


def read_table(
    file: str,
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    known: Vocabularies = NO_VOCABULARIES,
    judge: Judge | None = None,
) -> Table:
    """Return one of the files of a config, given the names in those before it.

    With `on_invalid: skip` rows of strings that the `judge` refuses are left out too.
    Raises one TableError that lists every violation with its count and first rows; ConfigError
    where the config contradicts itself.
    """
    source, num_excluded = without_excluded(open_source(file, data), data, targets)
    wanted = _Wanted(data, targets, _stratifying_label(targets, split), known, judge, False)
    with _readable(source):
        canonical = canonical_columns(source, data, targets)
        add_split_column(canonical, split)
        table = _checked(canonical, wanted)
    return replace(table, num_excluded=num_excluded)


def read_features(
    source: Source,
    data: DataConfig,
    reach: Reach = NO_REACH,
    judge: Judge | None = None,
    is_judge_strict: bool = False,
) -> Table:
    """Return an opened table's features, checked as `read_table` does, and against `reach`.

    A table without rows is one. What a strict judge refuses is a violation like any other. With
    `on_invalid: skip` rows that break a rule stay, their features null, and the column REASON of
    `invalid` says what is wrong with them.
    """
    wanted = _Wanted(data, (), None, NO_VOCABULARIES, judge, True, is_judge_strict)
    with _readable(source):
        return _checked(canonical_columns(source, data, (), reach), wanted)


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise TableError(f"{source.path} cannot be read: {error}") from None


def _checked(canonical: Canonical, wanted: _Wanted) -> Table:
    """Return the table of these canonical columns, or raise one TableError with all violations."""
    source = canonical.source
    if not canonical.columns:
        raise _table_error(source, canonical.violations)
    num_rows = _num_rows(source)
    if num_rows == 0 and not wanted.for_prediction:
        raise _table_error(source, [*canonical.violations, "the table has no rows"])
    if wanted.data.on_invalid == "skip":
        return _without_invalid(canonical, wanted, num_rows)
    of_rows = [line for _, line in run_checks(source.frame, canonical.checks)]
    return _surveyed(canonical, wanted, canonical.violations + of_rows, num_rows)


def _without_invalid(canonical: Canonical, wanted: _Wanted, num_rows: int) -> Table:
    """Return the table of the rows that break no rule, of all rows for a prediction."""
    if canonical.violations:
        raise _table_error(canonical.source, canonical.violations)
    survey = Survey(
        canonical.frame(), frozenset(canonical.columns), wanted.known, None, [], wanted.judge
    )
    survey.note_refused(wanted.data)
    invalid = find_invalid(canonical, survey)
    if invalid.num_rows == num_rows and not wanted.for_prediction:
        raise _table_error(
            canonical.source, [*invalid.lines, "no row is left: each breaks a rule above"]
        )
    kept = invalid.marked() if wanted.for_prediction else invalid.left_out()
    num_kept = num_rows if wanted.for_prediction else num_rows - invalid.num_rows
    table = _surveyed(kept, wanted, [], num_kept)
    return replace(
        table,
        num_invalid=invalid.num_rows,
        invalid=invalid.lines,
        in_slices=table.in_slices and wanted.for_prediction,
    )


def _surveyed(canonical: Canonical, wanted: _Wanted, violations: list[str], num_rows: int) -> Table:
    """Return the table of checked columns with all its names, or raise one TableError."""
    data, known = wanted.data, wanted.known
    source, frame, columns = canonical.source, canonical.frame(), frozenset(canonical.columns)
    judge = wanted.judge if wanted.is_judge_strict else None
    survey = Survey(frame, columns, known, wanted.label, violations, judge)
    observed, absent = survey.targets(wanted.targets, canonical.absent_targets)
    survey.check_label(observed, absent)
    survey.check_weight(data.row_weight)
    strata = survey.strata()
    groups = survey.groups(strata)
    strings = [column for column in data.strings if f"string:{column.name}" in columns]
    categories = [column for column in data.categories if f"category:{column.column}" in columns]
    folds = survey.folds()
    facets = [column for column in data.report_by if f"facet:{column}" in columns]
    spellings = {column.name: survey.spellings(column) for column in strings}
    table = Table(
        path=source.path,
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
        folds=folds,
        others={c.column: c.other for c in categories if c.other is not None},
        num_blank=source.num_blank,
        copy=source.copy,
    )
    if not wanted.for_prediction:  # the few rows of a prediction may happen to be numbers
        for column in strings:
            survey.check_text(column, table.strings[column.name])
    if survey.violations:
        raise _table_error(source, survey.violations)
    return table


def _num_rows(source: Source) -> int:
    # polars counts the lines of a CSV in a map of the whole file, which counts as memory in use
    rows = pl.nth(0).is_null().count() if source.is_csv else pl.len()
    return int(source.frame.select(rows).collect(engine="streaming").item())


def _stratifying_label(targets: tuple[TargetColumn, ...], split: SplitConfig) -> Label | None:
    """Return the label whose shares the splits should have in common."""
    if split.stratify_by is None:
        return None
    for target in targets:
        if target.column == split.stratify_by and target.kind != "regression":
            return Label(f"target:{target.name}")
    raise ConfigError(
        f"split.stratify_by names '{split.stratify_by}', which is not the column of a target of"
        " classes"
    )


def _table_error(source: Source, violations: Sequence[str]) -> TableError:
    """Return the report of all violations."""
    ways = "1 way" if len(violations) == 1 else f"{len(violations)} ways"
    lines = "\n".join(f"  - {violation}" for violation in violations)
    return TableError(
        f"{source.path} breaks its config in {ways} (rows are counted from 0, without the header;"
        f" data.on_invalid: skip does without rows that break a rule):\n{lines}",
        violations,
    )
