"""A pre-training from its corpus to the encoder's folder."""

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DebertaV2Model, PreTrainedTokenizerBase

from embedcache.config.encoder import EncoderConfig, EncoderSize
from embedcache.encoder.deberta.packed import is_packable
from embedcache.encoder.folder import encoder_file
from embedcache.encoder.loading import encoder_digest, load_encoder
from embedcache.encoder.standin import architecture, published_pieces, sentencepiece_model
from embedcache.encoder.tokenizer import build_tokenizer, load_tokenizer, wrap
from embedcache.errors import EncoderError, RunError
from fusionnet.config.train import TrainConfig
from fusionnet.pretrain.folder import (
    CHECKPOINT,
    CORPUS,
    SPM,
    check_folder,
    remove_work,
    write_folder,
)
from fusionnet.pretrain.loop import GROUPS, Position, Trainer, pretrain
from fusionnet.pretrain.objectives import PretrainedModel
from fusionnet.pretrain.prepared import Prepared, Wanted, prepared, vocabulary_of
from fusionnet.pretrain.settings import Settings
from fusionnet.train.plain import PlainEngine
from fusionnet.train.protocols import StepEngine
from fusionnet.train.sizing import set_threads
from fusionnet.train.world import World, losses_named


class First(NamedTuple):
    """What a training begins with."""

    model: DebertaV2Model
    tokenizer: PreTrainedTokenizerBase
    sentencepiece: bytes | None
    origin: str  # in words
    digest: str


def pretrain_encoder(
    out: Path,
    wanted: Wanted,
    settings: Settings,
    source: str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    tell: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Train an encoder on a corpus, write its folder, and return what its mark says.

    Weights are those of the encoder `source`, or fresh ones of `settings.size`. The checkpoint and
    the prepared corpus lie beside the folder, in `<out>.pretraining`, until it is written.
    """
    check_folder(out)
    work = out.with_name(f"{out.name}.pretraining")
    checkpoint = work / CHECKPOINT
    if checkpoint.is_file() and not (resume or overwrite):
        raise RunError(
            f"{checkpoint} is of a training that was not finished; go on with it by --resume, or"
            " delete it by --overwrite"
        )
    with closing(World()) as world, losses_named(world.rank):
        set_threads(None if world.is_launched else torch.get_num_threads(), world)
        first = _first(settings, source)
        vocabulary = vocabulary_of(first.tokenizer)
        corpus = _corpus(wanted, first.tokenizer, work, processes, world)
        if world.is_main:
            tell(_corpus_in_words(corpus))
            if overwrite and not resume:
                checkpoint.unlink(missing_ok=True)
        world.barrier()
        torch.manual_seed(settings.seed)
        model = PretrainedModel(
            first.model, settings.objective, corpus.ranks.shape[1], settings.precision
        ).to(world.device)
        trainer = Trainer(
            settings=settings,
            corpus=corpus,
            vocabulary=vocabulary,
            model=model,
            engine=_engine(model, settings, world),
            checkpoint=checkpoint,
            identity=_identity(settings, corpus, first),
        )
        position = pretrain(trainer, resume)
        facts = _facts(trainer, position, first)
        if world.is_main:
            write_folder(out, model.encoder.cpu(), first.tokenizer, first.sentencepiece, facts)
            remove_work(work)
            tell(
                f"{out}: {facts['layers']} layers of width {facts['width']},"
                f" {facts['parameters']:,} parameters; set encoder.source to the folder"
            )
        world.barrier()
    return facts


def _corpus(
    wanted: Wanted, tokenizer: PreTrainedTokenizerBase, work: Path, processes: int, world: World
) -> Prepared:
    """Return the corpus, made by the first rank alone."""
    kept = work / CORPUS
    if world.is_main:
        work.mkdir(parents=True, exist_ok=True)
        found = prepared(wanted, tokenizer, kept, processes)
    world.barrier()
    return found if world.is_main else prepared(wanted, tokenizer, kept, processes)


def _first(settings: Settings, source: str | None) -> First:
    """Return the first weights and their tokenizer."""
    if source is None:
        size: EncoderSize = settings.size or "small"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = DebertaV2Model(architecture(size))
        tokenizer = wrap(build_tokenizer(published_pieces()))
        return First(model, tokenizer, sentencepiece_model(), f"random ({size})", f"random {size}")
    config = EncoderConfig(source=source, tokenizer="any")
    model = load_encoder(config).model
    if not is_packable(model):
        raise EncoderError(
            f"{source} is a {type(model).__name__}; pre-training runs polyBERT's architecture"
            " alone: DebertaV2Model without relative positions and convolution"
        )
    file = encoder_file(config, SPM)
    pieces = None if file is None else file.read_bytes()
    return First(model, load_tokenizer(config), pieces, source, encoder_digest(config))


def _engine(model: nn.Module, settings: Settings, world: World) -> StepEngine:
    """Return torch's own engine for a process that no launcher started, else DeepSpeed's."""
    matrices = [each for each in model.parameters() if each.ndim > 1]
    others = [each for each in model.parameters() if each.ndim <= 1]
    optim = settings.optim
    groups: list[dict[str, Any]] = [
        {"name": GROUPS[0], "params": matrices, "lr": settings.lr},
        {"name": GROUPS[1], "params": others, "lr": settings.lr, "weight_decay": 0.0},
    ]
    if not world.is_launched:
        return PlainEngine(model, groups, world, optim, num_micro_batches=1)
    from fusionnet.train.engine import Engine

    train = TrainConfig(batch_rows=world.size, precision=settings.precision)
    return Engine(model, groups, world, train, optim, num_micro_batches=1)


def _identity(settings: Settings, corpus: Prepared, first: First) -> str:
    """Return a digest of what decides the weights; a longer training is another one."""
    entries = [settings.model_dump(mode="json"), corpus.facts, first.digest]
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _corpus_in_words(corpus: Prepared) -> str:
    facts = corpus.facts
    invalid = f", {facts.num_invalid:,} invalid ones left out" if facts.num_invalid else ""
    long = f"; {facts.num_long:,} longer ones left out" if facts.num_long else ""
    ranked = f", {facts.num_ranked:,} with descriptors" if facts.num_ranked else ""
    return (
        f"{facts.num_lines:,} lines{invalid}: {facts.num_strings:,} distinct polymers,"
        f" {facts.num_tokens:,} tokens{long}; {facts.num_held_out:,} held out{ranked}"
    )


def _facts(trainer: Trainer, position: Position, first: First) -> dict[str, Any]:
    """Return what the folder says of itself."""
    encoder = trainer.model.encoder
    return {
        "what": "pre-trained by embedcache and fusionnet, not published weights",
        "first_weights": first.origin,
        "layers": encoder.config.num_hidden_layers,
        "width": encoder.config.hidden_size,
        "parameters": sum(each.numel() for each in encoder.parameters()),
        "settings": trainer.settings.model_dump(mode="json"),
        "corpus": trainer.corpus.facts._asdict(),
        "threads": torch.get_num_threads(),
        "ranks": trainer.engine.world.size,
        "evaluations": position.records,
    }
