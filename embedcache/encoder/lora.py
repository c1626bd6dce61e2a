"""Low-rank adapters through PEFT: added in place, saved and loaded in PEFT's own format.

Fresh adapters have B = 0, so an adapted encoder gives the base encoder's vectors until it is
trained.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from embedcache.config.encoder import LoraConfig
from embedcache.encoder.dropout import Dropout
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.prefix import base_of, check_layers
from embedcache.errors import EncoderError

# what architectures call the projections of their attention to queries, keys and values
PROJECTIONS = (
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa-v2, hence polyBERT
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT, ESM
    ("q_proj", "k_proj", "v_proj"),  # LLaMA and its like
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT, XLM
    ("q", "k", "v"),  # MPNet
    ("Wqkv",),  # ModernBERT
    ("query_key_value",),  # GPT-NeoX, BLOOM
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2
    ("in_proj",),  # the first DeBERTa
)


def add_lora(encoder: StringEncoder, config: LoraConfig) -> None:
    """Put adapters on the encoder's attention projections; only they are trainable afterwards.

    A's initial values come from torch's global generator. Raises EncoderError where the encoder has
    not the modules or layers that the config names.
    """
    wanted = _peft_config(encoder, config)
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 by the old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        encoder.model = peft.get_peft_model(encoder.model, wanted)
    encoder.first_layer = config.first_layer
    for module in encoder.model.modules():
        if isinstance(module, LoraLayer):
            dropouts = {name: Dropout(config.dropout) for name in module.lora_dropout}
            module.lora_dropout.update(dropouts)
    encoder.train(encoder.training)


def _peft_config(encoder: StringEncoder, config: LoraConfig) -> peft.LoraConfig:
    """Return the adapters in PEFT's words, checked against the encoder."""
    linear = _linear_layers(encoder.model)
    targets = _targets(config, type(base_of(encoder.model)).__name__, linear)
    wanted = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT says int, and divides by r
        lora_dropout=config.dropout,
        target_modules=targets,
        # how GPT-2's layers keep their weights
        fan_in_fan_out=all(linear[target] is Conv1D for target in targets),
        bias="none",
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
    )
    if config.first_layer:
        num_layers = check_layers(encoder.model, config.first_layer)
        wanted.layers_to_transform = list(range(config.first_layer, num_layers))
        wanted.layers_pattern = ["layer", "layers"]
    return wanted


def _linear_layers(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the classes of the layers that can be adapted by their names, in the model's order."""
    return {
        name.rsplit(".", 1)[-1]: type(module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }


def _targets(config: LoraConfig, kind: str, linear: Mapping[str, object]) -> list[str]:
    """Return the names of the layers that get an adapter in a model of this kind.

    Raises EncoderError where it has not those that the config names, or none that are known.
    """
    has = f"it has {', '.join(linear) or 'none'}"
    if config.target_modules is None:
        known = [list(names) for names in PROJECTIONS if linear.keys() >= set(names)]
        if not known:
            raise EncoderError(
                f"which linear layers of {kind} are its attention's is not known here; name those"
                f" that are to be adapted in encoder.lora.target_modules: {has}"
            )
        return known[0]
    missing = [target for target in config.target_modules if target not in linear]
    if missing:
        raise EncoderError(
            f"encoder.lora.target_modules names {', '.join(missing)}, which is no linear layer of"
            f" {kind}; {has}. Unset, it is the attention's projections"
        )
    return list(config.target_modules)


def save_adapter(encoder: StringEncoder, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as PEFT does.

    `peft.PeftModel.from_pretrained` reads them on the plain Hugging Face model.
    """
    assert isinstance(encoder.model, peft.PeftModel)
    encoder.model.save_pretrained(str(folder), safe_serialization=True)


def load_adapter(encoder: StringEncoder, folder: Path) -> None:
    """Load what `save_adapter` wrote into an encoder with adapters of the same shape.

    Raises EncoderError where there is no adapter, or one that does not fit.
    """
    assert isinstance(encoder.model, peft.PeftModel)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise EncoderError(f"there is no adapter in {folder}: adapter_model.safetensors is missing")
    try:
        weights = load_file(file)
        broken = [name for name, value in weights.items() if not value.isfinite().all()]
        if broken:
            raise EncoderError(f"the adapter in {folder} holds NaN or infinity in {broken[0]}")
        outcome: Any = set_peft_model_state_dict(encoder.model, weights)
    except (SafetensorError, RuntimeError) as error:  # damaged, or of another shape
        raise EncoderError(f"the adapter in {folder} cannot be loaded: {error!s:.300}") from None
    if outcome.unexpected_keys:
        raise EncoderError(
            f"the adapter in {folder} does not fit this encoder: it has"
            f" {outcome.unexpected_keys[:3]}, which the encoder lacks"
        )
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing:
        raise EncoderError(
            f"the adapter in {folder} does not fit this encoder: it lacks {missing[:3]}; r,"
            " target_modules and use_dora must be its own"
        )
