"""On a GPU: the network with kernels is the network without, every encoding mode has the naive
gradients and steps, and low precision trains.

Run with EMBEDCACHE_GPU=1 python -m pytest -m gpu; benchmarks/gpu_suite.sh does.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embedcache.build.decide import build_cache
from embedcache.cache.reader import open_cache
from embedcache.kernels import has_kernels
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.rows.tensors import load_rows
from fusionnet.workflow.recipes import recipe_of

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a GPU that EMBEDCACHE_GPU=1 leaves visible"
    ),
]
NO_DROPOUT = [
    "encoder.lora.dropout=0.0",
    "model.dropout=0.0",
    "model.standardize_vectors=false",  # it multiplies the encoder's rounding
    *(f"tasks.{task}.head_dropout=0.0" for task in range(3)),
]
STEPS = [
    *NO_DROPOUT,
    "optim.lr=0.003",
    "optim.lr_encoder=0.01",
    "optim.warmup_epochs=0",
    "train.batch_rows=35",
]
NUM_STEPS = 4


def gradients(
    experiment: Experiment, device: str = DEVICE, num_rows: int = 60
) -> dict[str, Tensor]:
    """Return the step's gradients by parameter name, from two micro-batches; LoRA's B is moved, or
    A would have none.
    """
    cache, recipe = (
        open_cache(experiment.cache.path),
        recipe_of(experiment, open_cache(experiment.cache.path)),
    )
    model = build_model(recipe, cache.layout, cache.scaling).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.to(device)
    sources = make_sources(model, recipe, cache, device)
    rows = load_rows(cache, "train", device).take(torch.arange(num_rows, device=device))
    for column, source in enumerate(sources):
        source.begin_step(rows.string_id[:, column], 2)
    for half in torch.arange(num_rows, device=device).chunk(2):
        part = rows.take(half)
        read = [source.read(part.string_id[:, column]) for column, source in enumerate(sources)]
        index = torch.stack([each.vector_index for each in read], dim=1)
        vectors = [each.vectors for each in read]
        loss = model(
            vectors,
            replace(part.inputs, string_id=index),
            part.targets,
            part.weight,
            rows.loss_denominators(),
            0.5,
        ).total
        loss.backward()
    for source in sources:
        source.end_step()
    return {
        name: parameter.grad.cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    # a gradient that is a difference of larger ones is rounded as those are
    largest = max(value.norm() for value in wanted.values())
    for name, value in wanted.items():
        allowed = tolerance * torch.maximum(value.norm(), 0.1 * largest)
        error = (found[name] - value).norm()
        assert error <= allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"
    assert any(
        "lora_A" in name and value.norm() > 1e-6 for name, value in wanted.items()
    ) or not any("lora" in name for name in wanted)


@pytest.mark.parametrize("mode", ["naive", "per_microbatch", "per_step", "frozen"])
def test_gradients_are_the_cpus(mode: str, tiny_experiment: Path) -> None:
    # The CPU runs plain PyTorch, the GPU the kernels.
    assert has_kernels(torch.zeros(1, device=DEVICE))
    experiment = load_experiment(tiny_experiment, [*NO_DROPOUT, f"encoder.mode={mode}"])
    assert_same(gradients(experiment), gradients(experiment, "cpu"), 1e-4)


@pytest.mark.parametrize("mode", ["per_microbatch", "per_step", "prefix"])
def test_gradients_of_every_mode_are_the_naive_ones(
    mode: str, tiny_experiment: Path, tmp_path: Path
) -> None:
    extra = (
        ["encoder.lora.first_layer=1", f"cache.path={tmp_path / 'prefix.zarr'}"]
        if mode == "prefix"
        else []
    )
    experiment = load_experiment(tiny_experiment, [*NO_DROPOUT, *extra, f"encoder.mode={mode}"])
    if mode == "prefix":
        build_cache(
            experiment.data,
            experiment.targets,
            experiment.split,
            experiment.encoder,
            experiment.cache,
        )
    naive = load_experiment(tiny_experiment, [*NO_DROPOUT, *extra, "encoder.mode=naive"])
    assert_same(gradients(experiment), gradients(naive), 1e-5)


def train_steps(
    config: Path, output: Path, cases: list[tuple[str, int, int]], overrides: list[str]
) -> dict[str, dict[str, Tensor]]:
    """Train on the GPU under DeepSpeed in a process of its own; cases are (mode, micro-batches,
    steps).
    """
    worker = Path(__file__).parent / "train" / "step_worker.py"
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [
        sys.executable,
        str(worker),
        str(config),
        str(output),
        json.dumps([*overrides, "train.cuda_graph=off"]),
        json.dumps([(*case, ()) for case in cases]),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(output, weights_only=True, map_location="cpu")


def test_steps_of_every_mode_are_the_naive_ones(tiny_experiment: Path, tmp_path: Path) -> None:
    cases = [
        ("naive", 1, NUM_STEPS),
        ("naive", 4, NUM_STEPS),
        ("per_microbatch", 4, NUM_STEPS),
        *(("per_step", n, NUM_STEPS) for n in (1, 4)),
    ]
    experiment = load_experiment(tiny_experiment, STEPS)
    cache = open_cache(experiment.cache.path)
    initial = build_model(
        recipe_of(experiment, open_cache(experiment.cache.path)), cache.layout, cache.scaling
    ).trainable_state()
    results = {
        case: result["state"]
        for case, result in train_steps(
            tiny_experiment, tmp_path / "results.pt", cases, STEPS
        ).items()
    }
    wanted = results.pop("naive/1")
    assert len(results) == 4
    for case, found in results.items():
        for name, value in wanted.items():
            error, moved = (found[name] - value).norm(), (value - initial[name]).norm()
            assert error <= 1e-3 * moved, f"{case} {name}: off by {error / moved:.1e} of its motion"
    assert (
        min(
            (value - initial[name]).abs().max()
            for name, value in wanted.items()
            if "lora_B" in name
        )
        > 5e-3
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_steps_with_dropout_are_finite_and_near_fp32s(
    precision: str, tiny_experiment: Path, tmp_path: Path
) -> None:
    cases, overrides = [("per_step", 2, 8)], [*STEPS[len(NO_DROPOUT) :]]
    found, plain = (
        train_steps(
            tiny_experiment, tmp_path / f"{name}.pt", cases, [*overrides, f"train.precision={name}"]
        )["per_step/2"]
        for name in (precision, "fp32")
    )
    assert found["losses"].isfinite().all()
    assert all(value.isfinite().all() for value in found["state"].values())
    # other dropout masks
    torch.testing.assert_close(found["losses"][0, 0], plain["losses"][0, 0], rtol=0.1, atol=0.05)
    assert (
        min(value.abs().max() for name, value in found["state"].items() if "lora_B" in name) > 1e-3
    ), "B starts at zero"
