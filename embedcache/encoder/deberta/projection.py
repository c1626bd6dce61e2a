"""Frozen projections of one input, with LoRA beside them: cast once, multiplied once, their input's
gradient summed inside one product.

PEFT runs each adapted projection by itself: it casts the input again, drops fp32 copies, and adds
three input gradients one after another. `project` computes the same functions of the same PEFT
modules (whose weights it reads): query, key and value are one product with their weights side by
side. Each projection has a dropout mask of its own, as in PEFT; a mask acts on the cast input, and
1 / (1 - p) on the product with A, which is rank r. Anything but plain LoRA (DoRA, merged or
switched-off adapters) runs as PEFT runs it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from embedcache.encoder.dropout import keep_mask, masked


class CastWeights:
    """Weights and biases of frozen layers in the compute dtype, side by side; made once, made again
    where the originals moved or changed.

    They are copies beside the model: its parameters, their names, digest and files stay as they
    are.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, ...], _Copy] = {}

    def __call__(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the parts, one under another, in `dtype`; a single part that has it already is
        returned itself.
        """
        if len(parts) == 1 and parts[0].dtype == dtype:
            return parts[0]
        key = tuple(id(part) for part in parts)
        state = (dtype, *((part.data_ptr(), part._version, part.device) for part in parts))
        found = self._copies.get(key)
        if found is None or found.state != state:
            found = self._copies[key] = _Copy(
                tuple(parts), state, torch.cat([part.detach().to(dtype) for part in parts])
            )
        return found.tensor

    @property
    def num_bytes(self) -> int:
        """What the copies take."""
        return sum(copy.tensor.nbytes for copy in self._copies.values())


class _Copy(NamedTuple):
    parts: tuple[Tensor, ...]  # held, so that no other tensor gets their ids
    state: tuple[object, ...]
    tensor: Tensor


def project(
    casts: CastWeights, x: Float[Tensor, "N I"], modules: Sequence[nn.Module]
) -> Float[Tensor, "N O"]:
    """Return the modules' outputs for x side by side; they are `nn.Linear` or PEFT's LoRA around
    one.
    """
    if not all(_is_plain(module) for module in modules):
        return torch.cat([module(x) for module in modules], dim=1)
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
    bases = [module.base_layer if isinstance(module, LoraLinear) else module for module in modules]
    weight, bias = (
        casts([base.weight for base in bases], dtype),
        casts([base.bias for base in bases], dtype),
    )
    adapters = [
        _adapter_of(module) if isinstance(module, LoraLinear) else None for module in modules
    ]
    if not any(adapters):
        return F.linear(x.to(dtype), weight, bias)
    widths = [base.out_features for base in bases]
    matrices = [
        matrix for adapter in adapters if adapter is not None for matrix in (adapter.a, adapter.b)
    ]
    settings = [None if adapter is None else (adapter.scale, adapter.p) for adapter in adapters]
    return _Adapted.apply(x, weight, bias, widths, settings, *matrices)


class _Adapter(NamedTuple):
    a: Float[Tensor, "r I"]
    b: Float[Tensor, "O r"]
    scale: float
    p: float  # of dropout, now


def _adapter_of(module: LoraLinear) -> _Adapter:
    (name,) = module.active_adapters
    dropout = module.lora_dropout[name]
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return _Adapter(
        module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]), p
    )


def _is_plain(module: nn.Module) -> bool:
    """Return whether the module is a frozen `nn.Linear` with a bias, alone or under one plain LoRA
    adapter that is switched on.
    """
    if isinstance(module, LoraLinear):
        names = module.active_adapters
        usual = (
            len(names) == 1
            and names[0] in module.lora_A
            and not module.lora_variant
            and not module.lora_bias[names[0]]
        )
        return (
            usual
            and not module.disable_adapters
            and not module.merged
            and not module.fan_in_fan_out
            and _is_plain(module.base_layer)
        )
    return (
        type(module) is nn.Linear
        and module.bias is not None
        and not (module.weight.requires_grad or module.bias.requires_grad)
    )


class _Adapted(torch.autograd.Function):
    """`x W^T + b` with `s_i B_i A_i drop_i(x)` added to the i-th of the projections that lie side
    by side in W; settings hold (s_i, p_i).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        widths: list[int],
        settings: list[tuple[float, float] | None],
        *matrices: Tensor,
    ) -> Tensor:
        cast, rest = x.to(weight.dtype), iter(matrices)
        y = F.linear(cast, weight, bias)
        saved, factors = [cast, weight], []
        for part, setting in zip(y.split(widths, dim=1), settings, strict=True):
            if setting is None:
                factors.append(None)
                continue
            scale, p = setting
            a, b = next(rest).to(weight.dtype), next(rest).to(weight.dtype)
            keep = keep_mask(cast.shape, p, cast.device) if p else None
            low = (cast if keep is None else masked(cast, keep)) @ a.t()  # [N, r]
            factors.append(scale / (1 - p))
            part.addmm_(low, b.t(), alpha=factors[-1])
            saved += [a, b, low, keep]
        ctx.save_for_backward(*saved)
        ctx.widths, ctx.factors, ctx.input_dtype, ctx.dtypes = (
            widths,
            factors,
            x.dtype,
            [matrix.dtype for matrix in matrices],
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cast, weight, *rest = ctx.saved_tensors
        of_input = (gradient @ weight).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        of_matrices, remaining = [], iter(rest)
        for part, factor in zip(gradient.split(ctx.widths, dim=1), ctx.factors, strict=True):
            if factor is None:
                continue
            a, b, low, keep = (next(remaining) for _ in range(4))
            of_low = (part @ b).mul_(factor)  # [N, r]
            of_matrices += [
                of_low.t() @ (cast if keep is None else masked(cast, keep)),
                (part.t() @ low).mul_(factor),
            ]
            if of_input is not None:
                through = of_low @ a
                of_input += through if keep is None else masked(through, keep)
        return (
            of_input,
            None,
            None,
            None,
            None,
            *(found.to(dtype) for found, dtype in zip(of_matrices, ctx.dtypes, strict=True)),
        )
