"""What is about to be trained, in a screen."""

from embedcache.build.report import split_counts
from embedcache.split.report import unlabelled
from embedcache.text import text_table
from fusionnet.assemble import count_trainable
from fusionnet.config.train import PrecisionName
from fusionnet.train.forecast import forecast
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.trainer import Trainer


def summary(trainer: Trainer, asked: PrecisionName) -> str:
    """Return what is about to be trained, in a screen; `asked` is the config's precision."""
    return "\n".join([*_facts(trainer, asked), *text_table(_components(trainer))])


def _facts(trainer: Trainer, asked: PrecisionName) -> list[str]:
    """Return one line each on the cache, the encoders, the tasks and the training."""
    layout, plan, train = trainer.cache.layout, trainer.plan, trainer.recipe.train
    distinct = ", ".join(f"{spec.num_strings:,} distinct {spec.name}" for spec in layout.strings)
    lines = [f"cache      {trainer.cache.path}: {layout.num_rows:,} rows, {distinct}"]
    lines += [
        f"encoder    {spec.encoder.source} ({spec.name}) is a STAND-IN without published weights:"
        " results show the software, not the chemistry"
        for spec in layout.strings
        if spec.standin
    ]
    if layout.absent_targets:
        absent = ", ".join(layout.absent_targets)
        lines.append(f"tasks      not in the table, hence not trained: {absent}")
    precision = f"{train.precision} (auto)" if asked == "auto" else train.precision
    lines.append(
        f"training   {plan.num_rows:,} rows, {train.epochs} epochs x {plan.steps_per_epoch} steps"
        f" of up to {plan.batch_rows:,} rows, {trainer.world.size} rank(s) x"
        f" {plan.num_micro_batches} micro-batches, {precision}, mode {trainer.recipe.mode}, ZeRO"
        f" stage {train.zero_stage_of(trainer.world.size)}"
    )
    lines.append(f"rows       {trainer.train_rows.order}")
    if note := _without_validation(trainer):
        lines.append(f"NOTE       {note}")
    warmup, num_steps = trainer.schedule.warmup_steps, plan.steps_per_epoch * train.epochs
    if warmup >= num_steps:
        lines.append(
            f"NOTE       warm-up takes {warmup:,} optimizer steps and the run has {num_steps:,}:"
            " learning rates do not come down from their peak, or never reach it; set a smaller"
            " optim.warmup_epochs, or more train.epochs"
        )
    device = trainer.world.device
    if device.type == "cpu":
        lines.append(f"time       {forecast(trainer)}")
    if device.type == "cuda":
        why_not = trainer.why_not_static
        lines.append(
            f"CUDA graph {'each step is a replay of one' if why_not is None else f'off: {why_not}'}"
        )
    if train.precision == "bf16" and not multiplies_bf16(device):
        lines.append(
            f"NOTE       this {device.type.upper()} has no instructions for bf16 and emulates it:"
            " train.precision=auto or fp32 is faster here"
        )
    return lines


def _without_validation(trainer: Trainer) -> str:
    """Return which tasks have no validation label and what follows, "" where all have some."""
    cache = trainer.cache
    missing = unlabelled(split_counts(cache), "validation")
    names = ", ".join(f"'{name}'" for name in missing)
    if not missing:
        return ""
    if len(missing) == len(cache.layout.targets):
        return (
            f"no validation row has a label for {names}: there is no validation loss, and the last"
            " epoch is taken for the best"
        )
    return f"no validation row has a label for {names}: the validation loss is that of the others"


def _components(trainer: Trainer) -> list[tuple[str, str, str, str]]:
    """Return the parameter counts of each component beside the specification's, below a head."""
    rows = [("component", "parameters", "trainable", "specification")]
    for component, parameters, trainable, specified in trainer.model.parameter_table():
        rows.append((component, f"{parameters:,}", f"{trainable:,}", specified or "-"))
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    trainable = count_trainable(trainer.model)
    return [*rows, ("total", f"{total:,}", f"{trainable:,}", "~88M / ~2.3M")]
