"""The metrics of a bootstrap's replicates, none of which is ever put together.

A replicate draws whole units with replacement, so a row counts as often as its unit was drawn. What
the rows of a unit add to a sum of errors or decisions is counted once; the sums of all replicates
are then one product of weights and counts. For ranks (AUROC, average precision, Spearman) rows are
put in order once, and weights are summed along the order. Scores of more than LEVELS different
values are rounded to as many levels, of equal numbers of rows; for Spearman's correlation of more
than LEVELS rows, to PAIRED_LEVELS.

The formulas are those of `fusionnet.metrics`; what is undefined is NaN.

Axes: N rows with a label, G units, R replicates, K classes, L levels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from fusionnet.config.tasks import LOGARITHMS, Task
from fusionnet.metrics import transformed_pair

LEVELS = 1024
PAIRED_LEVELS = 64
_CHUNK = 2**18  # numbers of [R, L] at once, which stay in a core's cache
Replicated = dict[str, Float64[np.ndarray, " R"]]


class Draws(NamedTuple):
    """Of which unit each row is, and how often each replicate has drawn each unit."""

    unit: Int[np.ndarray, " N"]
    weight: Float[np.ndarray, "R G"]

    def take(self, rows: Bool[np.ndarray, " M"]) -> "Draws":
        """Return those of the marked rows."""
        return Draws(self.unit[rows], self.weight)

    def summed(self, columns: Float[np.ndarray, "N C"]) -> Float64[np.ndarray, "R C"]:
        """Return the columns' sums over the rows of each replicate."""
        num_units = self.weight.shape[1]
        of_units = [np.bincount(self.unit, each, minlength=num_units) for each in columns.T]
        return self.weight @ np.stack(of_units, axis=1)

    def counts(self, place: Int[np.ndarray, " N"], size: int) -> Float64[np.ndarray, "G size"]:
        """Return how many rows of each unit are in each of `size` places."""
        num_units = self.weight.shape[1]
        cell = self.unit * size + place
        return np.bincount(cell, minlength=num_units * size).reshape(-1, size).astype(np.float64)


def replicate_metrics(
    task: Task, target: Float[np.ndarray, " N"], prediction: Float[np.ndarray, "N K"], draws: Draws
) -> Replicated:
    """Return each of a task's metrics in each replicate; rows without a label do not count.

    Labels and predictions are those that `metrics.task_metrics` reads. Nothing where no row has a
    label.
    """
    seen = ~np.isnan(target)
    if not seen.any():
        return {}
    target, prediction = target[seen].astype(np.float64), prediction[seen].astype(np.float64)
    draws = draws.take(seen)
    with np.errstate(divide="ignore", invalid="ignore"):  # undefined where a replicate lacks rows
        if task.kind == "binary":
            return _binary(target > 0.5, prediction[:, 0], draws)
        if task.kind != "regression":
            return _classes(target.astype(np.int64), prediction, draws, task.kind == "ordinal")
        found = _regression(target, prediction[:, 0], draws)
        if task.transform in LOGARITHMS:
            pair = transformed_pair(task, target, prediction[:, 0])
            own = {} if pair is None else _regression(*pair, draws)
            found |= {f"{task.transform}_{name}": each for name, each in own.items()}
        return found


def _regression(
    target: Float64[np.ndarray, " N"], prediction: Float64[np.ndarray, " N"], draws: Draws
) -> Replicated:
    error, centred = prediction - target, target - target.mean()
    one = np.ones(len(target))
    columns = np.stack([one, np.abs(error), error**2, centred, centred**2], axis=1)
    rows, absolute, squares, first, second = draws.summed(columns).T
    spread = second - first**2 / rows
    # all labels of a replicate may be one value; then only rounding is left
    r2 = np.where(spread > 1e-9 * second, 1 - squares / spread, np.nan)
    return {
        "mae": absolute / rows,
        "rmse": np.sqrt(squares / rows),
        "r2": r2,
        "spearman": _spearman(target, prediction, draws),
    }


def _binary(
    label: Bool[np.ndarray, " N"], score: Float64[np.ndarray, " N"], draws: Draws
) -> Replicated:
    chosen = score > 0.5
    columns = np.stack([np.ones(len(label)), label, chosen, label & chosen], axis=1)
    rows, positive, selected, hits = draws.summed(columns).T
    negative, rejected = rows - positive, rows - positive - selected + hits
    auroc, auprc = _ranking(label, score, draws)
    return {
        "accuracy": (hits + rejected) / rows,
        "auroc": auroc,
        "f1": 2 * hits / (positive + selected),
        "recall": hits / positive,
        "precision": hits / selected,
        "auprc": auprc,
        "balanced_accuracy": (hits / positive + rejected / negative) / 2,
    }


