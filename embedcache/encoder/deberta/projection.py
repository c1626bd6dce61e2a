"""Frozen projections of one input, with LoRA beside them: cast once, multiplied once, their input's
gradient summed inside one product.

PEFT runs each adapted projection by itself: it casts the input again, drops fp32 copies, and adds
three input gradients one after another. `project` computes the same functions of the same PEFT
modules (whose weights it reads): query, key and value are one product with their weights side by
side. Each projection has a dropout mask of its own, as in PEFT; a mask acts on the cast input, and
1 / (1 - p) on the product with A, which is rank r. On a GPU kernels do what the adapters add.
Anything but plain LoRA (DoRA, merged or switched-off adapters) runs as PEFT runs it.

Axes of this file: K tokens, all of them or one per string; `width_in` and `width_out` are those of
one projection, `all_out` the sum over projections that lie side by side; r is LoRA's rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from embedcache.encoder.dropout import keep_mask, masked
from embedcache.kernels import HAS_TRITON, has_kernels

if HAS_TRITON:
    from embedcache.kernels import lora as kernels


class CastWeights:
    """Weights and biases of frozen layers in the compute dtype, side by side.

    A copy is made once for each dtype, and again where its originals moved or changed: one that a
    CUDA graph reads stays where it is though others ask for another dtype. Copies lie beside the
    model: its parameters, their names, digest and files stay as they are.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[object, ...], _Copy] = {}

    def __call__(
        self, originals: Sequence[Float[Tensor, "_width_out *rest"]], dtype: torch.dtype
    ) -> Float[Tensor, "all_out *rest"]:
        """Return the originals, one under another, in `dtype`.

        They are weights [width_out, width_in] or biases [width_out]; a single one that has the
        dtype already is returned itself.
        """
        if len(originals) == 1 and originals[0].dtype == dtype:
            return originals[0]
        key = (dtype, *(id(each) for each in originals))
        state = tuple((each.data_ptr(), each._version, each.device) for each in originals)
        found = self._copies.get(key)
        if found is None or found.state != state:
            tensor = torch.cat([each.detach().to(dtype) for each in originals])
            found = self._copies[key] = _Copy(tuple(originals), state, tensor)
        return found.tensor

    @property
    def num_bytes(self) -> int:
        """What the copies take."""
        return sum(copy.tensor.nbytes for copy in self._copies.values())


class _Copy(NamedTuple):
    originals: tuple[Tensor, ...]  # held, so that no other tensor gets their ids
    state: tuple[object, ...]
    tensor: Float[Tensor, "all_out *rest"]


def project(
    casts: CastWeights, x: Float[Tensor, "K width_in"], modules: Sequence[nn.Module]
) -> Float[Tensor, "K all_out"]:
    """Return the modules' outputs for x side by side.

    They are `nn.Linear` or PEFT's LoRA around one.
    """
    if not all(_is_plain(module) for module in modules):
        return torch.cat([module(x) for module in modules], dim=1)
    dtype = _compute_dtype(x)
    bases = [_linear(module) for module in modules]
    weight = casts([base.weight for base in bases], dtype)
    bias = casts([base.bias for base in bases], dtype)
    adapters = [
        _adapter_of(module) if isinstance(module, LoraLinear) else None for module in modules
    ]
    if not any(adapters):
        return F.linear(x.to(dtype), weight, bias)
    widths = [base.out_features for base in bases]
    matrices: list[Tensor] = []
    settings: list[tuple[float, float] | None] = []
    for adapter in adapters:
        settings.append(None if adapter is None else (adapter.scale, adapter.p))
        if adapter is not None:
            matrices += [adapter.a, adapter.b]
    setting = _setting_of_kernel(x, dtype, widths, settings, matrices)
    if setting is not None:
        return kernels.adapted(x, weight, bias, *setting, *matrices)
    return _Adapted.apply(x, weight, bias, widths, settings, *matrices)


def _setting_of_kernel(
    x: Float[Tensor, "K width_in"],
    dtype: torch.dtype,
    widths: list[int],
    settings: list[tuple[float, float] | None],
    matrices: list[Tensor],
) -> tuple[float, float] | None:
    """Return the projections' common (s, p) where the kernels take them, which must be alike."""
    if not has_kernels(x) or dtype == torch.float64 or len(widths) > kernels.MOST_PROJECTIONS:
        return None
    ranks = {len(a) for a in matrices[::2]}
    dtypes = {matrix.dtype for matrix in matrices}
    alike = all(len(set(each)) == 1 for each in (widths, settings, ranks, dtypes))
    return settings[0] if alike and max(ranks) <= kernels.LARGEST_RANK and len(x) else None


