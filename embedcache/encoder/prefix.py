"""Where LoRA adapts the top layers alone, everything below them is frozen: the hidden states that
enter the first adapted layer are computed once and cached.

A Hugging Face encoder of the usual build (`embeddings`, then `encoder.layer`) is run in part by
lending it fewer layers for the time of one call, and by lending it embeddings that are already
known. Its parameters keep their names, so checkpoints, PEFT and optimizers see the whole model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import peft
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.errors import EncoderError


class _Known(nn.Module):
    """Stands for the embeddings while known hidden states enter the first layer that is run."""

    def __init__(self, states: Float[Tensor, "S L H"]) -> None:
        super().__init__()
        self._states = states

    def forward(self, *arguments: object, **keywords: object) -> Float[Tensor, "S L H"]:
        return self._states


@contextmanager
def some_layers(
    model: nn.Module, first: int, stop: int | None, states: Float[Tensor, "S L H"] | None = None
) -> Iterator[None]:
    """Let the model consist of layers `first` to `stop` while the context lasts; `states` enter the
    first of them instead of the embeddings.
    """
    base = base_of(model)
    layers, embeddings = base.encoder.layer, base.embeddings
    base.encoder.layer = layers[first:stop]
    if states is not None:
        base.embeddings = _Known(states)
    try:
        yield
    finally:
        base.encoder.layer, base.embeddings = layers, embeddings


def check_layers(model: nn.Module, first_layer: int) -> int:
    """Return the encoder's number of layers; raises EncoderError where `first_layer` is none of
    them, or where the model cannot be run in part.
    """
    base = base_of(model)
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(
        getattr(base, "embeddings", None), nn.Module
    ):
        raise EncoderError(
            f"{type(base).__name__} has no 'embeddings' and 'encoder.layer', so its layers cannot"
            " be told apart: set encoder.lora.first_layer to 0"
        )
    if not 0 <= first_layer < len(layers):
        raise EncoderError(
            f"encoder.lora.first_layer is {first_layer}, the encoder has layers 0 to"
            f" {len(layers) - 1}"
        )
    if first_layer and (
        getattr(base.encoder, "conv", None) is not None or getattr(base, "z_steps", 0) > 1
    ):
        raise EncoderError(
            f"{type(base).__name__} joins its lowest layer to others (convolution, z_steps): set"
            " encoder.lora.first_layer to 0"
        )
    return len(layers)


def base_of(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside PEFT's, or the model itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model
