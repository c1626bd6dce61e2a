"""Compare two runs on the rows that both are evaluated on."""

from collections.abc import Sequence
from typing import NamedTuple

from embedcache.errors import RunError
from fusionnet.config.tasks import Task
from fusionnet.evaluation.comparison import Comparison, Scored, common_tasks, compared
from fusionnet.evaluation.comparison_rows import (
    Candidate,
    CommonRows,
    candidate,
    common_rows,
    refuse_other_labels,
)
from fusionnet.evaluation.predicted import predicted_rows
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import RunRows, units_of
from fusionnet.trained.run import TrainedRun


class Pair(NamedTuple):
    """Two runs that may be compared, on what."""

    own: Candidate
    other: Candidate
    rows: CommonRows
    tasks: Sequence[Task]
    left_out: dict[str, str]  # targets that are not compared, and why
    split: str


def paired(
    run: TrainedRun,
    given: RunRows,
    other: TrainedRun,
    other_given: RunRows,
    split: str,
    same_files: bool,
) -> Pair:
    """Return what two runs are compared on; `same_files` says that their rows are of one table.

    Raises RunError where they have no target or no row in common, or where one knows what the
    other does not.
    """
    tasks, left_out = common_tasks(run, other)
    if not tasks:
        why = "; ".join(f"{column}: {reason}" for column, reason in left_out.items())
        raise RunError(f"{run.folder} and {other.folder} have no target in common ({why})")
    pair = candidate(run, given, split), candidate(other, other_given, split)
    rows = common_rows(*pair, split, same_files)
    refuse_other_labels(*pair, rows, tasks)
    return Pair(*pair, rows, tasks, left_out, split)


def comparison_of(pair: Pair, evaluation: Evaluation, progress: bool = True) -> Comparison:
    """Return how the runs of a pair differ; `evaluation` is that of the first."""
    own, other, rows = pair.own, pair.other, pair.rows
    chosen = other.chosen[rows.other]
    scores = predicted_rows(other.run, other.given, chosen, pair.split, progress).scores
    columns = [task.column for task in own.run.tasks]
    targets = {
        task.column: evaluation.targets[rows.own, columns.index(task.column)] for task in pair.tasks
    }
    scored = Scored(own.run, evaluation.scores[rows.own]), Scored(other.run, scores)
    units = units_of(own.run, own.given, own.chosen[rows.own])
    remarks = [rows.remark]
    if other.given.remark:
        remarks.append(f"Of {other.run.folder}: {other.given.remark}")
    told = {"remark": ". ".join(filter(None, remarks)), "left_out": pair.left_out}
    return compared(*scored, targets, units).model_copy(update=told)
