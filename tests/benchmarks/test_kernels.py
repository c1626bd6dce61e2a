"""The kernel benchmark refuses a wrong result, and its tables and figure hold every case."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.harness.publish import markdown, picture
from benchmarks.kernel_cases import OPERATIONS, make_case
from benchmarks.kernels import COLOURS, TOLERANCE, check, report, timed

CPU = torch.device("cpu")
# torch.compile imports what uses it
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_result_is_not_timed(name: str) -> None:
    case = make_case(name, 64, 5, torch.float32, CPU)
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    right = case.calls["eager"]
    assert 0 <= check(case, right, leaves, TOLERANCE[torch.float32]) < 1e-5

    class Forgetful(torch.autograd.Function):
        """The right output, and zeros for gradients."""

        @staticmethod
        def forward(ctx: object, *inputs: Tensor) -> Tensor:
            return right(*inputs)

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.zeros_like(leaf) for leaf in leaves)

    for wrong in (
        lambda *inputs: 0 * right(*inputs),
        lambda *inputs: right(*inputs) * 1.001,
        Forgetful.apply,
    ):
        with pytest.raises(AssertionError, match=r"nothing was timed|were dropped"):
            check(case, wrong, leaves, TOLERANCE[torch.float32])


def test_times_have_a_spread() -> None:
    spread = timed(lambda: torch.ones(10).sum(), CPU, 0.0)
    assert 0 < spread["low_s"] <= spread["median_s"] <= spread["high_s"]
    assert spread["calls"] >= 7


def test_tables_and_figure(tmp_path: Path) -> None:
    result = {
        part: {"median_s": 2e-6, "low_s": 1e-6, "high_s": 3e-6, "GB_per_s": 5.0}
        for part in ("forward", "both")
    }
    cases = [
        {
            "operation": name,
            "B": rows,
            "U": 0 if name == "multitask_loss" else 21,
            **dict.fromkeys(COLOURS, result),
        }
        for name in OPERATIONS
        for rows in (7, 77)
    ]
    stamp = {
        "hardware": {"gpu": "a GPU", "cores": 2, "processor": "p"},
        "command": "c",
        "commit": "d",
        "date": "e",
        "versions": {"torch": "2"},
    }
    found = {**stamp, "cases": cases, "device": "cuda", "precision": "bf16"}
    text = markdown(report(found), found)
    assert text.count("| 2 (1 to 3) [5.0] ") == len(cases) * len(COLOURS) * 2
    picture(report(found), tmp_path / "figure.json")
    assert (tmp_path / "figure.png").stat().st_size > 1000
