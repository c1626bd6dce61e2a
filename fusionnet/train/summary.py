"""What is about to be trained, in a screen."""

from typing import Any

from embedcache.build.report import split_counts
from embedcache.split.report import unlabelled
from embedcache.text import text_table
from fusionnet.assemble import count_trainable
from fusionnet.config.model import ModelConfig
from fusionnet.experiment import Experiment
from fusionnet.train.fitting import FEW_STEPS
from fusionnet.train.forecast import forecast
from fusionnet.train.plain import PlainEngine
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.trainer import Trainer

# trainable parameters that the specification (section 4) states for the model of Stage 1
_SPECIFIED = {
    "encoder polymer (frozen)": "86M, 0",
    "encoder polymer LoRA": "1.2M",
    "string adapter polymer": "328K",
    "numeric encoder": "9.4K",
    "category embedding": "128",
    "fusion transformer": "467K",
    "head ef": "148K",
    "head opt": "65.7K",
    "head stress": "65.7K",
    "total": "~88M / ~2.3M",
}
_NUM_FEATURES, _WIDTH = 19, 600  # of its rows; of polyBERT's vectors
_SHAPING = {"fusion", "adapter_hidden", "adapter_width", "numeric_hidden", "numeric_width"} | {
    "category_width",
    "fusion_width",
    "num_layers",
    "feedforward",
    "linear_skip",
    "numeric",
    "numeric_embedding",
    "members",
}  # keys of ModelConfig that decide how many parameters there are; its defaults are the specified


def summary(trainer: Trainer, asked: Experiment) -> str:
    """Return what is about to be trained, in a screen; `asked` is what the config says of it."""
    return "\n".join([*_facts(trainer, asked), *text_table(_components(trainer))])


def _facts(trainer: Trainer, asked: Experiment) -> list[str]:
    """Return one line each on the cache, the encoders, the tasks and the training."""
    layout, plan, train = trainer.cache.layout, trainer.plan, trainer.recipe.train
    distinct = ", ".join(f"{spec.num_strings:,} distinct {spec.name}" for spec in layout.strings)
    rows = f"{layout.num_rows:,} rows, {distinct or 'no strings'}"
    lines = [f"cache      {trainer.cache.path}: {rows}"]
    lines += [
        f"encoder    {spec.encoder.source} ({spec.name}) is a STAND-IN without published weights:"
        " results show the software, not the chemistry"
        for spec in layout.strings
        if spec.standin
    ]
    lines += [
        f"features   {spec.in_words} ({spec.name})" for spec in layout.strings if spec.features
    ]
    if layout.absent_targets:
        absent = ", ".join(layout.absent_targets)
        lines.append(f"tasks      not in the table, hence not trained: {absent}")
    precision = f"{train.precision} (auto)" if asked.train.precision == "auto" else train.precision
    mode = f", mode {trainer.recipe.mode}" if layout.strings else ""
    if trainer.recipe.mode == "none":
        mode += " (no language model: features of strings alone)"
    lines.append(
        f"training   {plan.num_rows:,} rows, {train.epochs} epochs x {plan.steps_per_epoch} steps"
        f" of up to {plan.batch_rows:,} rows, {trainer.world.size} rank(s) x"
        f" {plan.num_micro_batches} micro-batches, {precision}{mode},"
        f" {_optimizer(trainer)}"
    )
    model = trainer.recipe.model
    if model.members > 1:
        lines.append(
            f"members    {model.members} networks in one, each with its own heads and the last"
            f" {model.num_own_layers} of {model.num_layers} layers computed for itself"
        )
    if saved := trainer.saving:
        lines.append(f"saving     {saved}")
    lines += [f"fitted     {text}" for text in _fitted(trainer, asked)]
    lines.append(f"rows       {trainer.train_rows.order}")
    if note := _without_validation(trainer):
        lines.append(f"NOTE       {note}")
    warmup, num_steps = trainer.schedule.warmup_steps, plan.steps_per_epoch * train.epochs
    if num_steps < FEW_STEPS:
        lines.append(
            f"NOTE       {num_steps:,} optimizer steps in all, which is few: lower train.batch_rows"
            f" ({train.batch_rows:,}), or raise train.epochs"
        )
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


def _fitted(trainer: Trainer, asked: Experiment) -> list[str]:
    """Return in a line what the config left unset, none where that is nothing."""
    recipe, values = trainer.recipe, dict[str, Any]()
    for section, whole, own in (
        ("train", recipe.train, asked.train),
        ("train.early_stopping", recipe.train.early_stopping, asked.train.early_stopping),
        ("model", recipe.model, asked.model),
    ):
        values |= {
            f"{section}.{key}": value
            for key, value in whole
            if value is not None and getattr(own, key) is None
        }
    return [", ".join(f"{key} {value:,}" for key, value in values.items())] if values else []


def _optimizer(trainer: Trainer) -> str:
    """Return who takes the optimizer's steps."""
    if isinstance(trainer.engine, PlainEngine):
        return "torch's AdamW"
    return f"DeepSpeed, ZeRO stage {trainer.recipe.train.zero_stage_of(trainer.world.size)}"


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


def _components(trainer: Trainer) -> list[tuple[str, ...]]:
    """Return the parameter counts of each component below a head.

    Those of the specification stand beside them where the model is the one that it describes.
    """
    model = trainer.model
    rows = [("component", "parameters", "trainable"), *_counted(model.parameter_table())]
    total = sum(parameter.numel() for parameter in model.parameters())
    rows += _counted([("total", total, count_trainable(model))])
    if not _is_specified(trainer):
        return list(rows)
    specified = {"component": "specification"} | _SPECIFIED
    return [(*row, specified.get(row[0], "-")) for row in rows]


def _counted(rows: list[tuple[str, int, int]]) -> list[tuple[str, str, str]]:
    return [(name, f"{total:,}", f"{trained:,}") for name, total, trained in rows]


def _is_specified(trainer: Trainer) -> bool:
    """Return whether this is HYDRA-BERT's Stage 1: its columns, tasks and widths."""
    layout, recipe = trainer.cache.layout, trainer.recipe
    components = {name for name, _, _ in trainer.model.parameter_table()}
    widths = recipe.model.model_dump(include=_SHAPING)
    return (
        components >= _SPECIFIED.keys() - {"total"}
        and len(layout.numeric) == _NUM_FEATURES
        and [spec.full_width for spec in layout.strings] == [_WIDTH]
        and widths == ModelConfig().model_dump(include=_SHAPING)
    )
