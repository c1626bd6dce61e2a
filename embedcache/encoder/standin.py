"""Stand-in encoders: polyBERT's architecture and tokenizer in a Hugging Face folder, with random
weights.

Published weights cannot be redistributed here, and a test must not need the network. A stand-in has
the shapes, the parameter count, the token ids and the files of the real folder, so everything that
loads, adapts, trains and caches an encoder runs on it unchanged. What it lacks is chemistry: its
folder is marked, and every result made with it says so.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import DebertaV2Config, DebertaV2Model
from transformers.utils import logging as transformers_logging

from embedcache.config.encoder import EncoderSize
from embedcache.encoder.tokenizer import PREFIX, UNKNOWN, build_tokenizer, empty_sentencepiece, wrap
from embedcache.errors import EncoderError
from embedcache.files import atomic_write

MARK = "standin.json"
SIZES: dict[EncoderSize, dict[str, int]] = {
    "polybert": {
        "hidden_size": 600,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 512,
    },
    "small": {  # what an hour on a laptop can pre-train
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "intermediate_size": 512,
    },
    "tiny": {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}
_CONTROL, _NORMAL, _UNKNOWN, _USER_DEFINED = 3, 1, 2, 4  # SentencePiece's piece types


def published_pieces() -> list[str]:
    """Return polyBERT's 265 SentencePiece pieces in the order of their ids."""
    vocabulary = resources.files("embedcache.encoder").joinpath("polybert_vocab.txt")
    return vocabulary.read_text(encoding="utf-8").split("\n")[:265]


def write_standin(folder: Path, size: EncoderSize, seed: int = 0) -> None:
    """Write a stand-in encoder, replacing an earlier one in the folder.

    Raises EncoderError for a folder that holds anything else.
    """
    if folder.exists() and any(folder.iterdir()) and not is_standin(folder):
        raise EncoderError(
            f"{folder} holds files that are not a stand-in encoder; choose another folder"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DebertaV2Model(architecture(size))
    transformers_logging.disable_progress_bar()
    mark = {
        "size": size,
        "seed": seed,
        "weights": "random",
        "note": "polyBERT's architecture and tokenizer without its weights",
    }
    with atomic_write(folder) as partial:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        wrap(build_tokenizer(published_pieces())).save_pretrained(partial)
        (partial / "spm.model").write_bytes(sentencepiece_model())
        (partial / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        _refuse_others(folder, {file.name for file in partial.iterdir()})


def _refuse_others(folder: Path, names: set[str]) -> None:
    """Raise EncoderError for a folder with files that are not among the names of ours."""
    others = sorted({file.name for file in folder.glob("*")} - names)
    if others:
        raise EncoderError(
            f"{folder} also holds {', '.join(others[:5])[:200]}, which would be deleted with the"
            " stand-in encoder that it replaces; move that, or choose another folder"
        )


def is_standin(source: Path | str) -> bool:
    """Return whether an encoder's source is a folder marked as a stand-in."""
    return (Path(source) / MARK).is_file()


def sentencepiece_model() -> bytes:
    """Return the vocabulary as a SentencePiece model, as the published folder holds it."""
    proto = empty_sentencepiece()
    kinds = {UNKNOWN: _UNKNOWN, "<s>": _CONTROL, "</s>": _CONTROL, PREFIX: _NORMAL}
    pieces = published_pieces()
    for text in pieces:
        score = -1.0 if text == PREFIX else 0.0
        proto.pieces.add(piece=text, score=score, type=kinds.get(text, _USER_DEFINED))
    proto.trainer_spec.model_type = 1  # unigram
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.unk_id = 0
    proto.trainer_spec.bos_id = 1
    proto.trainer_spec.eos_id = 2
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    return proto.SerializeToString()


def architecture(size: EncoderSize) -> DebertaV2Config:
    """Return polyBERT's published configuration, at one of three sizes."""
    settings: dict[str, Any] = {
        **SIZES[size],
        "vocab_size": 269,
        "relative_attention": False,
        "position_biased_input": True,
        "pos_att_type": [],
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "pad_token_id": 3,
        "layer_norm_eps": 1e-7,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    return DebertaV2Config(**settings)
