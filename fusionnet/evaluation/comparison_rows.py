"""The rows that two runs are compared on.

They are evaluated rows of both. Where these are not the same rows, as after splits by other seeds,
no unit of a common row (patient or string) may have trained either run, or chosen its epoch: the
one that knew it would win.

Axes: N rows of a run, n common ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from embedcache.cache.identity import Identity
from embedcache.config.split import NO_SPLIT, SPLITS
from embedcache.errors import RunError
from embedcache.text import rows_text
from fusionnet.config.tasks import Task
from fusionnet.evaluation.evaluate import chosen_rows
from fusionnet.evaluation.rows import WHOLE, RunRows, units_of
from fusionnet.trained.run import TrainedRun


class Candidate(NamedTuple):
    """A run, all rows at hand for it, and those that it is evaluated on."""

    run: TrainedRun
    given: RunRows
    chosen: Int[np.ndarray, " n"]

    @property
    def learnt(self) -> Bool[np.ndarray, " N"]:
        """Which rows trained the run, or chose its epoch."""
        return np.isin(self.given.block.split, [SPLITS.index(name) for name in SPLITS[:2]])


class CommonRows(NamedTuple):
    """Where each of n common rows is among the rows that each run is evaluated on."""

    own: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    remark: str  # "" where both are evaluated on these rows alone


def candidate(run: TrainedRun, given: RunRows, split: str) -> Candidate:
    """Return a run with its rows of a split, or with all rows of another table."""
    return Candidate(run, given, chosen_rows(given, split_or_whole(given, split)))


def split_or_whole(given: RunRows, split: str) -> str:
    """Return the split, or WHOLE where the rows are in none."""
    return WHOLE if (given.block.split == NO_SPLIT).all() else split


def common_rows(own: Candidate, other: Candidate, split: str, same_files: bool) -> CommonRows:
    """Return the rows of both; raises RunError where there are none that may be compared.

    `same_files` says that both were read from the same files, whatever the runs were trained on.
    """
    names = f"{own.run.folder} and {other.run.folder}"
    if not same_files:
        _refuse_other_tables(own.run, other.run)
    mine, theirs = (each.given.row[each.chosen] for each in (own, other))
    _, a, b = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
    if not len(a):
        raise RunError(
            f"no {split} row of {own.run.folder} is one of {other.run.folder}: they were split"
            " otherwise, so there is nothing to compare them on. Train both on the same split, or"
            " evaluate both on a table that neither has seen, with --table FILE"
        )
    order = np.argsort(a)
    a, b = a[order], b[order]
    if len(a) == len(mine) == len(theirs):
        return CommonRows(a, b, "")
    unit = _refuse_learnt_units(own, other, own.chosen[a], names)
    remark = (
        f"The {len(a):,} rows are those that both runs are evaluated on, of {len(mine):,} and"
        f" {len(theirs):,}"
    )
    if own.learnt.any() and other.learnt.any():  # else it is not known, but of rows
        remark += f"; neither was trained or validated on any {unit} of them"
    return CommonRows(a, b, remark)


def refuse_other_labels(
    own: Candidate, other: Candidate, common: CommonRows, tasks: Sequence[Task]
) -> None:
    """Raise RunError where the common rows have other labels of a task for one run."""
    labels = []
    for each, places in ((own, common.own), (other, common.other)):
        columns = [task.column for task in each.run.tasks]
        wanted = [columns.index(task.column) for task in tasks]
        labels.append(each.given.block.targets[each.chosen[places]][:, wanted])
    differ = ~((labels[0] == labels[1]) | (np.isnan(labels[0]) & np.isnan(labels[1])))
    if differ.any():
        rows, which = np.nonzero(differ)
        first = own.given.row[own.chosen[common.own[rows[:3]]]].tolist()
        raise RunError(
            f"{own.run.folder} and {other.run.folder} read other labels of"
            f" {tasks[int(which[0])].column} in {rows_text(first, len(rows))} of their tables: rows"
            " that break a rule of one config alone may have been skipped (data.on_invalid), so"
            " that they cannot be told to be the same rows"
        )


def _refuse_other_tables(own: TrainedRun, other: TrainedRun) -> None:
    """Raise RunError unless one run's table is the beginning of the other's."""
    files = [Identity(run.identity).files for run in (own, other)]
    shorter = min(map(len, files))
    if files[0][:shorter] != files[1][:shorter]:
        raise RunError(
            f"{own.folder} and {other.folder} were trained on tables of other bytes, so rows of the"
            " same number need not be the same; evaluate both on one table, with --table FILE"
        )


def _refuse_learnt_units(
    own: Candidate, other: Candidate, rows: Int[np.ndarray, " n"], names: str
) -> str:
    """Return what the units are; raises RunError where a run has learnt from one of these rows'."""
    units = units_of(own.run, own.given, np.arange(len(own.given.row)))
    for each in (own, other):
        learnt = np.isin(own.given.row, each.given.row[each.learnt])
        known = np.isin(units.number[rows], units.number[learnt])
        if known.any():
            raise RunError(
                f"{names} are evaluated on different rows, and {int(known.sum()):,} of the"
                f" {len(rows):,} that both are evaluated on are of a {units.name} that"
                f" {each.run.folder} was trained or validated on: such a comparison would favour"
                " the run that knows it. Train both on the same split"
            )
    return units.name
