"""Loading an encoder, and telling it from others: safetensors alone, no code from the folder.

transformers is handed a checked description and tensors that were read here; it opens no file of
the folder. Every weight of the encoder must be there, of its shape and finite: transformers would
draw the others at random, and every vector would be wrong without a word.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.description import UNREADABLE, described_config, empty_model
from embedcache.encoder.folder import ADAPTER, config_file, encoder_file, weight_files
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenizer_digest
from embedcache.encoder.tokens import TokenTable, offsets_of
from embedcache.errors import EncoderError
from embedcache.files import file_digest

DTYPE = "float32"  # of embeddings
MOST_NAMED = 4  # tensors in one message
# In no vector: a task's answer from the first token, which checkpoints of other tasks lack.
_POOLER = "pooler."
_PROBES = (5, 17)  # tokens of a short and a longer string
# Of a vector's largest component: fp32 rounds to 1e-6, a convolution over padding gives 1e-2.
_MIXED = 1e-4
_EQUAL = 1e-6  # of the same: a decoder's are equal, fresh encoders' first tokens differ by 1e-3


def load_encoder(config: EncoderConfig) -> StringEncoder:
    """Return the encoder of a hub id or local folder, frozen and in evaluation mode.

    Raises EncoderError if it cannot be loaded safely and completely.
    """
    weights = _read_weights(config)
    described = described_config(config)
    empty: Any = empty_model(config, described, weights)
    with _quiet():
        try:
            model, report = type(empty).from_pretrained(
                None,
                config=described,
                state_dict=weights,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are reported, by name
                output_loading_info=True,
            )
        except (RuntimeError, ValueError) as error:
            raise EncoderError(f"the encoder {config.source} cannot be loaded: {error}") from None
    _refuse_wrong(config, empty, weights, report)
    _refuse_non_finite(config, model)
    model.name_or_path = model.config.name_or_path = config.source  # adapters say whose they are
    encoder = StringEncoder(model.requires_grad_(False), config.pooling).eval()
    with _quiet():
        _refuse_mixing(config, encoder)
        _refuse_blind_token(config, encoder)
    return encoder


def _read_weights(config: EncoderConfig) -> dict[str, Tensor]:
    """Return the tensors of the encoder's safetensors files by name."""
    files = weight_files(config)
    if encoder_file(config, ADAPTER) is not None:
        raise EncoderError(
            f"{config.source} holds an adapter ({ADAPTER}) beside the weights, which would not be"
            " applied; merge it into the weights (PEFT's merge_and_unload), or take it away"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            found = load_file(file)
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"the encoder {config.source} cannot be loaded: {error}") from None
        twice = sorted(weights.keys() & found.keys())
        if twice:
            raise EncoderError(f"{file} holds {twice[0]}, which another weight file holds too")
        weights |= found
    for name, tensor in weights.items():
        if name.endswith((".weight", ".bias")) and not tensor.is_floating_point():
            raise EncoderError(
                f"{name} of {config.source} holds {tensor.dtype}: quantised weights are not read"
            )
    return weights


def _refuse_wrong(
    config: EncoderConfig, model: Any, weights: Mapping[str, Tensor], report: Mapping[str, Any]
) -> None:
    """Raise EncoderError for tensors that are missing, of another shape, or of no part of it."""
    wrong = [
        f"{name} is missing"
        for name in sorted(report["missing_keys"])
        if not name.startswith(_POOLER)
    ]
    wrong += [
        f"{name} is {list(found)}, expected {list(wanted)}"
        for name, found, wanted in sorted(report["mismatched_keys"])
    ]
    prefix = f"{model.base_model_prefix}."
    is_task_model = any(name.startswith(prefix) for name in weights)
    wrong += [
        f"{name} is no part of it"
        for name in sorted(report["unexpected_keys"])
        # beside the encoder's prefix, or where it has none under `pooler`, there are heads of tasks
        if (name.startswith(prefix) if is_task_model else not name.startswith(_POOLER))
    ]
    wrong += [str(message) for message in report["error_msgs"]]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise EncoderError(
            f"the weights of {config.source} are not those of the encoder that its config.json"
            f" describes: {'; '.join(wrong[:MOST_NAMED])}{more}; fetch it again"
        )


