"""Running some layers of an encoder alone: where LoRA adapts the top ones, all below is frozen, and
the hidden states that enter the first adapted layer are computed once and cached.

A Hugging Face encoder of the usual build (`embeddings`, then `encoder.layer`) is run in part by
lending it fewer layers for the time of one call, and states that were computed before in place of
its embeddings. Its parameters keep their names, so checkpoints, PEFT and optimizers see the whole
model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.errors import EncoderError


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
    base: Any = base_of(model)
    layers = base.encoder.layer
    embeddings = base.embeddings
    base.encoder.layer = layers[first_layer:stop]
    if states is not None:
        base.embeddings = _GivenStates(states)
    try:
        yield
    finally:
        base.encoder.layer = layers
        base.embeddings = embeddings


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
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    embeddings = getattr(base, "embeddings", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(embeddings, nn.Module):
        raise EncoderError(
            f"{type(base).__name__} has no 'embeddings' and 'encoder.layer', so its layers cannot"
            " be told apart: set encoder.lora.first_layer to 0"
        )
    if not 0 <= first_layer < len(layers):
        raise EncoderError(
            f"encoder.lora.first_layer is {first_layer}, the encoder has layers 0 to"
            f" {len(layers) - 1}"
        )
    has_convolution = getattr(base.encoder, "conv", None) is not None
    if first_layer and (has_convolution or getattr(base, "z_steps", 0) > 1):
        raise EncoderError(
            f"{type(base).__name__} joins its lowest layer to others (convolution, z_steps): set"
            " encoder.lora.first_layer to 0"
        )
    return len(layers)


def base_of(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside PEFT's, or the model itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model
