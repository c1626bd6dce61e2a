"""What a design is judged by: the reward, with weights of one's own, and single predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from embedcache.errors import ConfigError
from embedcache.text import nearest
from fusionnet.config.reward import RewardConfig, RewardTerm
from fusionnet.config.tasks import Task
from fusionnet.trained.formula import Formula, formula_of
from fusionnet.trained.run import TrainedRun


@dataclass(frozen=True)
class Objective:
    """A task's prediction, of which more or less is better."""

    task: Task
    label: str | None  # of a task with several classes: whose chance
    more_is_better: bool

    @property
    def title(self) -> str:
        """Its column, and the class where there is one."""
        return self.task.column + ("" if self.label is None else f" {self.label}")


def weighted(run: TrainedRun, weights: Mapping[str, float]) -> TrainedRun:
    """Return the run with other weights of its reward's terms, by the names of their tasks.

    Raises ConfigError for a task that no term reads, or a weight that is no number.
    """
    formula_of(run)
    known = [term.task for term in run.reward.terms]
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(
                f"--weights names '{name:.80}', which no term of the reward reads: they are"
                f" {', '.join(known)}{nearest(name[:80], known)}"
            )
        if not math.isfinite(weight):
            raise ConfigError(f"--weights: the weight of '{name}' must be a number; got {weight}")
    terms = tuple(
        term.model_copy(update={"weight": weights.get(term.task, term.weight)})
        for term in run.reward.terms
    )
    return replace(run, reward=run.reward.model_copy(update={"terms": terms}))


def objectives_of(run: TrainedRun, names: Sequence[str] = ()) -> list[Objective]:
    """Return the objectives of these names; without any those of the reward's terms.

    A name is that of a task, with `:CLASS` behind it where it has several, and `-` or `+` before it
    where less or more is better; else it is as the reward has it: by the sign of the term, or the
    side of the penalty. Raises ConfigError for what is none, UnobservedTaskError for a task without
    labels.
    """
    terms = run.reward.terms
    if not names:
        found = [_of_term(run, term) for term in terms if term.weight]
    else:
        found = [_of_name(run, name) for name in names]
    titles = [objective.title for objective in found]
    if len(set(titles)) < len(titles) or not found:
        raise ConfigError(
            f"--pareto must name one task or more, each once; found {', '.join(titles) or 'none'}"
        )
    formula_of_objectives(run, found)
    return found


def formula_of_objectives(run: TrainedRun, objectives: Sequence[Objective]) -> Formula:
    """Return the formula whose terms are the objectives, of which more is better."""
    terms = tuple(
        RewardTerm(task=each.task.name, label=each.label, weight=1 if each.more_is_better else -1)
        for each in objectives
    )
    reward = RewardConfig(terms=terms, binary=run.reward.binary)
    return formula_of(replace(run, reward=reward))


def _of_term(run: TrainedRun, term: RewardTerm) -> Objective:
    return Objective(_task(run, term.task), term.label, term.weight > 0)


def _of_name(run: TrainedRun, name: str) -> Objective:
    """Return the objective of a name with what stands before and behind it."""
    sign, bare = (name[0], name[1:]) if name[:1] in ("+", "-") else ("", name)
    task, _, label = bare.strip().partition(":")
    if sign:
        return Objective(_task(run, task), label or None, sign == "+")
    for term in run.reward.terms:
        if term.task == task and (not label or term.label == label):
            return Objective(_task(run, task), label or term.label, term.weight >= 0)
    for penalty in run.reward.penalties:
        if penalty.task == task and (not label or penalty.label == label):
            return Objective(_task(run, task), label or penalty.label, penalty.above is None)
    return Objective(_task(run, task), label or None, True)


def _task(run: TrainedRun, name: str) -> Task:
    """Return a task of the run by its name; raise ConfigError for what is none."""
    for task in run.tasks:
        if task.name == name:
            return task
    names = [task.name for task in run.tasks]
    raise ConfigError(
        f"'{name:.80}' is no trained task of {run.folder}{nearest(name[:80], names)}; they are"
        f" {', '.join(names)}"
    )
