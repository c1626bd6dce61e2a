"""Faults planted into the path from rows to gradients, of the kinds that a change could bring in,
and which of the two must see each: the certificate, or the count of rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from provable import Training
from torch import Tensor

from embedcache.encoder import model as encoder_model
from embedcache.encoder.deberta import attention, packed, projection
from embedcache.encoder.tokens import TokenTable
from embedcache.live import arrival
from embedcache.live import step as live_step
from embedcache.live.shared import SharedColumn
from fusionnet.model import loss as model_loss
from fusionnet.model.adapters import NumericGroups, StringAdapter
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.tensors import RowTable
from fusionnet.train import step as train_step
from fusionnet.train.plain import PlainEngine

Patch = pytest.MonkeyPatch


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace a function by `change(original, *arguments)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *words, **named: change(original, *words, **named))


def swapped_ids(patch: Patch, _: Training) -> None:
    def change(read: Any, *words: Any) -> Any:
        found = read(*words)
        return found._replace(vector_index=found.vector_index.roll(1))

    wrap(patch, SharedColumn, "read", change)


def one_string_has_anothers_vector(patch: Patch, _: Training) -> None:
    def change(read: Any, *words: Any) -> Any:
        found = read(*words)
        return found._replace(vectors=torch.cat([found.vectors[:1], found.vectors[:-1]]))

    wrap(patch, SharedColumn, "read", change)


def stale_vectors(patch: Patch, training: Training) -> None:
    polymer = training.sources[0]
    current = training.engine.state()
    with torch.no_grad():
        for name, weight in training.model.named_parameters():
            if "lora_B" in name:
                weight.zero_()  # as before the first step
        old = polymer.vectors_of_all_strings()
    training.engine.load_state(current)

    def change(encode: Any, encoder: Any, tokens: TokenTable, most: int) -> Tensor:
        vectors = encode(encoder, tokens, most)
        if len(vectors) != len(old):
            return vectors
        return vectors - vectors.detach() + old

    wrap(patch, live_step, "encode_bounded", change)


def earlier_micro_batches_lost(patch: Patch, _: Training) -> None:
    def change(whole: Any, own: Any, last: Tensor) -> Tensor:
        whole(own, last)
        return last

    wrap(patch, arrival.Arrival, "whole", change)


def earlier_micro_batches_counted_twice(patch: Patch, _: Training) -> None:
    def change(whole: Any, own: Any, last: Tensor) -> Tensor:
        return whole(own, last) + own.leaf.grad

    wrap(patch, arrival.Arrival, "whole", change)


def micro_batch_read_twice(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        first, _, *rest = cut(*words, **named)
        return [first, first, *rest]

    wrap(patch, StepPlan, "micro_batches", change)


def micro_batch_dropped(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        first, _, *rest = cut(*words, **named)
        return [first, slice(0, 0), *rest]

    wrap(patch, StepPlan, "micro_batches", change)


def last_row_dropped(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        *first, last = cut(*words, **named)
        return [*first, slice(last.start, last.stop - 1)]

    wrap(patch, StepPlan, "micro_batches", change)


def loss_divided_by_micro_batches(patch: Patch, _: Training) -> None:
    wrap(patch, PlainEngine, "backward", lambda back, own, loss: back(own, loss / 3))


def regulariser_in_every_micro_batch(patch: Patch, _: Training) -> None:
    def change(forward: Any, *words: Any) -> Any:
        return forward(*words[:-1], 1.0)

    wrap(patch, model_loss.MultiTaskLoss, "forward", change)


def denominators_count_rows(patch: Patch, _: Training) -> None:
    wrap(
        patch,
        RowTable,
        "loss_denominators",
        lambda _, own: own.targets.isfinite().sum(0).float(),
    )


def mean_of_means(patch: Patch, _: Training) -> None:
    def change(loss: Any, engine: Any, model: Any, sources: Any, batch: Any, *rest: Any) -> Any:
        return loss(engine, model, sources, batch, 3 * batch.loss_denominators(), *rest[1:])

    wrap(patch, train_step, "_micro_batch_loss", change)


def row_weights_ignored(patch: Patch, _: Training) -> None:
    def change(loss: Any, outputs: Tensor, targets: Tensor, weight: Tensor, *rest: Any) -> Any:
        return loss(outputs, targets, torch.ones_like(weight), *rest)

    wrap(patch, model_loss, "multitask_loss", change)


def unobserved_labels_are_zero(patch: Patch, _: Training) -> None:
    def change(loss: Any, outputs: Tensor, targets: Tensor, *rest: Any) -> Any:
        return loss(outputs, targets.nan_to_num(0.0), *rest)

    wrap(patch, model_loss, "multitask_loss", change)


def log_variances_of_other_tasks(patch: Patch, training: Training) -> None:
    with torch.no_grad():
        training.model.loss.log_variance.copy_(torch.tensor([0.1, 0.0, -0.2]))

    def change(loss: Any, *words: Any) -> Any:
        return loss(*words[:4], words[4].roll(1), *words[5:])

    wrap(patch, model_loss, "multitask_loss", change)


def wrong_pooling(patch: Patch, _: Training) -> None:
    wrap(patch, encoder_model, "pooled", lambda pool, *words: pool(*words[:-1], "mean"))


def a_strings_tokens_swapped(patch: Patch, _: Training) -> None:
    def change(take: Any, *words: Any) -> TokenTable:
        found = take(*words)
        values = found.values.clone()
        values[[1, 2, 3]] = values[[2, 3, 1]]
        return replace(found, values=values)

    wrap(patch, TokenTable, "take", change)


def positions_off_by_one(patch: Patch, _: Training) -> None:
    def change(embed: Any, base: Any, values: Tensor, packing: Any) -> Tensor:
        return embed(base, values, packing._replace(position=packing.position + 1))

    wrap(patch, encoder_model, "embed", change)


def padding_is_attended(patch: Patch, _: Training) -> None:
    def change(softmax: Any, q: Tensor, k: Tensor, group: Any) -> Tensor:
        return softmax(q, k, group._replace(padding=None))

    wrap(patch, attention, "_softmax", change)


def query_and_key_exchanged(patch: Patch, _: Training) -> None:
    def change(project: Any, casts: Any, x: Tensor, modules: Any) -> Tensor:
        if len(modules) == 3:
            modules = [modules[1], modules[0], modules[2]]
        return project(casts, x, modules)

    wrap(patch, packed, "project", change)


def residual_lost(patch: Patch, _: Training) -> None:
    def change(add_norm: Any, norm: Any, x: Tensor, residual: Tensor, **named: Any) -> Any:
        return add_norm(norm, x, 0.99 * residual, **named)

    wrap(patch, packed, "add_norm", change)


def strings_come_in_another_order(patch: Patch, _: Training) -> None:
    wrap(patch, encoder_model.StringEncoder, "encode", lambda run, *words: run(*words).flip(0))


def stale_casts_of_frozen_weights(patch: Patch, _: Training) -> None:
    def change(cast: Any, own: Any, originals: Any, dtype: Any) -> Tensor:
        return 1.001 * cast(own, originals, dtype)

    wrap(patch, projection.CastWeights, "__call__", change)


def lora_scale_doubled(patch: Patch, _: Training) -> None:
    def change(adapter: Any, module: Any) -> Any:
        found = adapter(module)
        return found._replace(scale=2 * found.scale)

    wrap(patch, projection, "_adapter_of", change)


def gradient_of_loras_a_lost(patch: Patch, _: Training) -> None:
    def change(adapter: Any, module: Any) -> Any:
        found = adapter(module)
        return found._replace(a=found.a.detach())

    wrap(patch, projection, "_adapter_of", change)


def a_row_sends_no_gradient_to_its_string(patch: Patch, _: Training) -> None:
    def change(forward: Any, *words: Any) -> Tensor:
        found = forward(*words)
        return torch.cat([found[:1].detach(), found[1:]])

    wrap(patch, StringAdapter, "forward", change)


def string_columns_exchanged(patch: Patch, _: Training) -> None:
    def change(forward: Any, own: Any, vectors: Any, inputs: Any) -> Tensor:
        ids = inputs.string_id.flip(1)
        return forward(own, vectors[::-1], replace(inputs, string_id=ids))

    wrap(patch, FusionNetwork, "forward", change)


def categories_of_other_rows(patch: Patch, _: Training) -> None:
    def change(forward: Any, own: Any, vectors: Any, inputs: Any) -> Tensor:
        return forward(own, vectors, replace(inputs, category=inputs.category.roll(1, 0)))

    wrap(patch, FusionNetwork, "forward", change)


def features_exchanged(patch: Patch, _: Training) -> None:
    wrap(patch, NumericGroups, "forward", lambda run, own, x, *rest: run(own, x.flip(1), *rest))


def no_clipping(patch: Patch, training: Training) -> None:
    patch.setattr(training.engine, "_clip", 1e9)


def the_last_gradient_stays(patch: Patch, training: Training) -> None:
    patch.setattr(training.engine._adam, "zero_grad", lambda **_: None)
    training.steps.take_once(2, training.rows)
    training.engine.load_state(training.state)


def a_weight_without_optimizer(patch: Patch, training: Training) -> None:
    weights = training.engine._adam.param_groups[1]["params"]
    patch.setitem(training.engine._adam.param_groups[1], "params", weights[:-1])


def labels_of_other_rows(patch: Patch, training: Training) -> None:
    patch.setattr(
        training, "rows", replace(training.rows, targets=training.rows.targets.roll(1, 0))
    )


def strings_of_other_rows(patch: Patch, training: Training) -> None:
    patch.setattr(
        training, "rows", replace(training.rows, string_id=training.rows.string_id.roll(1, 0))
    )


def rows_lose_their_weights(patch: Patch, _: Training) -> None:
    def change(take: Any, *words: Any) -> RowTable:
        found = take(*words)
        return replace(found, weight=torch.ones_like(found.weight))

    wrap(patch, RowTable, "take", change)


def rows_of_an_epoch_repeat(patch: Patch, _: Training) -> None:
    def change(steps: Any, *words: Any) -> Iterator[Tensor]:
        for positions in steps(*words):
            yield torch.cat([positions[:-1], positions[:1]])

    wrap(patch, StepPlan, "steps", change)


def a_step_comes_short(patch: Patch, _: Training) -> None:
    wrap(patch, StepPlan, "steps", lambda steps, *words: (each[1:] for each in steps(*words)))


SEEN_BY_THE_CERTIFICATE = [
    swapped_ids,
    one_string_has_anothers_vector,
    stale_vectors,
    earlier_micro_batches_lost,
    earlier_micro_batches_counted_twice,
    micro_batch_read_twice,
    micro_batch_dropped,
    last_row_dropped,
    loss_divided_by_micro_batches,
    regulariser_in_every_micro_batch,
    denominators_count_rows,
    mean_of_means,
    row_weights_ignored,
    unobserved_labels_are_zero,
    log_variances_of_other_tasks,
    wrong_pooling,
    a_strings_tokens_swapped,
    positions_off_by_one,
    padding_is_attended,
    query_and_key_exchanged,
    residual_lost,
    strings_come_in_another_order,
    stale_casts_of_frozen_weights,
    lora_scale_doubled,
    gradient_of_loras_a_lost,
    a_row_sends_no_gradient_to_its_string,
    string_columns_exchanged,
    categories_of_other_rows,
    features_exchanged,
    no_clipping,
    the_last_gradient_stays,
    a_weight_without_optimizer,
    labels_of_other_rows,
    strings_of_other_rows,
    rows_lose_their_weights,
]
SEEN_BY_THE_COUNT = [
    (swapped_ids, "its own strings"),
    (micro_batch_read_twice, "its own strings"),
    (micro_batch_dropped, "rows were read of"),
    (last_row_dropped, "rows were read of"),
    (rows_of_an_epoch_repeat, "each once"),
    (a_step_comes_short, "rows came of"),
]