def _classes(
    label: Int[np.ndarray, " N"], chance: Float64[np.ndarray, "N K"], draws: Draws, ordered: bool
) -> Replicated:
    chosen, k = chance.argmax(1), chance.shape[1]
    confusion = (draws.weight @ draws.counts(label * k + chosen, k * k)).reshape(-1, k, k)
    hits = confusion.diagonal(axis1=1, axis2=2)
    of_label, of_chosen, rows = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))
    ranked = np.full((2, *of_label.shape), np.nan)
    for each in np.unique(label) if len(np.unique(label)) > 1 else ():
        ranked[:, :, each] = _ranking(label == each, chance[:, each], draws)
    present = of_label > 0
    several = present.sum(1) > 1
    found = {
        "accuracy": hits.sum(1) / rows,
        "balanced_accuracy": _mean_where(present, hits / of_label),
        "f1": _mean_where(of_label + of_chosen > 0, 2 * hits / (of_label + of_chosen)),
        "auroc": np.where(several, _mean_where(present, ranked[0]), np.nan),
        "auprc": np.where(several, _mean_where(present, ranked[1]), np.nan),
    }
    if not ordered:
        return found
    number = np.arange(k)
    off = np.abs(number[:, None] - number)  # [K, K]
    means = [each @ number / rows for each in (of_label, of_chosen)]
    squares = [each @ number**2 / rows for each in (of_label, of_chosen)]
    variances = sum(square - mean**2 for square, mean in zip(squares, means, strict=True))
    by_chance = variances + (means[1] - means[0]) ** 2
    disagreement = (confusion * off**2).sum((1, 2)) / rows
    kappa = np.where(by_chance > 1e-9, 1 - disagreement / by_chance, np.nan)
    return found | {
        "mae": (confusion * off).sum((1, 2)) / rows,
        "kappa": kappa,
        "spearman": _spearman(label.astype(np.float64), chance @ number, draws),
    }


def _mean_where(
    which: Bool[np.ndarray, "R K"], values: Float64[np.ndarray, "R K"]
) -> Float64[np.ndarray, " R"]:
    """Return the mean over the classes that are marked."""
    return np.where(which, values, 0).sum(1) / which.sum(1)


def _ranking(
    label: Bool[np.ndarray, " N"], score: Float64[np.ndarray, " N"], draws: Draws
) -> tuple[Float64[np.ndarray, " R"], Float64[np.ndarray, " R"]]:
    """Return AUROC and average precision, as `metrics` defines them."""
    level = _levels(-score, LEVELS)
    size = int(level.max()) + 1
    of_all, of_positive = draws.counts(level, size), draws.take(label).counts(level[label], size)
    auroc, auprc = np.empty((2, len(draws.weight)))
    for part in _chunks(len(draws.weight), size):
        selected = np.cumsum(draws.weight[part] @ of_all, axis=1)  # [r, L]
        gained = draws.weight[part] @ of_positive
        hits = np.cumsum(gained, axis=1)
        misses = selected - hits
        num_positive, num_negative = hits[:, -1], misses[:, -1]
        precision = np.divide(hits, selected, out=np.zeros_like(hits), where=selected > 0)
        auprc[part] = (gained * precision).sum(1) / num_positive
        below = num_negative[:, None] - misses + np.diff(misses, axis=1, prepend=0) / 2
        auroc[part] = (gained * below).sum(1) / (num_positive * num_negative)
    return auroc, auprc


def _spearman(
    x: Float64[np.ndarray, " N"], y: Float64[np.ndarray, " N"], draws: Draws
) -> Float64[np.ndarray, " R"]:
    """Return the correlation of ranks, ties sharing their mean.

    Rows are counted by unit and pair of levels, of which there are few.
    """
    most = LEVELS if len(x) <= LEVELS else PAIRED_LEVELS
    levels = [_levels(values, most) for values in (x, y)]
    sizes = [int(each.max()) + 1 for each in levels]
    pairs, place = np.unique(levels[0] * sizes[1] + levels[1], return_inverse=True)
    level_of = np.divmod(pairs, sizes[1])  # of each of the P pairs that occur
    of_level = [draws.counts(each, size) for each, size in zip(levels, sizes, strict=True)]
    of_pair = draws.counts(place, len(pairs))
    found = np.empty(len(draws.weight))
    for part in _chunks(len(found), len(pairs)):
        weight, product, squares = draws.weight[part], draws.weight[part] @ of_pair, 1.0
        for counts, level in zip(of_level, level_of, strict=True):
            own = weight @ counts  # [r, L]
            rank = np.cumsum(own, axis=1) - own / 2 - own.sum(1, keepdims=True) / 2
            product *= rank[:, level]  # [r, P]
            squares = squares * (own * rank**2).sum(1)
        found[part] = np.where(squares > 0, product.sum(1) / np.sqrt(squares), np.nan)
    return found


def _levels(values: Float64[np.ndarray, " N"], most: int) -> Int[np.ndarray, " N"]:
    """Return in which level each value is, in ascending order; equal ones are in the same."""
    order = np.argsort(values, kind="stable")
    is_first_of_ties = np.append(True, np.diff(values[order]) != 0)
    number = np.cumsum(is_first_of_ties) - 1
    if number[-1] >= most:
        number = np.flatnonzero(is_first_of_ties)[number] * most // len(values)
        number = np.unique(number, return_inverse=True)[1]
    level = np.empty(len(values), dtype=np.int64)
    level[order] = number
    return level


def _chunks(num_replicates: int, num_levels: int) -> Iterator[slice]:
    """Yield which replicates are computed together."""
    step = max(1, _CHUNK // num_levels)
    for start in range(0, num_replicates, step):
        yield slice(start, min(start + step, num_replicates))
