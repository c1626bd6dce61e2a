"""What an encoder's config.json may say: sizes and names, nothing that fetches or chooses code.

transformers trusts the file: a key of it can name an attention kernel on the hub, a quantiser or
a class, and any size in it is allocated. So the keys that could are refused by name, sizes are
bounded by what the weights hold, and the architecture must be one that transformers itself brings.
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel
from transformers.activations import ACT2FN

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.folder import config_file, nested_items, read_mapping
from embedcache.errors import EncoderError

MOST_LAYERS, LARGEST_SIZE = 1024, 2**31 - 1  # of any encoder
# `*_implementation` name kernels, which may be a hub's; the others name classes, files, kernels,
# quantisers, process groups or layers with settings of their own.
_SUFFIXES = ("_implementation", "_implementation_internal")
_KEYS = {
    "auto_map",
    "configuration_files",
    "custom_pipelines",
    "compression_config",
    "distributed_config",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "use_kernels",
    "per_layer_config",
    "quantization_config",
    "transformers_weights",
}
# ours to say, or of heads that are not built
_NOT_READ = {"model_type", "dtype", "torch_dtype", "name_or_path", "_name_or_path"} | {
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
}
# where a model without these would still be a model, but no encoder of ours
_NEEDED = ("hidden_size", "max_position_embeddings", "vocab_size")
_SIZES = ("size", "dim", "width", "heads", "position", "embed", "hidden")
_REPEATED = ("layer", "group")
_LARGEST_KEPT = 2  # parameters to numbers in the files, which hold what is tied once
# What transformers and torch raise on values of a wrong kind while they build an architecture or a
# tokenizer: most of them have no check of their own.
UNREADABLE = (
    StrictDataclassError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Description(BaseModel):
    """The keys of config.json that most encoders have; others are judged by transformers."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model_type: str
    vocab_size: int | None = Field(default=None, ge=1)
    hidden_size: int | None = Field(default=None, ge=1)
    num_hidden_layers: int | None = Field(default=None, ge=1)
    num_attention_heads: int | None = Field(default=None, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    max_position_embeddings: int | None = Field(default=None, ge=1)
    type_vocab_size: int | None = Field(default=None, ge=0)
    pad_token_id: int | None = Field(default=None, ge=0)
    hidden_act: str | None = None
    layer_norm_eps: float | None = Field(default=None, gt=0, lt=1)
    hidden_dropout_prob: float | None = Field(default=None, ge=0, lt=1)
    attention_probs_dropout_prob: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _values_fit(self) -> "Description":
        if self.model_type not in CONFIG_MAPPING:
            raise ValueError(f"model_type '{self.model_type:.60}' is none that transformers brings")
        if self.hidden_act is not None and self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act '{self.hidden_act:.60}' is no activation function")
        padding, size = self.pad_token_id, self.vocab_size
        if padding is not None and size is not None and padding >= size:
            raise ValueError(f"pad_token_id {padding} is no token: vocab_size is {size}")
        return self


def described_config(config: EncoderConfig) -> Any:
    """Return the architecture that the encoder's config.json describes, in transformers' words.

    Raises EncoderError, naming the key, for what is damaged or could fetch or choose code.
    """
    file = config_file(config)
    values = read_mapping(file)
    refuse_keys(file, values, _KEYS, _SUFFIXES)
    try:
        model_type = Description.model_validate(values).model_type
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise EncoderError(
            f"{file} does not describe an encoder:\n" + "\n".join(f"  - {line}" for line in lines)
        ) from None
    _refuse_sizes(file, values, MOST_LAYERS, LARGEST_SIZE)
    own = {key: value for key, value in values.items() if key not in _NOT_READ}
    try:
        described: Any = AutoConfig.for_model(model_type, **own, dtype="float32")
    except UNREADABLE as error:
        raise _unbuildable(file, error) from None
    lacking = [name for name in _NEEDED if type(getattr(described, name, None)) is not int]
    if lacking or described.is_encoder_decoder:
        is_both = described.is_encoder_decoder
        why = "is encoder and decoder" if is_both else f"has no {', '.join(lacking)}"
        raise EncoderError(f"{file}: model_type '{model_type}' is no text encoder: it {why}")
    return described


def empty_model(
    config: EncoderConfig, described: Any, weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    """Return the described model without memory for its weights.

    Raises EncoderError where it cannot be built, or where it would be larger than the weights.
    """
    file = config_file(config)
    num_held = sum(tensor.numel() for tensor in weights.values())
    is_shared = getattr(described, "num_hidden_groups", None) is not None  # ALBERT's layers
    _refuse_sizes(file, read_mapping(file), MOST_LAYERS if is_shared else len(weights), num_held)
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(described, trust_remote_code=False)
    except UNREADABLE as error:
        raise _unbuildable(file, error) from None
    num_described = sum(parameter.numel() for parameter in model.parameters())
    if num_described > _LARGEST_KEPT * num_held:
        raise EncoderError(
            f"{file} describes an encoder of {num_described:,} parameters, its weights hold"
            f" {num_held:,}: they do not belong to each other"
        )
    return model


def refuse_keys(
    file: Path, values: Mapping[str, Any], keys: Set[str], suffixes: tuple[str, ...] = ()
) -> None:
    """Raise EncoderError for a key, at any depth, by which a file would fetch or choose code."""
    for path, key, value in nested_items(values):
        # null is no choice
        if value is not None and (key in keys or (suffixes and key.endswith(suffixes))):
            raise EncoderError(
                f"{file}: '{path}' could fetch or choose code, so it is refused; take the key out"
                " of the file if the encoder is right without it"
            )


def _refuse_sizes(
    file: Path, values: Mapping[str, Any], most_layers: int, largest_size: int
) -> None:
    """Raise EncoderError for more layers or a larger size than these, at any depth."""
    for path, key, value in nested_items(values):
        is_repeated = any(part in key for part in _REPEATED)
        bound = most_layers if is_repeated else largest_size
        is_size = is_repeated or any(part in key for part in _SIZES)
        if is_size and type(value) is int and value > bound:
            raise EncoderError(
                f"{file}: '{path}' is {value:.4g}, more than the {bound:,} that the encoder's"
                " weights can be for"
            )


def _explain(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    got = f" (got {problem['input']!r:.60})" if where else ""
    return f"{where or 'values'}: {what}{got}"


def _unbuildable(file: Path, error: Exception) -> EncoderError:
    lines = " ".join(str(error).split()) or "no reason given"
    return EncoderError(
        f"{file} does not describe an encoder that can be built: {type(error).__name__}:"
        f" {lines:.300}"
    )
