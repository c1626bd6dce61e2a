"""Running some layers of an encoder alone: where LoRA adapts the top ones, all below is frozen, and
the hidden states that enter the first adapted layer are computed once and cached.

A Hugging Face encoder (`embeddings`, then a list of layers, then perhaps a norm) is run in part by
lending it fewer layers for the time of one call, and states that were computed before in place of
its embeddings. Its parameters keep their names, so checkpoints, PEFT and optimizers see the whole
model. What a model does beside that would be done twice, or left out: so one that is to be run in
part is tried first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import peft
import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.encoder.description import UNREADABLE
from embedcache.errors import EncoderError

# The module that holds the list of layers, and what it calls it.
_LISTS = (
    ("encoder", "layer"),  # BERT, RoBERTa, DeBERTa, ELECTRA, MPNet, ESM
    ("transformer", "layer"),  # DistilBERT
    ("", "layers"),  # ModernBERT
)
# The norm behind the last layer, which is no part of what enters another.
_NORMS = (("", "final_norm"), ("encoder", "emb_layer_norm_after"))  # ModernBERT, ESM
_PROBE = 17  # tokens of the string that a model is tried on
_EQUAL = 1e-4  # of a state's largest component: fp32 rounds to 1e-6


class _Attribute(NamedTuple):
    """A module of a model as it is held there, so that another can be lent in its place."""

    holder: Any
    name: str

    @property
    def value(self) -> Any:
        return getattr(self.holder, self.name)


@contextmanager
def some_layers(
    model: nn.Module,
    first_layer: int,
    stop: int | None,
    states: Float[Tensor, "S L E"] | None = None,
) -> Iterator[None]:
    """Let the model consist of layers `first_layer` to `stop` (not included; None: all above).

    `states`, where given, enter the first of them instead of the embeddings. The whole model is
    back when the context ends.
    """
    base = base_of(model)
    layers, norm = _layers_of(base), _found(base, _NORMS)
    assert layers is not None
    lent: dict[_Attribute, nn.Module] = {layers: layers.value[first_layer:stop]}
    if stop is not None and norm is not None:
        lent[norm] = nn.Identity()
    if states is not None:
        lent[_Attribute(base, "embeddings")] = _GivenStates(states)
    own = {attribute: attribute.value for attribute in lent}
    for attribute, module in lent.items():
        setattr(*attribute, module)
    try:
        yield
    finally:
        for attribute, module in own.items():
            setattr(*attribute, module)


def _layers_of(base: nn.Module) -> _Attribute | None:
    """Return where the model holds its layers, None where it cannot be run in part."""
    found = _found(base, _LISTS)
    if found is None or not isinstance(found.value, nn.ModuleList):
        return None
    return found if isinstance(getattr(base, "embeddings", None), nn.Module) else None


def _found(base: nn.Module, paths: tuple[tuple[str, str], ...]) -> _Attribute | None:
    """Return the first of these, each a module's path and one of its attributes, that there is."""
    for path, name in paths:
        holder = getattr(base, path, None) if path else base
        if isinstance(getattr(holder, name, None), nn.Module):
            return _Attribute(holder, name)
    return None


class _GivenStates(nn.Module):
    """Stands for the embeddings while given hidden states enter the first layer that is run."""

    def __init__(self, states: Float[Tensor, "S L E"]) -> None:
        super().__init__()
        self._states = states

    def forward(self, *arguments: object, **keywords: object) -> Float[Tensor, "S L E"]:
        """Return the states, whatever tokens come."""
        return self._states


def check_layers(model: nn.Module, first_layer: int) -> int:
    """Return the encoder's number of layers.

    Raises EncoderError where `first_layer` is none of them, or the model cannot be run in part.
    """
    base: Any = base_of(model)
    kind = type(base).__name__
    num_groups = getattr(base.config, "num_hidden_groups", None)
    if num_groups is not None:  # ALBERT
        raise EncoderError(
            f"{kind} passes its states {base.config.num_hidden_layers} times through"
            f" {'one layer' if num_groups == 1 else f'{num_groups} groups of layers'}, and an"
            " adapter is in all passes, so that no lower one is frozen: set"
            " encoder.lora.first_layer to 0 (and encoder.mode to per_step)"
        )
    found = _layers_of(base)
    if found is None:
        raise EncoderError(
            f"{kind} has no 'embeddings' and list of layers that are known here, so its layers"
            " cannot be told apart: set encoder.lora.first_layer to 0"
        )
    num_layers = len(found.value)
    if not 0 <= first_layer < num_layers:
        raise EncoderError(
            f"encoder.lora.first_layer is {first_layer}, the encoder has layers 0 to"
            f" {num_layers - 1}"
        )
    has_convolution = getattr(found.holder, "conv", None) is not None
    if first_layer and (has_convolution or getattr(base, "z_steps", 0) > 1):
        raise EncoderError(
            f"{kind} joins its lowest layer to others (convolution, z_steps): set"
            " encoder.lora.first_layer to 0"
        )
    if first_layer and not _runs_in_part(base, first_layer):
        raise EncoderError(
            f"{kind} gives other states where its layers from {first_layer} on are run alone, since"
            " it does more than embed and pass layer after layer: set encoder.lora.first_layer to 0"
        )
    return num_layers


@torch.no_grad()
def _runs_in_part(base: Any, first_layer: int) -> bool:
    """Return whether the upper layers make of the lower ones' states what the whole model does."""
    num_ids, length = base.config.vocab_size, min(_PROBE, base.config.max_position_embeddings // 2)
    ids = (torch.arange(1, 1 + length, device=base.device) * 7919 % num_ids).unsqueeze(0)
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = base(**words).last_hidden_state
    try:
        with some_layers(base, 0, first_layer):
            states = base(**words).last_hidden_state
        with some_layers(base, first_layer, None, states):
            again = base(**words).last_hidden_state
    except UNREADABLE:
        return False
    return bool((again - whole).abs().max() <= _EQUAL * whole.abs().max())


def base_of(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside PEFT's, or the model itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model
