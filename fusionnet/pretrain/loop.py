"""Pre-training: optimizer steps over a packed corpus, evaluations, checkpoints, the end.

The learning rate follows the share of the training that is done: of its steps, where epochs are
asked for, or of its time. A training by steps is the same whether it was interrupted or not, bit
for bit on a CPU: order and masks follow from seed and step. One by time also counts the time before
it was interrupted, and ends when all of it is spent, however busy the machine was.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from embedcache.errors import NonFiniteLossError, RunError
from fusionnet.pretrain.evaluation import evaluated
from fusionnet.pretrain.masking import Vocabulary
from fusionnet.pretrain.objectives import PretrainedModel
from fusionnet.pretrain.packing import epoch_batches, share_of, step_seed
from fusionnet.pretrain.prepared import Prepared
from fusionnet.pretrain.settings import Settings
from fusionnet.stopping import at_checkpoints, is_asked, stopped
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.train.protocols import StepEngine
from fusionnet.train.schedule import Schedule

Record = dict[str, Any]
NUM_EVALUATIONS = 20  # of a training; each leaves a checkpoint
GROUPS = ("decayed", "plain")  # of parameters: matrices, and the others


@dataclass(frozen=True)
class Position:
    """Where a training is, after `step` steps."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # steps of the epoch that are done
    epoch_steps: int = 1
    num_tokens: int = 0
    seconds: float = 0.0  # of training, without evaluations
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """All that a pre-training holds."""

    settings: Settings
    corpus: Prepared
    vocabulary: Vocabulary
    model: PretrainedModel
    engine: StepEngine
    checkpoint: Path
    identity: str  # of settings, corpus and first weights: a checkpoint of another is refused

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.engine.world.is_main


def pretrain(trainer: Trainer, resume: bool) -> Position:
    """Train to the end and return where it is."""
    position = Position()
    if resume and trainer.checkpoint.is_file():
        position = _resumed(trainer)
        if trainer.is_main:
            print("\n".join(map(line_of, position.records)))
    with at_checkpoints():
        while (done := progress(trainer, position)) < 1:
            due = min(1.0, (int(done * NUM_EVALUATIONS + 1e-9) + 1) / NUM_EVALUATIONS)
            position = _trained(trainer, position, due)
            position = _saved(trainer, position)
            if progress(trainer, position) < 1 and trainer.engine.world.any(is_asked()):
                raise stopped(
                    f"{trainer.checkpoint} holds all up to step {position.step:,}; go on with the"
                    " same command and --resume"
                )
    return position


def progress(trainer: Trainer, position: Position) -> float:
    """Return the share of the training that is done."""
    settings = trainer.settings
    if settings.minutes is not None:
        return min(1.0, position.seconds / (60 * settings.minutes))
    assert settings.epochs is not None
    return (position.epoch + position.batch / position.epoch_steps) / settings.epochs


def _trained(trainer: Trainer, position: Position, until: float) -> Position:
    """Take steps until this share of the training is done, or the process is told to stop."""
    settings, engine, world = trainer.settings, trainer.engine, trainer.engine.world
    schedule = _schedule(settings)
    corpus, train = trainer.corpus, trainer.corpus.train
    lengths = corpus.tokens.lengths[train]
    batches = epoch_batches(lengths, settings.batch_tokens, settings.seed, position.epoch)
    started = time.perf_counter() - position.seconds
    with tqdm(unit="tokens", unit_scale=True, disable=None if world.is_main else True) as bar:
        while (done := progress(trainer, position)) < until and not world.any(is_asked()):
            bar.set_description(f"{100 * done:.0f} % of the training", refresh=False)
            engine.set_learning_rates(schedule.rates(settings.tick(done)))
            ids = train[batches[position.batch]]
            _take_step(trainer, ids, position.step)
            num_tokens = int(corpus.tokens.lengths[ids].sum())
            bar.update(num_tokens)
            epoch, batch = divmod(position.batch + 1, len(batches))
            if epoch:
                next_epoch = position.epoch + 1
                batches = epoch_batches(lengths, settings.batch_tokens, settings.seed, next_epoch)
            position = replace(
                position,
                step=position.step + 1,
                epoch=position.epoch + epoch,
                batch=batch,
                epoch_steps=len(batches),
                num_tokens=position.num_tokens + num_tokens,
                seconds=world.broadcast(time.perf_counter() - started),
            )
    return position


def _take_step(trainer: Trainer, ids: Int[Tensor, " U"], step: int) -> None:
    """Update the weights by the loss of these strings; `step` is counted from 0."""
    engine, seed = trainer.engine, trainer.settings.seed
    world = engine.world
    share = share_of(
        trainer.corpus.tokens,
        trainer.corpus.ranks,
        ids,
        trainer.vocabulary,
        step_seed(seed, step),
        world.rank,
        world.size,
    )
    engine.backward(world.size * engine(share.to(world.device)).loss)  # ranks are averaged
    engine.step()
    if engine.overflowed() and not engine.tolerates_overflow:
        raise NonFiniteLossError(
            f"the gradient of step {step + 1:,} is not finite, so nothing was updated with it;"
            " train again with a smaller --lr"
        )


def _schedule(settings: Settings) -> Schedule:
    optim = settings.optim
    assert optim.warmup_steps is not None
    assert optim.total_steps is not None
    peaks = dict.fromkeys(GROUPS, settings.lr)
    return Schedule(optim.warmup_steps, optim.total_steps, optim.final_lr_fraction, peaks)


def _saved(trainer: Trainer, position: Position) -> Position:
    """Evaluate, say so, write a checkpoint, and return the position with the new record."""
    found = evaluated(trainer.model, trainer.corpus, trainer.vocabulary, trainer.engine.world)
    record: Record = {
        "done": progress(trainer, position),
        "step": position.step,
        "epochs": position.epoch + position.batch / position.epoch_steps,
        "tokens": position.num_tokens,
        "seconds": position.seconds,
        "tokens_per_s": position.num_tokens / max(position.seconds, 1e-9),
        "lr": _schedule(trainer.settings).rates(trainer.settings.tick(progress(trainer, position)))[
            GROUPS[0]
        ],
        **found,
    }
    position = replace(position, records=[*position.records, record])
    state = trainer.engine.state()
    if trainer.is_main:
        print(line_of(record), flush=True)
        content = {"identity": trainer.identity, "state": state, "position": asdict(position)}
        save_checkpoint(trainer.checkpoint, content)
    trainer.engine.world.barrier()
    return position


def _resumed(trainer: Trainer) -> Position:
    """Set the engine to the checkpoint's state, and return where it was."""
    content = load_checkpoint(trainer.checkpoint)
    if content.get("identity") != trainer.identity:
        raise RunError(
            f"{trainer.checkpoint} is of a training with other settings, another corpus or another"
            " first encoder; go on with those, or train anew with --overwrite"
        )
    trainer.engine.load_state(content["state"])
    return Position(**content["position"])


def line_of(record: Record) -> str:
    """Return what is told of an evaluation."""
    parts = [
        f"{100 * record['done']:3.0f} %",
        f"step {record['step']:,}",
        f"{record['epochs']:.1f} epochs",
        f"{record['tokens_per_s']:,.0f} tokens/s",
        f"lr {record['lr']:.2e}",
    ]
    if record["perplexity"] is not None:
        parts += [
            f"held out: perplexity {record['perplexity']:.3f}",
            f"masked accuracy {record['accuracy']:.3f}",
        ]
    if record["rank_r2"] is not None:
        parts.append(f"R2 of ranks {record['rank_r2']:.3f}")
    return "  ".join(parts)
