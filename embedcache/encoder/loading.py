"""Loading an encoder, and telling it from others: safetensors alone, no code from the folder."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from embedcache.config import EncoderConfig
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenizer_digest
from embedcache.errors import EncoderError
from embedcache.files import file_digest

DTYPE = "float32"  # of embeddings


def load_encoder(config: EncoderConfig) -> StringEncoder:
    """Return the encoder of a hub id or local folder, frozen and in evaluation mode.

    Raises EncoderError if it cannot be loaded safely.
    """
    weight_files(config)
    # loading takes a second; its bar would be drawn into logs
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(
            config.source,
            revision=config.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderError(f"the encoder {config.source} cannot be loaded: {error}") from None
    return StringEncoder(model.requires_grad_(False), config.pooling).eval()


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
    for file in [_file(config, "config.json"), *weight_files(config)]:
        if file is None:
            raise EncoderError(
                f"{config.source} has no config.json, so it is not a Hugging Face model folder"
            )
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


def weight_files(config: EncoderConfig) -> list[Path]:
    """Return the encoder's safetensors files; raises EncoderError where there are none.

    Pickled weights are not read: they can run code.
    """
    whole = _file(config, "model.safetensors")
    if whole is not None:
        return [whole]
    index = _file(config, "model.safetensors.index.json")
    if index is None:
        raise EncoderError(
            f"there are no safetensors weights in {config.source}; give a Hugging Face hub id or a"
            " model folder as encoder.source, or make a stand-in with: embedcache make-encoder"
            " --out encoder --size polybert"
        )
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [_file(config, name) for name in names]
    found = [file for file in files if file is not None]
    if len(found) < len(names):
        raise EncoderError(
            f"{config.source} is incomplete: its index names weight files that are not there"
        )
    return found


def _file(config: EncoderConfig, name: str) -> Path | None:
    """Return one file of the encoder, local or from the hub's cache, None where it is missing."""
    try:
        found = cached_file(
            config.source,
            name,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise EncoderError(
            f"the encoder {config.source} is neither a folder nor reachable on the hub:"
            f" {str(error).splitlines()[0]}"
        ) from None
    return None if found is None else Path(found)
