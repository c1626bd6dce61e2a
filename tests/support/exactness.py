"""How far a kernel may be from float64: twice as far as its plain version."""

import torch
from torch import Tensor


def assert_close(
    found: Tensor, plain: Tensor, exact: Tensor, rounding: torch.dtype, factor: float = 2.0
) -> None:
    """Both errors are taken over the whole tensor; the type's rounding is granted to both, or one
    lucky plain sum would decide.
    """
    assert found.dtype == plain.dtype
    assert found.shape == exact.shape
    last_place = torch.finfo(rounding).eps / 4 * exact.norm()
    error = (found.double() - exact).norm()
    assert error <= factor * max((plain.double() - exact).norm(), last_place), f"{error:.2e}"
    if exact.norm() > 0:
        assert error < 0.1 * exact.norm(), "zeros would pass"
