"""An engine of one rank without DeepSpeed: torch's AdamW, and no update that waits for the device.

Clipping and the refusal of gradients that are not finite are part of the update itself: fused AdamW
divides by `grad_scale` as it reads a gradient, and changes nothing where `found_inf` is set. Both
are tensors, as are the learning rates, so that an update can be captured in a CUDA graph. Once a
gradient was not finite, no later update changes anything either: whoever reads the flag some steps
late finds the weights as they were before the first bad step.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fusionnet.config.train import OptimConfig
from fusionnet.train.world import World

_MOMENTS = ("exp_avg", "exp_avg_sq")
_NORM_EPS = 1e-6  # as torch's clip_grad_norm_


class PlainEngine:
    """A model on one rank: forward, backward, update, and its state by parameter name."""

    tolerates_overflow = False

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        world: World,
        optim: OptimConfig,
        num_micro_batches: int,
    ) -> None:
        """`groups` are AdamW parameter groups with a `name` each; empty ones are left out."""
        assert world.size == 1, "ranks would not average their gradients"
        self.world = world
        self.model = model
        device = world.device
        self._num_micro_batches = num_micro_batches
        self._num_read = 0  # micro-batches of the present step
        self._clip = optim.clip
        self._norm = torch.zeros((), device=device)
        self._overflow = torch.zeros((), device=device)  # 1 from the first bad gradient on
        self.num_updates = torch.zeros((), dtype=torch.int64, device=device)
        groups = [
            {**group, "lr": torch.tensor(group["lr"], device=device)}
            for group in groups
            if group["params"]
        ]
        self._adam = torch.optim.AdamW(
            groups,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        for _, parameter in self._trainable():  # not at the first update, which may be captured
            moments = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
            self._adam.state[parameter] = {"step": torch.zeros((), device=device), **moments}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model's forward."""
        return self.model(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro-batch's share of the step's loss."""
        loss.backward()

    def step(self) -> None:
        """Count one micro-batch; after the last one of a step, clip and update."""
        self._num_read += 1
        if self._num_read < self._num_micro_batches:
            return
        self._num_read = 0
        gradients = [each.grad for _, each in self._trainable() if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._norm.copy_(norm)
        self._overflow.copy_(torch.maximum(self._overflow, (~norm.isfinite()).float()))
        scale = ((norm + _NORM_EPS) / self._clip).clamp_min(1.0)
        # as torch's GradScaler hands them over
        vars(self._adam).update(grad_scale=scale, found_inf=self._overflow)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.num_updates += self._overflow == 0

    def hold_updates(self, held: bool) -> None:
        """Let updates change nothing from now on, or let them go on."""
        self._overflow.fill_(float(held))

    def overflowed(self) -> bool:
        """Return whether a gradient was not finite; waits for the device."""
        return bool(self._overflow)

    def gradient_norm(self) -> float:
        """Return the gradient norm of the last update, before clipping; waits for the device."""
        return float(self._norm)

    def set_learning_rates(self, rates: dict[str, float]) -> None:
        """Set the learning rate of each parameter group, by group name."""
        for group in self._adam.param_groups:
            group["lr"].fill_(rates[group["name"]])

    def state(self) -> dict[str, Any]:
        """Return fp32 parameters, Adam moments and step by parameter name, on the CPU."""
        named = dict(self._trainable())
        states = {name: self._adam.state[parameter] for name, parameter in named.items()}
        moments = {
            moment: {name: _copy(state[moment]) for name, state in states.items()}
            for moment in _MOMENTS
        }
        return {
            "parameters": {name: _copy(parameter) for name, parameter in named.items()},
            **moments,
            "step": int(next(iter(states.values()))["step"]),
            "loss_scaler": {},
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of any engine; no tensor moves."""
        for name, parameter in self._trainable():
            parameter.copy_(state["parameters"][name])
            own = self._adam.state[parameter]
            own["step"].fill_(state["step"])
            for moment in _MOMENTS:
                own[moment].copy_(state[moment][name])

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
