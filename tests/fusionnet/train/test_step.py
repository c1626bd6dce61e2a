"""Every encoding mode, number of ranks and accumulation gives the parameters of naive per-row AdamW
in plain PyTorch (dropout off, fp32).
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import Forks

from embedcache.cache.reader import open_cache
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.tensors import load_rows
from fusionnet.train.schedule import make_schedule
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.recipes import recipe_of

WORKER = Path(__file__).with_name("step_worker.py")
NUM_STEPS = 4
MODES = ("naive", "per_microbatch", "per_step", "frozen")
Case = tuple[str, int, int, tuple[str, ...]]
CASES: list[Case] = [
    (mode, accumulation, NUM_STEPS, ()) for mode in MODES for accumulation in (1, 4)
]
ENGINES = [("train.zero_stage=0",), ("train.zero_stage=1",), ("train.zero_stage=2",)]
ENGINES += [(*stage, "train.offload=cpu") for stage in ENGINES[1:]]
ENGINE_CASES: list[Case] = [
    ("per_step", accumulation, NUM_STEPS, engine) for engine in ENGINES for accumulation in (1, 4)
]
FEWER_ENGINE_CASES = ENGINE_CASES[:2] + ENGINE_CASES[3::2]
OVERRIDES = [
    "encoder.lora.dropout=0.0",
    "model.dropout=0.0",
    # it multiplies the encoder's rounding; a case of its own below
    "model.standardize_vectors=false",
    *(f"tasks.{task}.head_dropout=0.0" for task in range(3)),
    "optim.lr=0.003",
    "optim.lr_encoder=0.01",
    "optim.lr_log_variance=0.01",
    "optim.warmup_epochs=0",
    "train.batch_rows=35",
]


def plain_pytorch(
    config: Path, mode: str, num_steps: int = NUM_STEPS, extra: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Return the parameters after some steps of per-row encoding, the whole step as one batch,
    torch's own AdamW and clipping.
    """
    experiment = load_experiment(config, [*OVERRIDES, *extra, f"encoder.mode={mode}"])
    cache = open_cache(experiment.cache.path)
    recipe = recipe_of(experiment, cache)
    model = build_model(recipe, cache.layout, cache.scaling)
    sources = make_sources(model, recipe, cache)
    rows = load_rows(cache, "train")
    plan = StepPlan(rows.num_rows, experiment.train.batch_rows, 1, 1, experiment.train.seed)
    schedule = make_schedule(experiment.optim, plan.steps_per_epoch, experiment.train.epochs)
    groups = [group for group in model.parameter_groups(experiment.optim) if group["params"]]
    adam = torch.optim.AdamW(
        groups,
        betas=experiment.optim.betas,
        eps=experiment.optim.eps,
        weight_decay=experiment.optim.weight_decay,
    )
    model.train()
    for step, positions in zip(range(num_steps), plan.steps(0), strict=False):
        batch = rows.take(positions)
        read = [source.read(batch.string_id[:, column]) for column, source in enumerate(sources)]
        vectors, index = (
            [each.vectors for each in read],
            torch.stack([each.vector_index for each in read], dim=1),
        )
        total = model(
            vectors,
            replace(batch.inputs, string_id=index),
            batch.targets,
            batch.weight,
            batch.loss_denominators(),
            1.0,
        ).total
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for group in groups for p in group["params"]], experiment.optim.clip
        )
        for group in adam.param_groups:
            group["lr"] = schedule.rates(step)[group["name"]]
        adam.step()
    return model.trainable_state()


