"""The reward's formula, with its terms and penalties found among a run's predictions.

Axes: B rows, P predictions, T terms, N penalties.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.errors import ConfigError, UnobservedTaskError
from fusionnet.config.reward import RewardPenalty, RewardTerm
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.trained.run import TrainedRun


class Reading(NamedTuple):
    """What a term or penalty reads: a prediction, or of an ordinal task the mean class number."""

    columns: slice
    is_mean: bool

    def value(self, predictions: Float[Tensor, "B P"]) -> Float[Tensor, " B"]:
        """Return what is read of each row."""
        own = predictions[:, self.columns]
        return own @ torch.arange(own.shape[1]).to(own) if self.is_mean else own[:, 0]


class Parts(NamedTuple):
    """What rewards are the sum of."""

    terms: Float[Tensor, "B T"]
    penalties: Float[Tensor, "B N"]  # as they are subtracted

    def total(self) -> Float[Tensor, " B"]:
        """Return terms minus penalties, summed one by one as the specification has them."""
        total = self.terms.new_zeros(len(self.terms))
        for term in self.terms.unbind(1):
            total = total + term
        for penalty in self.penalties.unbind(1):
            total = total - penalty
        return total


@dataclass(frozen=True)
class Formula:
    """The reward of a run's predictions in raw units.

    Of binary tasks they hold what `reward.binary` says.
    """

    terms: tuple[tuple[RewardTerm, Reading], ...]
    penalties: tuple[tuple[RewardPenalty, Reading], ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What terms and then penalties are called, each by a name of its own.

        `reward_<task>` and `penalty_<task>`, with `_<label>` where one is read, and with `_2`, ...
        where the name is taken.
        """
        names = [_name("reward", term) for term, _ in self.terms]
        names += [_name("penalty", penalty) for penalty, _ in self.penalties]
        return tuple(_told_apart(names))

    @property
    def widths(self) -> list[float | None]:
        """The width of each penalty's sigmoid, None of one without."""
        return [penalty.width for penalty, _ in self.penalties]

    def parts(
        self, predictions: Float[Tensor, "B P"], widths: Sequence[float | None] | None = None
    ) -> Parts:
        """Return terms and penalties, with a sigmoid for each penalty that has a width.

        Without `widths` all thresholds are hard.
        """
        nothing = predictions[:, :0]
        terms = [term.weight * read.value(predictions) for term, read in self.terms]
        penalties = [
            penalty.penalty * _paid(penalty, read.value(predictions), width)
            for (penalty, read), width in zip(
                self.penalties, widths or [None] * len(self.penalties), strict=True
            )
        ]
        return Parts(
            torch.stack(terms, dim=1) if terms else nothing,
            torch.stack(penalties, dim=1) if penalties else nothing,
        )


def _paid(
    penalty: RewardPenalty, value: Float[Tensor, " B"], width: float | None
) -> Float[Tensor, " B"]:
    """Return the share of a penalty that each row pays: 0 or 1 where the threshold is hard."""
    if penalty.above is not None:
        beyond = value - penalty.above
    else:
        assert penalty.below is not None, "the config gives one of the two"
        beyond = penalty.below - value
    return (beyond > 0).to(value) if width is None else torch.sigmoid(beyond / width)


def formula_of(run: TrainedRun) -> Formula:
    """Return the formula of a run's config.

    Raises ConfigError where it has none, or where a term reads what is not there;
    UnobservedTaskError where it reads a task that was not trained.
    """
    reward = run.reward
    if not reward.terms:
        raise ConfigError(
            f"{run.folder / run.name}_config.yaml has no reward.terms, so there is no"
            " reward; see configs/stage1.yaml for an example"
        )
    return Formula(
        tuple((term, _reading(run, term)) for term in reward.terms),
        tuple((penalty, _reading(run, penalty)) for penalty in reward.penalties),
    )


def _reading(run: TrainedRun, read: RewardTerm | RewardPenalty) -> Reading:
    """Return what a term or penalty reads of the predictions."""
    number = _index_of(run, read.task)
    task, columns = run.tasks[number], prediction_columns(run.tasks)[number]
    _check_label(task, read)
    if not task.has_codes:
        return Reading(columns, is_mean=False)
    if read.label is None:
        return Reading(columns, is_mean=True)
    place = columns.start + (task.classes or ()).index(read.label)
    return Reading(slice(place, place + 1), is_mean=False)


def _check_label(task: Task, read: RewardTerm | RewardPenalty) -> None:
    """Raise ConfigError for a class that the task lacks, or that is not said where it must be."""
    if read.label is not None and read.label not in (task.classes or ()):
        raise ConfigError(
            f"reward reads the chance of class '{read.label:.80}' of task '{task.name}', whose"
            f" classes are {', '.join(task.classes or ('none',)):.400}"
        )
    if task.kind == "multiclass" and read.label is None:
        raise ConfigError(
            f"reward reads task '{task.name}', which has several classes: say in `label` which"
            f" one's chance is meant: {', '.join(task.classes or ()):.400}"
        )


def _index_of(run: TrainedRun, task: str) -> int:
    """Return a task's index among the outputs; raise UnobservedTaskError if it is untrained."""
    trained = [each.name for each in run.tasks]
    if task in trained:
        return trained.index(task)
    known = [each["name"] for each in run.config["tasks"]]
    if task not in known:
        raise ConfigError(
            f"reward reads task '{task}', which is not among the tasks of {run.folder}:"
            f" {', '.join(known)}"
        )
    raise UnobservedTaskError(
        f"task '{task}' was not trained in {run.folder}: its table had no labels for it,"
        f" and its value is not invented; trained are {', '.join(trained)}. Train on a table"
        " with these labels, or take the task out of reward in the run's config"
    )


def _name(kind: str, read: RewardTerm | RewardPenalty) -> str:
    return f"{kind}_{read.task}" + ("" if read.label is None else f"_{read.label}")


def _told_apart(names: Sequence[str]) -> list[str]:
    """Return names of which the second of the same has _2 behind it, the third _3."""
    taken = Counter(names)
    found: list[str] = []
    for name in names:
        own, number = name, 1
        while own in found or (number > 1 and own in taken):
            number += 1
            own = f"{name}_{number}"
        found.append(own)
    return found
