"""The gradients of some rows' loss, as the equations stand, row by row.

This is the other side of the certificate, so it shares nothing with what trains but the weights, by
name, the rows, and the token ids. A string is one forward pass of Hugging Face's model with PEFT's
adapters, alone and unpadded. Adapters, input projection, `nn.TransformerEncoderLayer` with its
queries and keys, heads and losses are written out on whole rows in functions of torch: no product
is split, nothing is computed once for rows that have it in common, cached, cast beforehand or cut
into passes. It is slow, and it has no dropout.

The first rows have an encoding of their own each, the others share one per string, whose gradients
autograd adds up. So one gradient holds both: the encoder run for every row, and the chain rule by
which rows may share a run.

Axes: B rows, E encoder width, L tokens, D fusion width, M tokens of a row, T tasks, W the width of
one part of the input projection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from embedcache.cache.layout import Layout
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.scaling import Scaling
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import Recipe
from fusionnet.rows.tensors import RowTable
from fusionnet.train.proof.embedded import Activation, Getter, embedded_features
from fusionnet.train.proof.layers import (
    head_outputs,
    hidden_layer,
    layers_of,
    linear_map,
    normed,
    tokens_fused,
    transformer_layer,
)
from fusionnet.train.proof.losses import regularisers, rows_loss

Weights = Mapping[str, Tensor]
# of a layer's root mean square, to a ReLU's zero: fp32 rounds 100 times finer
_KINK = 1e-4


@dataclass(frozen=True)
class Subject:
    """What is recomputed: the model's weights, and what its columns are."""

    model: TrainableModel
    recipe: Recipe
    layout: Layout
    scaling: Scaling
    encoder_of: tuple[str, ...]  # of each string column
    tokens: tuple[TokenTable, ...]
    vectors: tuple[Float[Tensor, "_S _E"], ...] | None  # where none is encoded
    features: tuple[Float[Tensor, "_S _K"], ...]  # raw, of each string column; NaN is missing


@dataclass(frozen=True)
class Sample:
    """One rank's rows of a step, micro-batch by micro-batch, and what it must know of the others.

    Micro-batches matter to losses of `reduction: batch` alone.
    """

    parts: Sequence[RowTable]
    own_rows: int  # this many rows have an encoding of their own
    denominators: Float[Tensor, " T"]  # over all rows of all ranks
    share: float  # of the terms that no row decides


