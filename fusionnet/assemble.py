"""From a recipe and a cache's layout to a model with its encoders and the sources of its vectors.

Columns whose encoder configs are equal share one encoder, hence one set of LoRA weights.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from embedcache.cache.layout import Layout, StringTable
from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable, shared_strings
from embedcache.errors import ConfigError
from embedcache.live.features import FeaturedColumn
from embedcache.live.shared import shared_columns
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
    live = recipe.is_live if live is None else live
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

    Columns of one encoder share what it encodes in a step. `pad_to` concerns `naive` alone.
    """
    names = [spec.name for spec in cache.layout.strings]
    tables = [cache.strings(name, with_states=recipe.mode == "prefix") for name in names]
    found = _bare_sources(model, recipe, dict(zip(names, tables, strict=True)), device, pad_to)
    scaling = cache.scaling.string_features
    return [
        FeaturedColumn(source, scaling[name].apply(table.features).to(device))
        if name in scaling
        else source
        for name, table, source in zip(names, tables, found, strict=True)
    ]


def _bare_sources(
    model: TrainableModel,
    recipe: Recipe,
    tables: Mapping[str, StringTable],
    device: torch.device | str,
    pad_to: int | None,
) -> list[VectorSource]:
    """Return the sources of what encoders make of the strings; `tables` are the columns'."""
    if not recipe.is_live:
        return [CachedVectors(table.embeddings.to(device)) for table in tables.values()]
    names = list(tables)
    keys = encoder_of_column(recipe, names)
    found: dict[str, VectorSource] = {}
    for key in dict.fromkeys(keys):
        encoder, config = model.encoders[key], recipe.encoders[names.index(key)]
        assert isinstance(encoder, StringEncoder)
        own = {
            name: tables[name]
            for name, of_column in zip(names, keys, strict=True)
            if of_column == key
        }
        if recipe.mode in ("per_step", "prefix"):
            live = _live_sources(encoder, list(own.values()), config, device)
            found |= dict(zip(own, live, strict=True))
            continue
        for name, table in own.items():
            tokens, per_row = table.tokens.to(device), recipe.mode == "naive"
            found[name] = (
                PerRow(encoder, tokens, pad_to) if per_row else PerMicrobatch(encoder, tokens)
            )
    return [found[name] for name in names]


def _live_sources(
    encoder: StringEncoder,
    tables: Sequence[StringTable],
    config: EncoderConfig,
    device: torch.device | str,
) -> Sequence[VectorSource]:
    """Return the sources of the columns that an encoder reads, which encode once per step."""
    if len(tables) == 1:
        return [_live_encoder(encoder, tables[0].tokens.to(device), config)]
    texts, tokens = [table.text for table in tables], [table.tokens for table in tables]
    shared, ids = shared_strings(texts, tokens)
    return shared_columns(_live_encoder(encoder, shared.to(device), config), ids)


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