def _refuse_non_finite(config: EncoderConfig, model: nn.Module) -> None:
    """Raise EncoderError naming the weights that hold NaN or infinity."""
    broken = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if broken:
        raise EncoderError(
            f"{len(broken)} weights of {config.source} hold NaN or infinity, the first is"
            f" {broken[0]}; fetch it again"
        )


@torch.no_grad()
def _refuse_mixing(config: EncoderConfig, encoder: StringEncoder) -> None:
    """Raise EncoderError where a string's vector depends on the padding beside it.

    In some architectures it does (FNet's Fourier transform, ConvBERT's convolutions, YOSO's random
    hashes): a string would have another vector in another table.
    """
    lengths = [min(length, encoder.max_length) for length in _PROBES]
    tokens = _probe_tokens(encoder, lengths)
    if encoder.plan(tokens) is not None:
        return  # encoded without padding
    kind = type(encoder.model).__name__
    try:
        alone = encoder(tokens.take(torch.tensor([0])), pad_to=lengths[0])
        beside = encoder(tokens, pad_to=lengths[1])[:1]
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        raise EncoderError(
            f"{config.source} cannot encode strings by their tokens alone ({kind}): {why:.200}"
        ) from None
    if not bool((beside - alone).abs().max() <= _MIXED * alone.abs().max()):
        raise EncoderError(
            f"{config.source} gives a string another vector where a longer one is beside it, since"
            f" {kind} does not keep padding apart; take an encoder whose attention mask does"
        )


@torch.no_grad()
def _refuse_blind_token(config: EncoderConfig, encoder: StringEncoder) -> None:
    """Raise EncoderError where all strings that begin alike would have one vector.

    In a decoder a token sees none behind it, so the first one knows nothing of the string.
    """
    if config.pooling != "cls":
        return
    length = min(_PROBES[0], encoder.max_length)
    tokens = _probe_tokens(encoder, [length, length])
    tokens.values[length] = tokens.values[0]
    one, other = encoder(tokens)
    if not bool((one - other).abs().max() > _EQUAL * one.abs().max()):
        raise EncoderError(
            f"encoder.pooling cls gives all strings one vector: in {config.source}"
            f" ({type(encoder.model).__name__}) the first token sees none of those behind it, as in"
            " every decoder; set encoder.pooling: mean"
        )


def _probe_tokens(encoder: StringEncoder, lengths: list[int]) -> TokenTable:
    """Return strings of these lengths whose tokens differ, none of them padding."""
    values = torch.arange(sum(lengths)) * 7919 % encoder.num_ids
    values = torch.where(values == encoder.pad_id, (values + 1) % encoder.num_ids, values)
    return TokenTable(values, offsets_of(torch.tensor(lengths)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers say nothing: what is wrong is said here, and loading takes a second."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def encoding_key(encoder: EncoderConfig) -> str:
    """Return a short key of the encoder.

    Two encoders share it only if they give the same vector for every string.
    """
    text = json.dumps({**encoder_entries(encoder), "dtype": DTYPE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encoder_entries(encoder: EncoderConfig) -> dict[str, str]:
    """Return what the vector of a string depends on, besides the string, as named entries."""
    return {
        "weights": encoder_digest(encoder),
        "tokenizer": tokenizer_digest(load_tokenizer(encoder)),
        "pooling": encoder.pooling,
    }


def encoder_digest(config: EncoderConfig) -> str:
    """Return a digest of the encoder's configuration and weights, wherever the files lie."""
    digest = hashlib.sha256()
    for file in [config_file(config), *weight_files(config)]:
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()
