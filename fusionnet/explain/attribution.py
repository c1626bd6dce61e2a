"""Which tokens of a string move a run's predictions, from the same string with masked tokens.

The baseline has the token that stands for any, [MASK], wherever the string has one of its own: as
long, with the same [CLS] and [SEP], and nothing of which string it is. What is explained is the
run's prediction in its unit, averaged over rows that have the string; its features (RDKit's, one's
own) and what trees say stay those of the string all the way, so that attributions are of what the
language model reads and nothing else.

Everything is fp32, the encoder with the run's LoRA weights, as Hugging Face computes it.

Axes: K points, L tokens, W the width of their embeddings, m rows, P predictions, T targets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder.token_embeddings import (
    TokenSpans,
    embeddings_of,
    encode_points,
    masked_id,
    token_spans,
)
from embedcache.encoder.tokenizer import load_tokenizer
from fusionnet.config.tasks import Task, prediction_columns
from fusionnet.explain.gradients import Integrated, integrated_gradients
from fusionnet.explain.permutation import Sample
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.blended import Found, found_of
from fusionnet.trained.encoder import trained_encoder
from fusionnet.trained.run import TrainedRun

MOST_ROWS = 64  # of a string, over which predictions are averaged
_MOST_TOKENS, _MOST_ROWS_AT_ONCE = 2048, 2048  # of all points that are computed together


class Readout(NamedTuple):
    """What of a task is explained: a sum of its predictions."""

    task: Task
    what: str
    weights: tuple[float, ...]  # of the P predictions


class TokenShares(NamedTuple):
    """What the tokens of a string add to each readout."""

    spans: TokenSpans
    readouts: list[Readout]
    integrated: Integrated


def attributed_tokens(
    run: TrainedRun, column: int, text: str, sample: Sample, tasks: Sequence[Task]
) -> TokenShares:
    """Return what the tokens of a string of one column add to the tasks' predictions.

    `sample` are rows that have it. Raises EncoderError where the encoder is not to be had.
    """
    name = run.layout.strings[column].name
    encoder = trained_encoder(run, name)
    tokenizer = load_tokenizer(run.recipe.encoders[column])
    spans = token_spans(tokenizer, text)
    ids = spans.ids.to(run.device)
    is_own = ~torch.tensor(spans.is_added, device=run.device)
    masked = torch.where(is_own, masked_id(tokenizer, encoder.num_ids), ids)
    predicted = PredictedFromVectors(run, column, sample)
    own = predicted.of_rows()
    readouts = [readout_of(run.tasks, task, own) for task in tasks]
    weights = torch.tensor([each.weights for each in readouts], device=run.device).T  # [P, T]

    def values(points: Float[Tensor, "K L W"]) -> Float[Tensor, "K T"]:
        return predicted(encode_points(encoder, ids, points)) @ weights

    start, end = embeddings_of(encoder, masked), embeddings_of(encoder, ids)
    rows_of_point, tokens_of_point = sample.inputs.num_rows, len(ids)
    at_once = min(_MOST_TOKENS // tokens_of_point, _MOST_ROWS_AT_ONCE // rows_of_point)
    with torch.autocast(run.device.type, enabled=False):
        return TokenShares(
            spans, readouts, integrated_gradients(values, start, end, max(1, at_once))
        )


class PredictedFromVectors:
    """The mean prediction of some rows as a function of the vector of their common string."""

    def __init__(self, run: TrainedRun, column: int, sample: Sample) -> None:
        self._run, self._column, self._sample = run, column, sample
        width = run.layout.strings[column].width
        own = sample.inputs.string_id[:1, column]
        self._features = sample.vectors[column][own, width:]  # [1, K]
        self._others = [
            table[sample.inputs.string_id[:, each]] for each, table in enumerate(sample.vectors)
        ]
        nothing = torch.zeros(
            sample.inputs.num_rows, run.model.network.heads.num_outputs, device=run.device
        )
        self._of_trees = found_of(run, nothing, sample.inputs, sample.tree_tables).of_trees

    def of_rows(self) -> Float[np.ndarray, " P"]:
        """Return the run's own mean prediction."""
        return self._sample.predict(self._sample.inputs, "").mean(0)

    def __call__(self, vectors: Float[Tensor, "K E"]) -> Float[Tensor, "K P"]:
        """Return the mean prediction had the string each of these vectors; differentiable."""
        run, inputs = self._run, self._sample.inputs
        num_points, num_rows = len(vectors), inputs.num_rows
        tables = list(self._others)
        tables[self._column] = torch.cat([vectors, self._features.expand(num_points, -1)], dim=1)
        string_id = self._string_ids(num_points)
        repeated = RowInputs(
            string_id, inputs.numeric.repeat(num_points, 1), inputs.category.repeat(num_points, 1)
        )
        outputs = run.model.network(tables, repeated)
        of_trees = {name: each.repeat(num_points, 1) for name, each in self._of_trees.items()}
        found = Found(outputs, of_trees).in_units(run)  # [K m, P]
        return found.unflatten(0, (num_points, num_rows)).mean(1)

    def _string_ids(self, num_points: int) -> Int[Tensor, "K_m C"]:
        """Return ids of each row's strings: its point's, and of other columns its own."""
        num_rows = self._sample.inputs.num_rows
        own = torch.arange(num_rows, device=self._run.device)
        ids = own.repeat(num_points).unsqueeze(1).repeat(1, len(self._others))
        ids[:, self._column] = torch.arange(num_points, device=own.device).repeat_interleave(
            num_rows
        )
        return ids


def readout_of(tasks: Sequence[Task], task: Task, predictions: Float[np.ndarray, " P"]) -> Readout:
    """Return what of a task's predictions is explained, given those of the string on average.

    A number; the probability of the positive class, of several the likeliest; the mean class number
    of an ordinal task.
    """
    (own,) = (
        columns
        for each, columns in zip(tasks, prediction_columns(tasks), strict=True)
        if each.name == task.name
    )
    weights = np.zeros(len(predictions))
    classes = task.classes or ()
    if task.kind == "multiclass":
        likeliest = int(predictions[own].argmax())
        weights[own.start + likeliest] = 1
        what = f"the probability of {classes[likeliest]}"
    elif task.kind == "ordinal":
        weights[own] = np.arange(task.num_classes)
        what = "the mean class number"
    else:
        weights[own] = 1
        positive = classes[1] if classes else "a positive label"
        kind = "probability" if task.has_probability else "score"
        what = "the number" if task.kind == "regression" else f"the {kind} of {positive}"
    return Readout(task, what, tuple(weights.tolist()))
