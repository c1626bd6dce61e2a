"""Learning rates as a function of the step: linear warm-up, then half a cosine.

Both are stated in epochs. The specification's 1,000 warm-up and 15,000 total steps are longer than
the run (313,236 rows / 8,192 x 15 epochs is under 600 steps): the peak would never be reached.
Explicit step counts are still accepted.
"""

import math
from dataclasses import dataclass

from fusionnet.config.train import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """Warm-up and total length in optimizer steps, and the peak rate of each parameter group."""

    warmup_steps: int
    total_steps: int
    final_fraction: float
    peaks: dict[str, float]

    def factor(self, step: int) -> float:
        """Return the fraction of the peak rate at a step counted from 0.

        It is positive from the first step on, and 1 at the end of warm-up.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(
            1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        )
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each parameter group at a step."""
        return {name: peak * self.factor(step) for name, peak in self.peaks.items()}


def make_schedule(optim: OptimConfig, steps_per_epoch: int, epochs: int) -> Schedule:
    """Return the schedule of a run; explicit step counts win over epochs."""
    total = optim.total_steps or steps_per_epoch * epochs
    warmup = (
        optim.warmup_steps
        if optim.warmup_steps is not None
        else round(optim.warmup_epochs * steps_per_epoch)
    )
    peaks = {
        "encoder": optim.lr_encoder,
        "network": optim.lr,
        "log_variance": optim.lr_log_variance,
    }
    return Schedule(min(warmup, total), total, optim.final_lr_fraction, peaks)
