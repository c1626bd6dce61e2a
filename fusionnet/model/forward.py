"""Predictions for any number of rows with memory that does not grow with them."""

from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from embedcache.errors import NonFinitePredictionError
from embedcache.scaling import Scaling
from embedcache.text import NUM_EXAMPLES, count_of, rows_text
from fusionnet.config.reward import BinaryUnit
from fusionnet.config.tasks import Task, output_columns, prediction_columns
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.members import members_of
from fusionnet.model.probability import class_probabilities, probability_of_task
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable

CPU_BATCH_ROWS = 8_192
# on an H100 8.2 million rows a second, at 8,192 rows 2.2 million, at 262,144 5.9 million
GPU_BATCH_ROWS = 65_536


@torch.no_grad()
def forward_rows(
    model: TrainableModel,
    tables: Sequence[Float[Tensor, "_ _"]],
    rows: RowTable,
    batch_rows: int | None,
    progress: bool = False,
) -> Float[Tensor, "N O"]:
    """Return the heads' outputs for all rows, as `forward_batches` gives them."""
    outputs = rows.weight.new_empty(rows.num_rows, model.network.heads.num_outputs)
    start = 0
    for batch in forward_batches(model, tables, rows, batch_rows, progress):
        outputs[start : start + len(batch)] = batch
        start += len(batch)
    return outputs


@torch.no_grad()
def forward_batches(
    model: TrainableModel,
    tables: Sequence[Float[Tensor, "_ _"]],
    rows: RowTable,
    batch_rows: int | None,
    progress: bool,
) -> Iterator[Float[Tensor, "B O"]]:
    """Yield the heads' outputs of the rows, dropout off, by batches in their order.

    `tables` hold the vectors of all strings, one table [S, E] per string column. The strings' and
    categories' summands of the input projection are computed here once, not for every batch.
    `batch_rows` None: as the device likes. The model is in evaluation mode until the last batch.
    """
    if batch_rows is None:
        batch_rows = CPU_BATCH_ROWS if rows.weight.device.type == "cpu" else GPU_BATCH_ROWS
    training = model.training
    model.eval()
    evaluate = RowEvaluator(model.network, model.product_dtype)
    projected = evaluate.tables(tables)
    inputs = rows.inputs
    try:
        with prediction_bar(rows.num_rows, progress) as bar:
            for start in range(0, rows.num_rows, batch_rows):
                outputs = evaluate(projected, inputs.take(slice(start, start + batch_rows)))
                bar.update(len(outputs))
                yield outputs
    finally:
        model.train(training)


def refuse_non_finite(
    predictions: Float[Tensor, "N _"],
    tasks: Sequence[Task],
    numeric: Float[Tensor, "N F"],
    columns: Sequence[str],
    row: Int[Tensor, " N"],
    where: str,
) -> None:
    """Raise NonFinitePredictionError for rows with a prediction or output that is not finite.

    `numeric` are their standardised features, `row` their numbers in the table, counted from 0.
    """
    if predictions.isfinite().all():
        return
    finite, numeric = predictions.isfinite().cpu(), numeric.cpu()
    broken = (~finite.all(1)).nonzero().squeeze(1)
    widths = {
        sum(task.num_outputs for task in tasks): output_columns(tasks),
        sum(task.num_classes for task in tasks): prediction_columns(tasks),
    }
    parts = zip(tasks, widths[finite.shape[1]], strict=True)
    named = [task.column for task, columns in parts if not finite[:, columns].all()]
    first, because = int(broken[0]), ""
    if columns:
        column = int(numeric[first].abs().nan_to_num(nan=torch.inf).argmax())
        because = (
            f"; the largest feature of the first is '{columns[column]}',"
            f" {numeric[first, column].item():.3g} spreads from the train rows' mean"
        )
    rows = rows_text(row.cpu()[broken[:NUM_EXAMPLES]].tolist(), len(broken))
    raise NonFinitePredictionError(
        f"{where}: {count_of(len(broken), 'row')} of {len(finite):,} have predictions of"
        f" {', '.join(named)} that are NaN or infinite: {rows}{because}. Correct these rows or"
        " leave them out; if their features are right, the weights are not: train again"
    )


def to_units(
    outputs: Float[Tensor, "N kO"],
    tasks: Sequence[Task],
    scaling: Scaling,
    binary_unit: BinaryUnit = "probability",
) -> Float[Tensor, "N P"]:
    """Return predictions in the targets' own units, and what `binary_unit` says for classes.

    Of several members they are the means of theirs: of numbers, and of probabilities or scores.
    See `_in_units`, and `prediction_columns` for the P columns.
    """
    members = predictions_of_members(outputs, tasks, scaling, binary_unit)
    return members[0] if len(members) == 1 else torch.stack(members).mean(0)


def predictions_of_members(
    outputs: Float[Tensor, "N kO"],
    tasks: Sequence[Task],
    scaling: Scaling,
    binary_unit: BinaryUnit,
) -> list[Float[Tensor, "N P"]]:
    """Return the predictions of each member."""
    num_outputs = sum(task.num_outputs for task in tasks)
    members = members_of(outputs, num_outputs)
    return [_in_units(each, tasks, scaling, binary_unit) for each in members]


def _in_units(
    outputs: Float[Tensor, "N O"],
    tasks: Sequence[Task],
    scaling: Scaling,
    binary_unit: BinaryUnit,
) -> Float[Tensor, "N P"]:
    """Return one member's predictions in the targets' own units.

    A score is the sigmoid of the logit, above 0.5 where the loss decides for positive, of several
    classes the chances as their weights have moved them; metrics are of scores. Transforms are
    undone; what is then beyond the type is infinite.
    """
    first = [outputs[:, columns.start] for columns in output_columns(tasks)]
    mean = torch.as_tensor(scaling.target_mean, dtype=outputs.dtype, device=outputs.device)
    std = torch.as_tensor(scaling.target_std, dtype=outputs.dtype, device=outputs.device)
    numbers = scaling.in_units(torch.stack(first, dim=1) * std + mean)
    predictions = []
    for number, (task, columns) in enumerate(zip(tasks, output_columns(tasks), strict=True)):
        if task.has_codes:
            is_score = binary_unit == "score"
            predictions.append(class_probabilities(outputs[:, columns], task, scaling, is_score))
        elif task.kind == "regression":
            predictions.append(numbers[:, number : number + 1])
        elif binary_unit == "score":
            predictions.append(outputs[:, columns].sigmoid())
        else:
            predictions.append(probability_of_task(outputs[:, columns], task, scaling))
    return torch.cat(predictions, dim=1)


def prediction_bar(num_rows: int, shown: bool) -> "tqdm[NoReturn]":
    """Return the progress bar of predictions; where it is not shown, or no terminal, it is mute."""
    return tqdm(
        total=num_rows,
        unit="rows",
        unit_scale=True,
        desc="predict",
        leave=False,
        disable=None if shown else True,
    )
