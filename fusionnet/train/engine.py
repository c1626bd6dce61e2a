"""The only file that knows DeepSpeed: backward, update, and a state for any ranks.

Stages. ZeRO 1 and 2 partition Adam's moments and the gradients, and may keep the moments on the
host; stage 0 averages gradients and leaves AdamW as it is. There DeepSpeed would update with a
gradient that is not finite, so its norm is looked at here first. Stage 3 is refused (see
`TrainConfig`).

Precision. fp32 and bf16 (`sizing` has settled which of them `auto` is) keep fp32 parameters and
gradients; bf16 is torch.autocast around the forward passes, entered by the model and not through
DeepSpeed's `torch_autocast`, which would also reduce gradients in bf16. fp16 is DeepSpeed's own,
with its dynamic loss scale: there is one scaler.

State. DeepSpeed's checkpoints are pickles written in place, bound to one number of ranks. We gather
fp32 parameters and Adam moments by parameter name instead, so that a checkpoint is a plain dict of
tensors (`weights_only=True`), written atomically elsewhere and resumable on any number of ranks.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from embedcache.errors import ConfigError
from fusionnet.config.train import OptimConfig, TrainConfig
from fusionnet.train.dsconfig import check_keys, deepspeed_config
from fusionnet.train.world import World

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A model under DeepSpeed: forward, backward, update, and its state by parameter name."""

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        world: World,
        train: TrainConfig,
        optim: OptimConfig,
        num_micro_batches: int,
    ) -> None:
        """`groups` are AdamW parameter groups with a `name` each.

        Empty ones are left out, since ZeRO refuses them.
        """
        check_precision(train.precision, world.device.type)
        _join_group(world)
        self.world = world
        self.model = model
        self._stage = train.zero_stage_of(world.size)
        self._fp16 = train.precision == "fp16"
        self._offloaded = train.offload == "cpu"
        self._plain_norm: Tensor | None = None
        groups = [group for group in groups if group["params"]]
        self._adam = torch.optim.AdamW(
            groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        config = deepspeed_config(
            train, optim, world.size, world.device.type != "cpu", num_micro_batches
        )
        if train.deepspeed_config is not None:
            check_keys(config, train.deepspeed_config, parsed_config)
        # whoever died while it loaded is missed here: DeepSpeed makes groups of its own, and torch
        # waits half an hour for a rank that does not come to one
        world.barrier()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=self._adam, config=config, dist_init_required=False
        )
        if self._stage == 0 and world.size == 1:
            # it would copy all gradients together and apart again, to average them with nobody's
            self._engine.enable_backward_allreduce = False
        self._make_moments(step=0)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model's forward."""
        return self._engine(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro-batch's share of the step's loss.

        Shares add up over micro-batches; DeepSpeed averages over ranks, so the caller multiplies by
        the number of ranks.
        """
        if (
            self._offloaded
            and self._engine.micro_steps % self._engine.gradient_accumulation_steps() == 0
        ):
            # Where moments are offloaded, DeepSpeed 0.19 starts a step's sum with the first
            # micro-batch's gradient; a parameter that has none there, as LoRA's
            # in mode per_step, would start with the last step's sum.
            loss = loss + 0.0 * sum(parameter.sum() for _, parameter in self._trainable())
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """Count one micro-batch; after the last one of a step, clip and update.

        Where a gradient is not finite, nothing is updated.
        """
        if self._stage == 0 and self._engine.is_gradient_accumulation_boundary():
            self._plain_norm = nn.utils.get_total_norm(
                [parameter.grad for _, parameter in self._trainable() if parameter.grad is not None]
            )
            if self.overflowed():
                return
        self._engine.step()

    def overflowed(self) -> bool:
        """Return whether the last update was skipped, on every rank, for a gradient not finite.

        ZeRO has looked already: reading its flag costs nothing.
        """
        return (
            bool(self._optimizer.overflow)
            if self._plain_norm is None
            else not bool(self._plain_norm.isfinite())
        )

    def gradient_norm(self) -> float:
        """Return the global gradient norm of the last update, before clipping."""
        return float(
            self._engine.get_global_grad_norm() if self._plain_norm is None else self._plain_norm
        )

    @property
    def tolerates_overflow(self) -> bool:
        """fp16 skips an overflowing step and lowers its scale; any other precision must stop."""
        return self._fp16

    def set_learning_rates(self, rates: dict[str, float]) -> None:
        """Set the learning rate of each parameter group, by group name."""
        for group in self._optimizer.param_groups:
            group["lr"] = rates[group["name"]]

    def state(self) -> dict[str, Any]:
        """Return fp32 parameters, Adam moments and step by parameter name (collective).

        They are plain tensors, gathered from all ranks.
        """
        tensors: dict[str, dict[str, Tensor]] = {
            "parameters": {},
            **{moment: {} for moment in _MOMENTS},
        }
        for name, parameter in self._trainable():
            tensors["parameters"][name] = self._read(parameter).detach().cpu().clone()
            for moment in _MOMENTS:
                tensors[moment][name] = self._read(parameter, moment).cpu().clone()
        return {**tensors, "step": self._adam_step(), "loss_scaler": self._scaler_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, on any number of ranks and in any ZeRO stage (collective)."""
        self._make_moments(state["step"])
        for name, parameter in self._trainable():
            value = state["parameters"][name].to(parameter.device)
            parameter.data.copy_(value)
            if self._stage > 0:
                safe_set_full_fp32_param(parameter, value)
            for moment in _MOMENTS:
                self._write_moment(parameter, moment, state[moment][name].to(parameter.device))
        for key, value in state["loss_scaler"].items():
            setattr(self._optimizer.loss_scaler, key, value)

    def _read(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """Return a parameter in fp32, or one of its moments, whole."""
        if self._stage == 0:
            return parameter if moment is None else self._adam.state[parameter][moment]
        return (
            safe_get_full_fp32_param(parameter)
            if moment is None
            else safe_get_full_optimizer_state(parameter, moment)
        )

    def _write_moment(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._stage == 0:
            self._adam.state[parameter][moment].copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _make_moments(self, step: int) -> None:
        """Give every parameter or flat partition zero Adam moments.

        The partitions' are linked to the parameters. DeepSpeed 0.19 links them after the first
        parameter group's first update, when the other groups have none yet, and never again.
        """
        owners = (
            [parameter for _, parameter in self._trainable()]
            if self._stage == 0
            else self._optimizer.single_partition_of_fp32_groups
        )
        for owner in owners:
            moments = {moment: torch.zeros_like(owner, requires_grad=False) for moment in _MOMENTS}
            self._adam.state[owner] = {
                "step": torch.tensor(float(step), device=owner.device),
                **moments,
            }
        if self._stage > 0:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        )

    def _adam_step(self) -> int:
        steps = {int(entry["step"]) for entry in self._adam.state.values()}
        assert len(steps) == 1, f"parameter groups have taken different numbers of steps: {steps}"
        return steps.pop()

    def _scaler_state(self) -> dict[str, float]:
        if not self._fp16:
            return {}
        return {
            key: value
            for key, value in vars(self._optimizer.loss_scaler).items()
            if type(value) in (int, float, bool)
        }


def _join_group(world: World) -> None:
    """Let DeepSpeed use the process group that is there, or make one of a single process."""
    os.environ.update(world.environment)  # which DeepSpeed reads
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPUs DeepSpeed would compile collectives that only its inference uses, under a lock in the
    # user's home: minutes at the first start, and a process that is killed meanwhile leaves the
    # lock behind, on which every later start waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=get_accelerator().communication_backend_name(),
        auto_mpi_discovery=False,
        verbose=False,
    )


def check_precision(precision: str, device: str) -> None:
    """Raise ConfigError if the accelerator cannot compute in this precision."""
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError(
            f"train.precision fp16 is not supported on this machine's {device}; use bf16 or fp32"
        )


def parsed_config(config: dict[str, Any]) -> DeepSpeedConfig:
    """Return DeepSpeed's reading of a config; ValueError where it refuses it."""
    try:
        return DeepSpeedConfig(config)
    except DeepSpeedConfigError as error:
        raise ValueError(str(error)) from None
