"""From a recipe and a cache's layout to a model with its encoders and the sources of its vectors.

Columns whose encoder configs are equal share one encoder, hence one set of LoRA weights.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from embedcache.cache.layout import Layout
from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import ConfigError
from embedcache.live.sources import CachedVectors, PerMicrobatch, PerRow, VectorSource
from embedcache.live.step import LiveEncoder
from embedcache.scaling import Scaling
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import Recipe, encoder_of_column, model_of


def build_model(
    recipe: Recipe,
    layout: Layout,
    scaling: Scaling,
    device: torch.device | str = "cpu",
    live: bool | None = None,
) -> TrainableModel:
    """Return a freshly initialised model, seeded by `train.seed`.

    Its encoders have LoRA; a frozen recipe has none, and `live` overrules the recipe. Raises
    ConfigError where `train.precision` is still `auto`: ranks settle it together (`make_trainer`
    does).
    """
    if recipe.train.precision == "auto":
        raise ConfigError(
            "train.precision is still auto, which ranks settle together before the model is built:"
            " give fp32 or bf16, or use make_trainer"
        )
    torch.manual_seed(recipe.train.seed)
    live = recipe.mode != "frozen" if live is None else live
    names = [spec.name for spec in layout.strings]
    encoders = _load_encoders(recipe.encoders, names) if live else {}
    return model_of(recipe, layout, scaling, encoders).to(device)


def make_sources(
    model: TrainableModel,
    recipe: Recipe,
    cache: Cache,
    device: torch.device | str = "cpu",
    pad_to: int | None = None,
) -> list[VectorSource]:
    """Return one source of vectors per string column, as the encoding mode says.

    `pad_to` concerns `naive` alone.
    """
    names = [spec.name for spec in cache.layout.strings]
    keys = encoder_of_column(recipe, names)
    sources: list[VectorSource] = []
    for name, key, config in zip(names, keys, recipe.encoders, strict=True):
        table = cache.strings(name, with_states=recipe.mode == "prefix")
        if recipe.mode == "frozen":
            sources.append(CachedVectors(table.embeddings.to(device)))
            continue
        encoder, tokens = model.encoders[key], table.tokens.to(device)
        assert isinstance(encoder, StringEncoder)
        match recipe.mode:
            case "naive":
                sources.append(PerRow(encoder, tokens, pad_to))
            case "per_microbatch":
                sources.append(PerMicrobatch(encoder, tokens))
            case "per_step" | "prefix":
                sources.append(_live_encoder(encoder, tokens, config))
    return sources


def _live_encoder(encoder: StringEncoder, tokens: TokenTable, config: EncoderConfig) -> LiveEncoder:
    """Return a source that encodes once per step, among all ranks if they are to share it."""
    budget = config.memory_budget_bytes
    if config.encode_sharding == "shard" and dist.is_initialized():
        return LiveEncoder(encoder, tokens, "shard", dist.group.WORLD, budget)
    return LiveEncoder(encoder, tokens, "replicate", None, budget)


def _load_encoders(
    configs: Sequence[EncoderConfig], names: Sequence[str]
) -> dict[str, StringEncoder]:
    """Return the distinct encoders with fresh LoRA, by the first column that each reads."""
    encoders: dict[str, StringEncoder] = {}
    for name, config in zip(names, configs, strict=True):
        if configs.index(config) == names.index(name):
            encoder = load_encoder(config)
            add_lora(encoder, config.lora)
            encoders[name] = encoder
    return encoders


def count_trainable(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
