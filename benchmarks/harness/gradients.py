"""The check before any timing: gradients of every mode are those of per-row encoding."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.harness.setting import DROPOUT_OFF, experiment_of, prefix_layer
from benchmarks.harness.stepper import MODES, Mode, batch_of, change_source, device
from embedcache.cache.reader import open_cache
from fusionnet.assemble import build_model, make_sources
from fusionnet.model.trainable import TrainableModel
from fusionnet.train.engine import Engine
from fusionnet.train.step import optimizer_step
from fusionnet.workflow.recipes import recipe_of

TOLERANCE = 1e-5  # relative to the gradient's norm


class GradientEngine(Engine):
    """Stands for DeepSpeed where only gradients are wanted.

    Backward is torch's own, and nothing is updated.
    """

    def __init__(self, model: TrainableModel) -> None:
        self.world, self.model = SimpleNamespace(rank=0, size=1, device=device()), model

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model's forward."""
        return self.model(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate."""
        loss.backward()

    def step(self) -> None:
        """Update nothing."""

    def overflowed(self) -> bool:
        """Return that nothing was."""
        return False

    tolerates_overflow = False


def gradient_errors(
    folder: Path, num_rows: int = 24, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Return |gradient - naive gradient| / |naive gradient| over all trainable weights.

    Dropout is off, precision fp32. `prefix` adapts fewer layers than the others, and is compared
    with per-row encoding of a model that adapts the same. Raises AssertionError above 1e-5.
    """
    modes = ("naive_longest", "naive_128", "naive_bucketed", "per_microbatch", "per_step")
    errors = _errors(folder, modes, overrides, num_rows)
    first_layer = f"encoder.lora.first_layer={prefix_layer(folder)}"
    errors |= _errors(folder, ("naive_longest", "prefix"), [*overrides, first_layer], num_rows)
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise AssertionError(
            f"gradients differ from naive per-row encoding: {wrong}; nothing was timed"
        )
    return errors


def _errors(
    folder: Path, modes: Sequence[str], overrides: Sequence[str], num_rows: int
) -> dict[str, float]:
    """Return the error of each mode against the first."""
    plain, *others = (_gradient(folder, MODES[name], overrides, num_rows) for name in modes)
    return {
        name: float((other - plain).norm() / plain.norm())
        for name, other in zip(modes[1:], others, strict=True)
    }


def _gradient(
    folder: Path, mode: Mode, overrides: Sequence[str], num_rows: int
) -> Float[Tensor, " W"]:
    """Return the gradient of one step of two micro-batches, over all W trainable weights."""
    experiment = experiment_of(folder, mode.encoding, "fp32", [*DROPOUT_OFF, *overrides])
    cache = open_cache(experiment.cache.path)
    recipe = recipe_of(experiment, cache)
    model = build_model(recipe, cache.layout, cache.scaling).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # fresh adapters have B = 0, which would hide A's gradient
                parameter.normal_(std=0.02)
    sources = make_sources(model, recipe, cache, pad_to=mode.pad_to)
    change_source(model, mode)
    halves = [slice(0, num_rows // 2), slice(num_rows // 2, num_rows)]
    optimizer_step(GradientEngine(model), sources, batch_of(cache, num_rows), halves, 0, 0)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in gradients])
