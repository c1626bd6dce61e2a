"""Phase 1: a table whose text columns take few distinct values to cache.zarr, and exact
once-per-step encoding of these values in training.

The two halves are of use alone. `build_cache` and `open_cache` keep everything that can be computed
once. `LiveEncoder` lets any PyTorch loop fine-tune a Hugging Face encoder on many rows with few
distinct strings, at the cost of one encoding per distinct string and step. Whole example (`encoder`
is any Hugging Face folder or hub id; `embedcache make-encoder --out encoder --size tiny` makes
a random one):

    import torch
    from embedcache import EncoderConfig, LiveEncoder

    strings = ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C"]  # distinct; a string's id is its index
    string_id = torch.randint(0, 3, (10_000,))  # which of them each row has
    y = string_id + torch.randn(10_000)

    live = LiveEncoder.from_strings(strings, EncoderConfig(source="encoder"))
    head = torch.nn.Linear(live.width, 1)
    optimizer = torch.optim.AdamW([*live.encoder.parameters(), *head.parameters()], lr=1e-3)
    for rows in torch.randperm(10_000).split(4_096):
        optimizer.zero_grad()
        with live.step(string_id[rows]):  # 3 strings are encoded, not 4,096
            for part in rows.split(512):  # as many backward passes as memory asks for
                error = head(live.vectors(string_id[part])).squeeze(1) - y[part]
                (error.square().sum() / len(rows)).backward()
        optimizer.step()  # the gradients are those of encoding every row

`LiveEncoder.from_cache(open_cache("cache.zarr"), "polymer")` takes strings, tokens and encoder from
a cache. DDP: wrap the rest of the model and give `group=torch.distributed.group.WORLD`. DeepSpeed
and other engines that reduce gradients themselves: see `LiveEncoder`. `lora.save_adapter` writes
PEFT's format.
"""

from importlib import import_module
from typing import Any

# Imported when first asked for: transformers and PEFT take seconds, and a command that only reads a
# table should not wait for them.
_HOMES = {
    "build_cache": "build.decide",
    "Cache": "cache.reader",
    "CacheConfig": "config.cache",
    "DataConfig": "config.table",
    "EncoderConfig": "config.encoder",
    "LiveEncoder": "live.step",
    "LoraConfig": "config.encoder",
    "open_cache": "cache.reader",
    "SplitConfig": "config.split",
    "TargetColumn": "config.targets",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name from the file that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'embedcache' has no attribute '{name}'")
    return getattr(import_module(f"embedcache.{_HOMES[name]}"), name)
