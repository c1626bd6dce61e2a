"""A run as a header and a blob, with weights rounded as coarsely as its predictions allow.

Which is measured: on random rows from all of the train rows' range the rounded network's
predictions may be off by half of what is promised, of numbers relative to the spread of the train
labels (as they are learnt), of probabilities as they are.

Axes: B rows, U strings of a column that are known to the page, E encoder width, K features of a
string, P predictions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.text import visible
from fusionnet.config.tasks import output_columns, prediction_columns
from fusionnet.inpage.answers import intervals_of, reward_of, tasks_of
from fusionnet.inpage.arrays import ArrayReader, ArrayWriter, Bits
from fusionnet.inpage.columns import Start, categories_of, features_of, starts_of, strings_of
from fusionnet.inpage.network import network_steps
from fusionnet.inpage.reading import outputs_of_rows
from fusionnet.inpage.trees import blend_arrays
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import to_units
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.blended import tree_tables
from fusionnet.trained.run import TrainedRun

TOLERANCE = 1e-4  # that is promised; what is measured is on some rows, so half of it is taken
MOST_STRINGS = 1000  # of a column
MOST_BYTES = 4_900_000  # of a blob; in base64 and with all else of a page less than 8 MB
_ROWS = 256


@dataclass(frozen=True)
class Exported:
    """What a page holds of a run."""

    header: Mapping[str, Any]
    blob: bytes
    bits: Bits
    worst: float  # of the differences that were measured
    has_all: bool  # whether that is the run's prediction: its trees, if it has any, are there


@dataclass(frozen=True)
class TooLarge:
    """A run that no page holds."""

    num_bytes: int


def exported(
    run: TrainedRun, names: Mapping[str, Mapping[str, str]], starts: Sequence[Start]
) -> Exported | TooLarge:
    """Return a run for a page: with its trees if they fit, else the network alone.

    `names` are what the table calls some strings, by string column.
    """
    texts = {name: list(known)[:MOST_STRINGS] for name, known in run.strings.items()}
    smallest = 0
    for with_trees in [True, False] if run.blend is not None else [False]:
        for found in _candidates(run, texts, with_trees):
            smallest = smallest or len(found.blob)
            if len(found.blob) > MOST_BYTES:
                break
            if found.worst <= TOLERANCE / 2:
                described = _described(run, texts, names, starts, found.has_all)
                header = {**described, **found.header}
                return Exported(header, found.blob, found.bits, found.worst, found.has_all)
    return TooLarge(smallest)


def _candidates(
    run: TrainedRun, texts: Mapping[str, Sequence[str]], with_trees: bool
) -> Iterator[Exported]:
    """Yield the network, and trees where they are wanted, with ever finer weights."""
    vectors = [run.vectors[spec.name][: len(texts[spec.name])] for spec in run.layout.strings]
    for bits in get_args(Bits):
        arrays = ArrayWriter(bits)
        network = network_steps(run.model.network, vectors, arrays)
        blend = None
        if with_trees and run.blend is not None:
            blend = blend_arrays(run.blend, tree_tables(run, texts, vectors), arrays)
        blob = arrays.blob()
        worst = worst_difference(run, network, blob, vectors) if len(blob) <= MOST_BYTES else 0.0
        has_all = with_trees or run.blend is None
        yield Exported({"network": network, "blend": blend}, blob, bits, worst, has_all)


def _described(
    run: TrainedRun,
    texts: Mapping[str, Sequence[str]],
    names: Mapping[str, Mapping[str, str]],
    starts: Sequence[Start],
    has_all: bool,
) -> dict[str, Any]:
    """Return what a page says of a run beside its arrays.

    Intervals are those of the run's prediction, so without its trees there are none.
    """
    return {
        "name": visible(run.name),
        "features": features_of(run),
        "strings": strings_of(run, texts, names),
        "categories": categories_of(run),
        "starts": starts_of(run, texts, starts),
        "tasks": tasks_of(run, calibrated=has_all),
        "reward": reward_of(run),
        "intervals": intervals_of(run, texts) if has_all else None,
    }


@torch.no_grad()
def worst_difference(
    run: TrainedRun,
    network: Mapping[str, Any],
    blob: bytes,
    vectors: Sequence[Float[Tensor, "_U _E"]],
) -> float:
    """Return how far predictions by the page's bytes are from the network's own, at most.

    On random rows from all of the train rows' range.
    """
    rows = random_rows(run, [len(table) for table in vectors], _ROWS)
    inputs = RowInputs(rows.string_id, run.scaling.apply(rows.numeric), rows.category)
    evaluate = RowEvaluator(run.model.network, torch.float32)
    wanted = evaluate(evaluate.tables(vectors), inputs.to(run.device)).cpu().double()
    found = outputs_of_rows(
        network, ArrayReader(blob), inputs.string_id, inputs.numeric, inputs.category
    )
    chances = [to_units(each, run.tasks, run.scaling) for each in (found, wanted)]
    num_outputs = sum(task.num_outputs for task in run.tasks)
    worst = 0.0
    places = zip(run.tasks, output_columns(run.tasks), prediction_columns(run.tasks), strict=True)
    for task, own, predictions in places:
        if task.kind == "regression":
            members = zip(found.split(num_outputs, 1), wanted.split(num_outputs, 1), strict=True)
            off = [(one[:, own] - other[:, own]).abs().max() for one, other in members]
        else:
            off = [(chances[0][:, predictions] - chances[1][:, predictions]).abs().max()]
        worst = max(worst, *map(float, off))
    return worst


def random_rows(run: TrainedRun, num_strings: Sequence[int], num_rows: int) -> RowInputs:
    """Return raw rows, drawn evenly from the train rows' range and from what the page knows."""
    drawn = torch.Generator().manual_seed(0)
    low, high = torch.tensor(run.scaling.low), torch.tensor(run.scaling.high)
    numeric = low + (high - low) * torch.rand(num_rows, len(low), generator=drawn)

    def codes(sizes: Sequence[int]) -> Tensor:
        columns = [torch.randint(size, (num_rows,), generator=drawn) for size in sizes]
        return torch.stack(columns, 1) if columns else torch.zeros(num_rows, 0, dtype=torch.int64)

    categories = [len(values) for _, values in run.layout.categories]
    return RowInputs(codes(num_strings), numeric, codes(categories))
