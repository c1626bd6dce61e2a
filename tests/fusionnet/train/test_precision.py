"""`train.precision: auto` is bf16 where every rank has instructions for it, and fp32 where one has
not.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError
from fusionnet.assemble import build_model
from fusionnet.experiment import load_experiment
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.sizing import settled_precision
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of

CPU = torch.device("cpu")


class TwoRanks(World):
    """This rank and one whose value is given; None: nobody may be asked."""

    def __init__(self, of_other: int | None) -> None:
        self.device = CPU
        self._of_other = of_other

    def least(self, value: int) -> int:
        assert self._of_other is not None
        return min(value, self._of_other)


def with_capabilities(monkeypatch: pytest.MonkeyPatch, **capabilities: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_one_kind_of_instruction_is_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_capabilities(monkeypatch, avx512_f=True, **{name: True})
    assert multiplies_bf16(CPU)


def test_a_cpu_without_them_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_capabilities(
        monkeypatch,
        avx512_f=True,
        avx512_vnni=True,
        avx512_bf16=False,
        amx_bf16=False,
        cpu_name="bf16",
    )
    assert not multiplies_bf16(CPU)


def test_instructions_that_torch_would_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_capabilities(monkeypatch, bf16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bf16(CPU)


def test_a_torch_that_cannot_tell_counts_as_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bf16(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_it_does_not_count(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert multiplies_bf16(torch.device("cuda")) is native


@pytest.mark.parametrize(("of_other", "precision"), [(1, "bf16"), (0, "fp32")])
def test_the_rank_that_can_do_least_decides(
    of_other: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_capabilities(monkeypatch, avx512_bf16=True)
    assert settled_precision("auto", TwoRanks(of_other)) == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_was_asked_for_is_kept_without_asking_others(precision: Any) -> None:
    assert settled_precision(precision, TwoRanks(None)) == precision


def test_a_model_is_not_built_before_its_precision_is_known(tiny_experiment: Path) -> None:
    experiment = load_experiment(tiny_experiment, ["train.precision=auto"])
    cache = open_cache(experiment.cache.path)
    recipe = recipe_of(experiment, cache)
    with pytest.raises(ConfigError, match="still auto"):
        build_model(recipe, cache.layout, cache.scaling)
