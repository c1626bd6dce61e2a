"""How many tokens of a string an encoder has positions for."""

from typing import Any

from torch import nn


def longest_string(model: nn.Module) -> int:
    """Return the most tokens of a string that a Hugging Face encoder has positions for.

    RoBERTa and its kin (XLM-R, CamemBERT, MPNet, ESM, Longformer) number a string's first token by
    the padding's id plus one, so that of 514 positions two are no token's. Their tables of
    positions say so, whatever the architecture is called.
    """
    config: Any = model.config
    unused = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings"
        and getattr(module, "padding_idx", None) is not None
    ]
    return config.max_position_embeddings - max(unused, default=0)
