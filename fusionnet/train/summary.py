"""What is about to be trained, in a screen."""

from fusionnet.assemble import count_trainable
from fusionnet.config import PrecisionName
from fusionnet.train.loop import Trainer
from fusionnet.train.precision import multiplies_bf16


def summary(trainer: Trainer, asked: PrecisionName) -> str:
    """Return what is about to be trained, in a screen; `asked` is the config's precision."""
    layout, plan, train = trainer.cache.layout, trainer.plan, trainer.recipe.train
    device = trainer.world.device
    precision = f"{train.precision} (auto)" if asked == "auto" else train.precision
    lines = [
        f"cache      {trainer.cache.path}: {layout.num_rows:,} rows, "
        + ", ".join(f"{spec.num_strings:,} distinct {spec.name}" for spec in layout.strings)
    ]
    for spec in layout.strings:
        if spec.standin:
            lines.append(
                f"encoder    {spec.encoder.source} ({spec.name}) is a STAND-IN without published"
                " weights: results show the software, not the chemistry"
            )
    if layout.absent_targets:
        lines.append(
            f"tasks      not in the table, hence not trained: {', '.join(layout.absent_targets)}"
        )
    lines += [
        (
            f"training   {plan.num_rows:,} rows, {train.epochs} epochs x {plan.steps_per_epoch}"
            f" steps of up to {plan.batch_rows:,} rows, {trainer.world.size} rank(s) x"
            f" {plan.num_micro_batches} micro-batches, {precision}, mode {trainer.recipe.mode},"
            f" ZeRO stage {train.zero_stage_of(trainer.world.size)}"
        ),
        f"rows       {trainer.train_rows.order}",
    ]
    if train.precision == "bf16" and not multiplies_bf16(device):
        lines.append(
            f"NOTE       this {device.type.upper()} has no instructions for bf16 and emulates it:"
            " train.precision=auto or fp32 is faster here"
        )
    lines.append(f"{'component':34} {'parameters':>12} {'trainable':>12} {'specification':>14}")
    for component, parameters, trainable, specified in trainer.model.parameter_table():
        lines.append(f"{component:34} {parameters:>12,} {trainable:>12,} {specified or '-':>14}")
    lines.append(
        f"{'total':34} {sum(p.numel() for p in trainer.model.parameters()):>12,}"
        f" {count_trainable(trainer.model):>12,} {'~88M / ~2.3M':>14}"
    )
    return "\n".join(lines)
