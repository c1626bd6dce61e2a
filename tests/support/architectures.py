"""Small encoders of architectures that transformers brings, with random weights, as folders."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "vocab_size": 269, "max_position_embeddings": 60}
SIZES |= {"pad_token_id": 1}


class Architecture(NamedTuple):
    """An encoder of a published kind, made small."""

    settings: dict[str, Any]  # of config.json, with its model_type
    targets: tuple[str, ...]  # what LoRA adapts where no layers are named
    longest: int  # tokens of a string, of 60 positions


_QKV = ("query", "key", "value")
REAL = {
    "bert": Architecture({"model_type": "bert"}, _QKV, 60),
    "roberta": Architecture({"model_type": "roberta"}, _QKV, 58),
    "albert": Architecture({"model_type": "albert", "embedding_size": 16}, _QKV, 60),
    "modernbert": Architecture(
        # strings are longer than the window of local attention, in the second layer of three
        {"model_type": "modernbert", "local_attention": 8, "global_attn_every_n_layers": 2},
        ("Wqkv",),
        60,
    ),
    "deberta with relative positions": Architecture(
        {
            "model_type": "deberta-v2",
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        ("query_proj", "key_proj", "value_proj"),
        60,
    ),
}


def write_architecture(
    folder: Path, model_type: str, tokenizer_of: Path | None = None, **settings: Any
) -> Path:
    """Write an encoder, with the tokenizer of another folder or without one."""
    sizes = SIZES | {"initializer_range": 0.3} | settings  # so that tokens and positions matter
    described = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(0)
    AutoModel.from_config(described).save_pretrained(folder)
    if tokenizer_of is not None:
        for file in tokenizer_of.glob("*token*"):
            shutil.copyfile(file, folder / file.name)
        shutil.copyfile(tokenizer_of / "spm.model", folder / "spm.model")
    return folder