def _compute_dtype(x: Float[Tensor, "K width_in"]) -> torch.dtype:
    """Return the dtype that autocast gives products of x, or x's own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class _Adapter(NamedTuple):
    a: Float[Tensor, "r width_in"]
    b: Float[Tensor, "width_out r"]
    scale: float
    p: float  # of dropout, now


def _linear(module: nn.Module) -> nn.Linear:
    """Return the projection itself, without the adapter around it."""
    base = module.base_layer if isinstance(module, LoraLinear) else module
    assert isinstance(base, nn.Linear)
    return base


def _adapter_of(module: LoraLinear) -> _Adapter:
    """Return the one active adapter of a projection."""
    (name,) = module.active_adapters
    dropout = module.lora_dropout[name]
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    a = _linear(module.lora_A[name]).weight
    b = _linear(module.lora_B[name]).weight
    return _Adapter(a, b, scale=float(module.scaling[name]), p=p)


def _is_plain(module: nn.Module) -> bool:
    """Return whether the module is a frozen `nn.Linear` with a bias, alone or under plain LoRA.

    Plain is one adapter that is switched on and not merged.
    """
    if isinstance(module, LoraLinear):
        names = module.active_adapters
        return (
            len(names) == 1
            and names[0] in module.lora_A
            and not module.lora_variant
            and not module.lora_bias[names[0]]
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
    """`x W^T + b` with `s_i B_i A_i drop_i(x)` added to the i-th of the projections in W.

    The projections lie side by side; `settings` hold (s_i, p_i), or None for one without adapter,
    `matrices` A_i and B_i of those that have one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "K width_in"],
        weight: Float[Tensor, "all_out width_in"],
        bias: Float[Tensor, " all_out"],
        widths: list[int],
        settings: list[tuple[float, float] | None],
        *matrices: Float[Tensor, "_matrix_out _matrix_in"],
    ) -> Float[Tensor, "K all_out"]:
        cast = x.to(weight.dtype)
        y = F.linear(cast, weight, bias)
        remaining = iter(matrices)
        saved: list[Tensor | None] = [cast, weight]
        factors: list[float | None] = []
        for of_projection, setting in zip(y.split(widths, dim=1), settings, strict=True):
            if setting is None:
                factors.append(None)
                continue
            scale, p = setting
            a = next(remaining).to(weight.dtype)
            b = next(remaining).to(weight.dtype)
            keep = keep_mask(cast.shape, p, cast.device) if p else None
            low = (cast if keep is None else masked(cast, keep)) @ a.t()  # [K, r]
            factor = scale / (1 - p)
            of_projection.addmm_(low, b.t(), alpha=factor)
            factors.append(factor)
            saved += [a, b, low, keep]
        ctx.save_for_backward(*saved)
        ctx.widths = widths
        ctx.factors = factors
        ctx.input_dtype = x.dtype
        ctx.matrix_dtypes = [matrix.dtype for matrix in matrices]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "K all_out"]) -> tuple[Tensor | None, ...]:
        cast, weight, *of_adapters = ctx.saved_tensors
        of_input = (gradient @ weight).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        of_matrices: list[Tensor] = []
        remaining = iter(of_adapters)
        of_projections = gradient.split(ctx.widths, dim=1)
        for of_projection, factor in zip(of_projections, ctx.factors, strict=True):
            if factor is None:
                continue
            a, b, low, keep = (next(remaining) for _ in range(4))
            of_low = (of_projection @ b).mul_(factor)  # [K, r]
            of_a = of_low.t() @ (cast if keep is None else masked(cast, keep))
            of_b = (of_projection.t() @ low).mul_(factor)
            of_matrices += [of_a, of_b]
            if of_input is not None:
                through = of_low @ a
                of_input += through if keep is None else masked(through, keep)
        of_matrices = [
            found.to(dtype) for found, dtype in zip(of_matrices, ctx.matrix_dtypes, strict=True)
        ]
        return of_input, None, None, None, None, *of_matrices
