"""Permutation importance: how much a run's error grows where columns are shuffled across rows.

(Breiman 2001; Fisher, Rudin and Dominici 2019: model reliance.) A shuffled column has the values
that it had, in rows that they do not belong to: it says nothing any more, and all else stays.
Predictions are the run's own, with its trees where it blends any. What strings and categories add
to the input projection is computed once (`RowEvaluator.tables`): a shuffled string is a shuffled
id.

All sets of columns are shuffled by the same orders, so that they compare.

Axes: n rows, T tasks, P predictions, R shuffles.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from fusionnet.config.tasks import Task
from fusionnet.evaluation.rows import RunRows
from fusionnet.explain.columnsets import ColumnSet
from fusionnet.explain.rowerrors import row_errors
from fusionnet.explain.saved import Importance, Increase
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import refuse_non_finite
from fusionnet.rows.tensors import RowInputs, row_table
from fusionnet.trained.blended import found_of, tree_tables
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.vectors import vectors_of_all_strings

Predict = Callable[[RowInputs, str], Float[np.ndarray, "n P"]]


class Sample(NamedTuple):
    """The rows that are looked at, on the run's device, standardised."""

    inputs: RowInputs
    targets: Float[np.ndarray, "n T"]
    predict: Predict  # the run's predictions of such rows; what was done to them is for messages
    vectors: list[Float[Tensor, "_ _"]]  # of the distinct strings, by string column
    tree_tables: list[Float[Tensor, "_ _"]]


@torch.no_grad()
def sample_of(run: TrainedRun, given: RunRows, chosen: Int[np.ndarray, " n"]) -> Sample:
    """Return n chosen rows of a table, ready to be predicted again and again."""
    rows = row_table(given.block, chosen, run.scaling)
    rows = replace(rows, row=torch.from_numpy(given.row[chosen])).to(run.device)
    vectors = [vectors_of_all_strings(run, name, texts) for name, texts in given.texts.items()]
    of_strings = tree_tables(run, given.texts, vectors)
    evaluate = RowEvaluator(run.model.network, run.model.product_dtype)
    projected = evaluate.tables(vectors)

    @torch.no_grad()
    def predict(inputs: RowInputs, what: str) -> Float[np.ndarray, "n P"]:
        found = found_of(run, evaluate(projected, inputs), inputs, of_strings).in_units(run)
        where = f"rows of {given.where}{what}"
        numeric, columns = inputs.numeric, run.scaling.columns
        refuse_non_finite(found, run.tasks, numeric, columns, rows.row, where)
        return found.cpu().numpy().astype(np.float64)

    targets = given.block.targets[chosen].astype(np.float64)
    return Sample(rows.inputs, targets, predict, vectors, of_strings)


def importances(
    tasks: Sequence[Task],
    sample: Sample,
    sets: Sequence[ColumnSet],
    names: Sequence[tuple[str, ...]],
    counted: Int[np.ndarray, " n"],
    repeats: int,
    seed: int = 0,
    progress: bool = True,
) -> list[Importance]:
    """Return what shuffling each set of columns does to each target's error.

    `names` are those of each set's columns; `counted` is the group of each row, over which the
    standard error is taken. Targets without a labelled row have none.
    """
    before = row_errors(tasks, sample.targets, sample.predict(sample.inputs, ""))
    rng = np.random.default_rng(seed)
    orders = [torch.from_numpy(rng.permutation(len(before))) for _ in range(repeats)]
    found = []
    bar = tqdm(sets, desc="columns", leave=False, disable=None if progress else True)
    for columns, named in zip(bar, names, strict=True):
        more = np.stack(
            [
                row_errors(tasks, sample.targets, _predicted(sample, columns, order)) - before
                for order in orders
            ]
        )  # [R, n, T]
        increases = {
            task.column: increase_of(more[:, :, t], counted)
            for t, task in enumerate(tasks)
            if not np.isnan(before[:, t]).all()
        }
        found.append(
            Importance(name=columns.name, kind=columns.kind, columns=named, increases=increases)
        )
    return found


def _predicted(
    sample: Sample, columns: ColumnSet, order: Int[Tensor, " n"]
) -> Float[np.ndarray, "n P"]:
    inputs = shuffled(sample.inputs, columns, order.to(sample.inputs.numeric.device))
    return sample.predict(inputs, f" with '{columns.name:.80}' shuffled")


def shuffled(inputs: RowInputs, columns: ColumnSet, order: Int[Tensor, " n"]) -> RowInputs:
    """Return rows in which some columns are those of other rows, the same row's for all of them."""
    return RowInputs(
        _shuffled(inputs.string_id, columns.strings, order),
        _shuffled(inputs.numeric, columns.numeric, order),
        _shuffled(inputs.category, columns.categories, order),
    )


def _shuffled(values: Tensor, columns: Sequence[int], order: Int[Tensor, " n"]) -> Tensor:
    if not columns:
        return values
    own, changed = list(columns), values.clone()
    changed[:, own] = values[order][:, own]
    return changed


def increase_of(more: Float[np.ndarray, "R n"], counted: Int[np.ndarray, " n"]) -> Increase:
    """Return the mean growth of the labelled rows' errors (others are NaN), and its spreads."""
    labelled = ~np.isnan(more[0])
    own, groups = more[:, labelled], counted[labelled]
    of_shuffles = own.mean(1)
    mean = float(of_shuffles.mean())
    spread = float(of_shuffles.std(ddof=1)) if len(own) > 1 else None
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, weights=own.mean(0) - mean)
    num = len(sums)
    error = None
    if num > 1:  # of a mean of clusters' rows
        error = float(np.sqrt(num / (num - 1) * np.square(sums).sum()) / len(groups))
    return Increase(mean=mean, spread=spread, standard_error=error)
