"""`nn.Linear` for training steps on a GPU: fewer casts around the same products.

Under autocast a weight's gradient is computed in half precision and cast; here the product gives it
in fp32 at once, and the bias's sum too. All weights can be cast in one launch (`cast_at_once`), and
layers of one input be one product (`side_by_side`). Everywhere else (CPUs, torch.compile,
evaluation, no autocast) it is `nn.Linear`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from embedcache.kernels import has_kernels


@contextmanager
def cast_at_once(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the products inside read one cast of all weights of the module's `Linear`s.

    One launch instead of two for each of them; no weight may change before the block ends.
    """
    layers = [each for each in module.modules() if isinstance(each, Linear)]
    weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
    casts = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(casts, weights)
    for layer, weight, bias in zip(layers, casts[::2], casts[1::2], strict=True):
        layer.cast = (weight, bias)
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


class Linear(nn.Linear):
    """`nn.Linear`, whose weights' gradients are fp32 in training on a GPU (see the module)."""

    cast: tuple[Tensor, Tensor] | None = None  # of weight and bias, by `cast_at_once`

    def forward(self, x: Float[Tensor, "*rows width_in"]) -> Float[Tensor, "*rows width_out"]:
        """Return x W^T + b in the dtype of products."""
        return side_by_side(x, [self]) if in_mixed_training(x) else super().forward(x)


def in_mixed_training(x: Float[Tensor, "*shape"]) -> bool:
    """Return whether products of x are for a training step under autocast on a GPU."""
    return (
        not torch.compiler.is_compiling()
        and has_kernels(x)
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled(x.device.type)
    )


def side_by_side(
    x: Float[Tensor, "*rows width_in"], layers: Sequence[Linear]
) -> Float[Tensor, "*rows all_out"]:
    """Return the layers' x W^T + b side by side, as one product in the dtype of products."""
    parameters = [each for layer in layers for each in (layer.weight, layer.bias)]
    casts = [each for layer in layers for each in layer.cast or ()] or parameters
    assert len(casts) == len(parameters), "all layers are cast at once, or none"
    dtype = torch.get_autocast_dtype(x.device.type)
    weight, bias = (_stacked(casts[kind::2]).detach().to(dtype) for kind in (0, 1))
    return _Product.apply(x, weight, bias, *parameters)


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Product(torch.autograd.Function):
    """x W^T + b, whose W and b are casts of parameters, stacked.

    Those are W_0, b_0, W_1 and so on; theirs are the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*rows width_in"],
        weight: Float[Tensor, "all_out width_in"],
        bias: Float[Tensor, " all_out"],
        *parameters: nn.Parameter,
    ) -> Float[Tensor, "*rows all_out"]:
        cast = x.to(weight.dtype)
        ctx.save_for_backward(cast, weight)
        ctx.widths = [len(each) for each in parameters[1::2]]
        ctx.input_dtype = x.dtype
        return F.linear(cast, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*rows all_out"]) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = (gradient @ weight).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        stacked = _of_weights(gradient, x)
        of_layers = zip(*(each.split(ctx.widths) for each in stacked), strict=True)
        return of_x, None, None, *(each for of_layer in of_layers for each in of_layer)


def _of_weights(
    gradient: Float[Tensor, "*rows width_out"], x: Float[Tensor, "*rows width_in"]
) -> tuple[Float[Tensor, "width_out width_in"], Float[Tensor, " width_out"]]:
    """Return the fp32 gradients of weight and bias."""
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    if gradient.is_cuda:
        of_weight = torch.mm(gradient.t(), x, out_dtype=torch.float32)
    else:  # the interpreter's
        of_weight = gradient.t().float() @ x.float()
    return of_weight, gradient.sum(0, dtype=torch.float32)
