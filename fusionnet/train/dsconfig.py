"""DeepSpeed's config: every number derived from ours, and a user's own file laid over it.

The two may not contradict each other. A DeepSpeed file tunes buckets, communication, logging,
profiling. What decides the result (batch, precision, optimizer, schedule, clipping, ZeRO stage) has
one home, which is this project's config; a file that says otherwise is refused with all
contradictions at once. "auto" means ours, as in Hugging Face's files.
"""

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError
from embedcache.schema import depth_of, merged
from fusionnet.config.train import OptimConfig, TrainConfig

_MISSING = object()
MOST_DEPTH = 20  # DeepSpeed's own keys end at 5
_TOO_DEEP = f"nested deeper than {MOST_DEPTH} levels, which no DeepSpeed file is"
# keys that must agree with ours and are carried out here: bf16 is torch.autocast, the optimizer
# torch's
_OURS_ALONE = ("train_batch_size", "optimizer", "bf16")


def deepspeed_config(
    train: TrainConfig, optim: OptimConfig, world_size: int, on_gpu: bool, num_micro_batches: int
) -> dict[str, Any]:
    """Return DeepSpeed's config of a run.

    Raises ConfigError if `train.deepspeed_config` cannot be read or contradicts ours.
    """
    zero: dict[str, Any] = {
        "stage": train.zero_stage_of(world_size),
        "contiguous_gradients": True,
        "overlap_comm": on_gpu and world_size > 1,
    }
    if train.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": -(-train.batch_rows // (world_size * num_micro_batches)),
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": optim.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW runs on a CPU as well, and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": train.precision == "fp16", "loss_scale": 0, "loss_scale_window": 1000},
        "steps_per_print": 2**31,
    }
    if train.deepspeed_config is None:
        return ours
    theirs = _without_auto(_read(Path(train.deepspeed_config)))
    wrong = _contradictions(theirs, ours, train, optim)
    if wrong:
        raise ConfigError(
            f"{train.deepspeed_config} contradicts this run's config; take these keys out of it,"
            ' set them to "auto", or change the run\'s:\n'
            + "\n".join(f"  - {line}" for line in wrong)
        )
    return merged(ours, {key: value for key, value in theirs.items() if key not in _OURS_ALONE})


def check_keys(config: dict[str, Any], path: str, parse: Callable[[dict[str, Any]], Any]) -> None:
    """Raise ConfigError where DeepSpeed cannot read the config, or never asks for one of its keys.

    `parse` is DeepSpeed's own reading, which checks what is inside of most blocks and passes over a
    key at the top that it does not know, such as `zero_optimisation`.
    """
    asked = _Asked(config)
    try:
        parse(asked)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"train.deepspeed_config: DeepSpeed cannot use {path}: {error}; mend the file, or leave"
            " the key out"
        ) from None
    unknown = [key for key in config if key not in asked.keys_asked]
    if unknown:
        known = sorted(map(str, asked.keys_asked))
        lines = []
        for key in unknown:
            near = get_close_matches(key, known, n=1)
            lines.append(f"  - {key}: " + (f"did you mean '{near[0]}'?" if near else "no such key"))
        raise ConfigError(
            f"train.deepspeed_config: {path} has keys that DeepSpeed does not know, so they would"
            " do nothing:\n" + "\n".join(lines)
        )


class _Asked(dict[str, Any]):
    """A mapping that remembers which keys it was asked for, also through a shallow copy."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.keys_asked: set[Any] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self.keys_asked.add(key)
        return super().__contains__(key)

    def keys(self) -> Any:  # `key in values.keys()`
        return self


def _read(path: Path) -> dict[str, Any]:
    """Return a DeepSpeed file's mapping."""
    if not path.is_file():
        raise ConfigError(f"train.deepspeed_config names {path}, which is no file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of JSON, of UTF-8, of a number's digits
        raise ConfigError(f"train.deepspeed_config: {path} is not valid JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"train.deepspeed_config: {path} is {_TOO_DEEP}") from None
    if depth_of(values) >= MOST_DEPTH:
        raise ConfigError(f"train.deepspeed_config: {path} is {_TOO_DEEP}")
    if not isinstance(values, dict):
        raise ConfigError(
            f'train.deepspeed_config: {path} must hold an object, such as {{"zero_optimization":'
            ' {"reduce_bucket_size": 5e8}}'
        )
    return values


def _contradictions(
    theirs: dict[str, Any], ours: dict[str, Any], train: TrainConfig, optim: OptimConfig
) -> list[str]:
    """Return one line per value of the file that differs from what this run's config gives."""
    fixed: list[tuple[str, Any, str]] = [
        ("train_batch_size", train.batch_rows, "train.batch_rows"),
        (
            "train_micro_batch_size_per_gpu",
            ours["train_micro_batch_size_per_gpu"],
            "train.batch_rows / ranks / micro-batches",
        ),
        (
            "gradient_accumulation_steps",
            ours["gradient_accumulation_steps"],
            "train.micro_batch_rows",
        ),
        ("gradient_clipping", optim.clip, "optim.clip"),
        ("fp16.enabled", train.precision == "fp16", "train.precision"),
        ("bf16.enabled", train.precision == "bf16", "train.precision"),
        ("torch_autocast.enabled", False, "train.precision enters autocast itself"),
        ("amp.enabled", False, "train.precision"),
        ("zero_optimization.stage", ours["zero_optimization"]["stage"], "train.zero_stage"),
        ("zero_optimization.offload_optimizer.device", train.offload, "train.offload"),
        ("zero_optimization.offload_param.device", "none", "only zero_stage 3 has it"),
        ("zero_allow_untested_optimizer", True, "the optimizer is torch's AdamW"),
        ("zero_force_ds_cpu_optimizer", False, "the optimizer is torch's AdamW"),
        ("optimizer.type", "AdamW", "optim"),
        ("optimizer.params.lr", optim.lr, "optim.lr"),
        ("optimizer.params.betas", list(optim.betas), "optim.betas"),
        ("optimizer.params.eps", optim.eps, "optim.eps"),
        ("optimizer.params.weight_decay", optim.weight_decay, "optim.weight_decay"),
        ("scheduler.type", "none", "optim.warmup_epochs, then a cosine"),
    ]
    lines = []
    for key, wanted, origin in fixed:
        value = _at(theirs, key)
        if value is not _MISSING and value != wanted:
            lines.append(f"{key}: {value} in the file, {wanted} here ({origin})")
    return lines


def _at(values: Any, key: str) -> Any:
    """Return the value at a dotted key, or _MISSING."""
    for step in key.split("."):
        if not isinstance(values, dict) or step not in values:
            return _MISSING
        values = values[step]
    return values


def _without_auto(values: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping without values that are "auto" (ours) or null, at any depth."""
    kept = {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return {key: value for key, value in kept.items() if value is not None and value != "auto"}