class Workers:
    """Trains cases on some ranks."""

    def __init__(self, forks: Forks, config: Path, output: Path) -> None:
        self.forks, self.config, self.output = forks, config, output

    def __call__(
        self, world_size: int, cases: list[Case], extra: tuple[str, ...] = ()
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Train the cases on `world_size` processes and return what rank 0 saved."""
        overrides = json.dumps([*OVERRIDES, *extra])
        words = (self.config, self.output, overrides, json.dumps(cases))
        self.forks.run_ranks(WORKER, world_size, *words)
        return torch.load(self.output, weights_only=True)


@pytest.fixture
def run_workers(forks: Forks, tiny_experiment: Path, tmp_path: Path) -> Workers:
    return Workers(forks, tiny_experiment, tmp_path / "results.pt")


@pytest.fixture(scope="module")
def references(tiny_experiment: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "initial": plain_pytorch(tiny_experiment, "naive", num_steps=0),
        "live": plain_pytorch(tiny_experiment, "naive"),
        "frozen": plain_pytorch(tiny_experiment, "frozen"),
    }


@pytest.mark.dist
@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        (1, CASES + ENGINE_CASES),
        (2, CASES[1::2] + FEWER_ENGINE_CASES),
        (3, ENGINE_CASES[1::4]),
    ],
)
def test_every_mode_and_engine_equals_naive_adamw(
    world_size: int,
    cases: list[Case],
    references: dict[str, dict[str, torch.Tensor]],
    run_workers: Workers,
) -> None:
    results = run_workers(world_size, cases)
    assert len(results) == len(cases)
    initial = references["initial"]
    for case, result in results.items():
        assert_same_motion(
            case,
            result["state"],
            references["frozen" if case.startswith("frozen") else "live"],
            initial,
        )
    without_zero = {
        case: result["reduced"] for case, result in results.items() if "train.zero_stage=0" in case
    }
    weights = sum(value.numel() for value in initial.values())
    assert without_zero
    for case, reduced in without_zero.items():  # a rank that is alone averages no gradients
        assert (reduced < 100) if world_size == 1 else (reduced >= NUM_STEPS * weights), (
            f"{case}: {reduced} numbers were summed over ranks"
        )


@pytest.mark.dist
def test_modality_tokens_equal_naive_adamw(tiny_experiment: Path, run_workers: Workers) -> None:
    extra = ("model.fusion=modality",)
    wanted, initial = (
        plain_pytorch(tiny_experiment, "naive", steps, extra) for steps in (NUM_STEPS, 0)
    )
    for case, result in run_workers(2, [("per_step", 3, NUM_STEPS, ())], extra).items():
        assert_same_motion(case, result["state"], wanted, initial)
    for part in ("lora_B", "query", "key", "kinds", "cls"):
        assert any(
            part in name and (wanted[name] - initial[name]).abs().max() > 1e-3 for name in wanted
        ), part


@pytest.mark.dist
def test_members_equal_naive_adamw(tiny_experiment: Path, run_workers: Workers) -> None:
    extra = ("model.members=3", "model.numeric=ple")
    wanted, initial = (
        plain_pytorch(tiny_experiment, "naive", steps, extra) for steps in (NUM_STEPS, 0)
    )
    for case, result in run_workers(2, [("per_step", 3, NUM_STEPS, ())], extra).items():
        assert_same_motion(case, result["state"], wanted, initial)
    for part in ("lora_B", "members", "heads", "numeric_embedding"):
        assert any(
            part in name and (wanted[name] - initial[name]).abs().max() > 1e-3 for name in wanted
        ), part


@pytest.mark.dist
def test_standardised_vectors_equal_naive_adamw(
    tiny_experiment: Path, run_workers: Workers
) -> None:
    extra = ("model.standardize_vectors=true",)
    wanted, initial = (
        plain_pytorch(tiny_experiment, "naive", steps, extra) for steps in (NUM_STEPS, 0)
    )
    for case, result in run_workers(2, [("per_step", 3, NUM_STEPS, ())], extra).items():
        assert_same_motion(case, result["state"], wanted, initial, tolerance=2e-3)


def assert_same_motion(
    case: str,
    found: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    initial: dict[str, torch.Tensor],
    tolerance: float = 2e-4,
) -> None:
    """Adam divides by the gradient's own size, so an element with almost no gradient turns rounding
    into motion: whole tensors are compared.
    """
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error, moved = (found[name] - value).norm(), (value - initial[name]).norm()
        assert error <= tolerance * moved, (
            f"{case} {name}: off by {error / moved:.1e} of its motion"
        )


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_prefix_cache_equals_naive_adamw_of_the_top_layers(
    world_size: int, tiny_experiment: Path, tmp_path: Path, run_workers: Workers
) -> None:
    extra = ("encoder.lora.first_layer=1", f"cache.path={tmp_path / 'prefix.zarr'}")
    experiment = load_experiment(tiny_experiment, [*extra, "encoder.mode=prefix"])
    build_experiment(experiment)
    wanted, initial = (
        plain_pytorch(tiny_experiment, "naive", steps, extra) for steps in (NUM_STEPS, 0)
    )
    assert not any("layer.0." in name for name in wanted)
    for case, result in run_workers(
        world_size, [("prefix", n, NUM_STEPS, ()) for n in (1, 3)], extra
    ).items():
        assert_same_motion(case, result["state"], wanted, initial)


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_that_share_the_strings_equal_naive_adamw(
    world_size: int, references: dict[str, dict[str, torch.Tensor]], run_workers: Workers
) -> None:
    # 7 and 3 distinct strings on 2 and 3 ranks; and with a budget of one string, which encodes
    # everything twice.
    shard, budget = "encoder.encode_sharding=shard", "encoder.memory_budget_gib=1e-9"
    cases: list[Case] = [
        ("per_step", 4, NUM_STEPS, (shard,)),
        ("per_step", 1, NUM_STEPS, (shard, budget)),
    ]
    results = run_workers(world_size, cases)
    assert len(results) == len(cases)
    for case, result in results.items():
        assert_same_motion(case, result["state"], references["live"], references["initial"])


@pytest.mark.dist
def test_fp16_moves_as_fp32_does(
    tiny_experiment: Path, references: dict[str, dict[str, torch.Tensor]], run_workers: Workers
) -> None:
    # The loss scale is on every micro-batch's loss; were it taken out of some, the step's direction
    # would be that of the other rows alone.
    initial, wanted = references["initial"], references["live"]
    results = run_workers(1, [("per_step", 4, NUM_STEPS, ())], ("train.precision=fp16",))
    found = results["per_step/4"]["state"]
    for part in ("lora_B", "network."):  # A's first gradient is zero, and fp16 rounds the next ones
        names = [name for name in wanted if part in name]
        moved, off = (
            torch.cat([(state[name] - start[name]).flatten() for name in names])
            for state, start in ((wanted, initial), (found, wanted))
        )
        assert off.norm() < 0.25 * moved.norm(), (
            f"{part}: off by {off.norm() / moved.norm():.2f} of its motion"
        )


def test_lora_moves_far_in_the_reference(
    tiny_experiment: Path, references: dict[str, dict[str, torch.Tensor]]
) -> None:
    # Otherwise the parity above would also hold for a mode that drops the encoder's gradient.
    moved = [value.abs().max() for name, value in references["live"].items() if "lora_B" in name]
    assert moved
    assert min(moved) > 5e-3