def plain_gradients(
    subject: Subject,
    sample: Sample,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    jitter: int | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of each trained parameter, by name, of these rows' share of the loss.

    Weights are read in `dtype`, and products computed in `autocast`, where given. With a seed as
    `jitter` each weight is off by up to one last place of fp32, as rounding may take what is
    computed of it.
    """
    weights = {
        name: value.detach().to(dtype).requires_grad_(value.requires_grad)
        for name, value in subject.model.named_parameters()
    }
    if jitter is not None:
        weights = _jittered(weights, jitter)
    reader = _StringReader(subject, weights, sample.own_rows)
    s = weights["loss.log_variance"]
    total = sample.share * regularisers(subject.recipe, s, sample.denominators)
    for rows in sample.parts:
        with torch.autocast(s.device.type, autocast, enabled=autocast is not None):
            vectors = [reader.vectors_of(column, rows) for column in range(len(subject.tokens))]
            members = outputs_of(subject, weights, vectors, rows)
        for outputs in members:
            wide = torch.promote_types(outputs.dtype, torch.float32)
            loss = rows_loss(
                subject.recipe, subject.scaling, s, outputs.to(wide), rows, sample.denominators
            )
            total = total + loss / len(members)
    trained = {name: value for name, value in weights.items() if value.requires_grad}
    found = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
    return dict(zip(trained, found, strict=True))


def _jittered(weights: Weights, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in weights.items():
        off = 2 * torch.rand(value.shape, generator=generator).to(value) - 1
        moved = value.detach() * (1 + torch.finfo(torch.float32).eps * off)
        found[name] = moved.requires_grad_(value.requires_grad)
    return found


@torch.no_grad()
def far_from_kinks(subject: Subject, rows: RowTable) -> Bool[Tensor, " B"]:
    """Return which rows have no ReLU so near zero that rounding decides which side it is on.

    Such a row has two gradients, a whole unit apart, and a sum of many rows shows it.
    """
    weights = {name: value.detach() for name, value in subject.model.named_parameters()}
    reader = _StringReader(subject, weights, own_rows=0)
    vectors = [reader.vectors_of(column, rows) for column in range(len(subject.tokens))]
    distances: list[Tensor] = []

    def watched(x: Float[Tensor, "B _"]) -> Float[Tensor, "B _"]:
        size = x.square().mean(dim=1, keepdim=True).sqrt()
        distances.append((x.abs() / size.clamp_min(torch.finfo(x.dtype).tiny)).amin(1))
        return F.relu(x)

    outputs_of(subject, weights, vectors, rows, relu=watched)
    return torch.stack(distances).amin(0) > _KINK


class _StringReader:
    """Vectors of rows: one encoding for each of the first rows, then one for each string."""

    def __init__(self, subject: Subject, weights: Weights, own_rows: int) -> None:
        self._subject, self._weights = subject, weights
        self._left = [own_rows for _ in subject.tokens]
        self._shared: dict[tuple[int, int], Tensor] = {}

    def vectors_of(self, column: int, rows: RowTable) -> Float[Tensor, "B E"]:
        """Return one vector per row of a string column."""
        width = self._subject.layout.strings[column].width
        vectors = [rows.weight.new_zeros(0, width)]
        for string in rows.string_id[:, column].tolist():
            if self._left[column] > 0:
                self._left[column] -= 1
                vectors.append(self._encoded(column, string))
                continue
            if (column, string) not in self._shared:
                self._shared[column, string] = self._encoded(column, string)
            vectors.append(self._shared[column, string])
        return torch.cat(vectors)

    def _encoded(self, column: int, string: int) -> Float[Tensor, "1 E"]:
        """Return one string's vector by one forward pass."""
        subject = self._subject
        if subject.vectors is not None:
            return subject.vectors[column][string : string + 1]
        name, tokens = subject.encoder_of[column], subject.tokens[column]
        begin, end = (int(edge) for edge in tokens.offsets[string : string + 2])
        ids = tokens.values[begin:end].long().unsqueeze(0)  # [1, L]
        encoder = subject.model.encoders[name]
        assert isinstance(encoder, StringEncoder)
        prefix = f"encoders.{name}.model."
        named = self._weights.items()
        own = {key.removeprefix(prefix): each for key, each in named if key.startswith(prefix)}
        words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        hidden = functional_call(encoder.model, own, (), words, tie_weights=False)
        hidden = hidden.last_hidden_state  # [1, L, E]
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return hidden[:, 0] if encoder.pooling == "cls" else hidden.mean(1)


def outputs_of(
    subject: Subject,
    weights: Weights,
    vectors: Sequence[Float[Tensor, "B _"]],
    rows: RowTable,
    relu: Activation = F.relu,
) -> list[Float[Tensor, "B O"]]:
    """Return the heads' outputs, member by member.

    `vectors` has one vector per row for each string column.
    """
    members = range(subject.recipe.model.members)
    return [_outputs_of_member(subject, weights, vectors, rows, relu, each) for each in members]


def _outputs_of_member(
    subject: Subject,
    weights: Weights,
    vectors: Sequence[Float[Tensor, "B _"]],
    rows: RowTable,
    relu: Activation,
    member: int,
) -> Float[Tensor, "B O"]:
    config = subject.recipe.model

    def of(name: str) -> Tensor:
        value = weights[f"network.{name}"]
        is_own = config.members > 1 and name.startswith(("heads.", "fusion.members."))
        return value[member] if is_own else value

    def split(number: int, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if config.members == 1 or number != config.num_layers - config.num_own_layers:
            return x
        return x * of("fusion.members.weight")

    numeric = rows.numeric.to(of("projection.weight").dtype)
    parts = [
        _adapted(subject, of, column, each) for column, each in enumerate(vectors) if each.shape[1]
    ]
    parts += [
        _described(subject, of, column, rows)
        for column, spec in enumerate(subject.layout.strings)
        if spec.features
    ]
    embedded = embedded_features(config, subject.scaling, of, numeric, relu)
    for number, features in enumerate(_feature_groups(subject)):
        names = (f"numeric.{number}.0", f"numeric.{number}.1")
        hidden = hidden_layer(of, *names, embedded[:, features].flatten(1), relu)
        parts.append(hidden_layer(of, f"numeric.{number}.4", f"numeric.{number}.5", hidden, relu))
    for number, code in enumerate(rows.category.unbind(1)):
        parts.append(of(f"categories.{number}.weight")[code])
    if config.fusion == "modality":
        fused = tokens_fused(of, parts, config.num_heads, config.num_layers, split)
    else:
        x = F.linear(torch.cat(parts, dim=1), of("projection.weight"), of("projection.bias"))
        for number in range(config.num_layers):
            name, x = f"fusion.layers.{number}", split(number, x)
            if config.fusion == "mlp":
                inner = F.gelu(linear_map(of, f"{name}.linear1", x))
                x = normed(of, f"{name}.norm", x + linear_map(of, f"{name}.linear2", inner))
            else:  # a sequence of length 1
                x = transformer_layer(of, name, config.num_heads, x.unsqueeze(1)).squeeze(1)
        fused = normed(of, "fusion.norm", split(config.num_layers, x))
    columns = [
        head_outputs(of, layers_of(weights, f"network.heads.{task.name}."), fused, relu)
        for task in subject.recipe.tasks
    ]
    outputs = torch.cat(columns, dim=1)
    if "network.linear_skip.weight" in weights:
        outputs = outputs + F.linear(numeric, of("linear_skip.weight"))
    return outputs


def _adapted(
    subject: Subject, of: Getter, column: int, vectors: Float[Tensor, "B _"]
) -> Float[Tensor, "B W"]:
    """Return what a string column's adapter makes of one vector per row."""
    name = subject.layout.strings[column].name
    x = vectors.to(of("projection.weight").dtype)
    scaling = subject.scaling.vectors.get(name)
    if scaling is not None and subject.recipe.model.standardize_vectors:
        mean, std = (torch.tensor(each).to(x) for each in (scaling.mean, scaling.std))
        x = (x - mean) / std
    for half in ("first", "second"):
        x = hidden_layer(of, f"adapters.{name}.{half}.0", f"adapters.{name}.{half}.1", x, F.gelu)
    return x


def _described(subject: Subject, of: Getter, column: int, rows: RowTable) -> Float[Tensor, "B W"]:
    """Return what the adapter of a string column's features makes of those of each row's string."""
    name = subject.layout.strings[column].name
    scaling = subject.scaling.string_features[name]
    raw = subject.features[column].double()[rows.string_id[:, column].cpu()]
    middle, scale = (torch.tensor(each).double() for each in (scaling.center, scaling.scale))
    known = torch.where(raw.isnan(), middle, raw)
    z = scale * (known - middle)
    x = (z / torch.sqrt(1 + z * z / 9)).to(of("projection.weight"))
    for half in ("first", "second"):
        place = f"feature_adapters.{name}.{half}"
        x = hidden_layer(of, f"{place}.0", f"{place}.1", x, F.gelu)
    return x


def _feature_groups(subject: Subject) -> list[list[int]]:
    """Return the numbers of the features that each encoder of numbers reads."""
    columns = subject.layout.numeric
    if subject.recipe.model.fusion != "modality":
        return [list(range(len(columns)))] if columns else []
    names = list(dict.fromkeys(column.feature_group for column in columns))
    return [
        [number for number, column in enumerate(columns) if column.feature_group == name]
        for name in names
    ]
