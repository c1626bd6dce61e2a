"""Static steps are the steps of plain AdamW on per-row encodings, they ask the host nothing, and a
gradient that is not finite is found late, but named and without harm.

On a GPU (EMBEDCACHE_GPU=1) the steps are replays of a graph, and a graph is held to the same steps
without one.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from nodes import living_gradient_nodes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError, NonFiniteLossError
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.train import static
from fusionnet.train.plain import PlainEngine
from fusionnet.train.resume import Position, checkpoint_content
from fusionnet.train.schedule import Schedule, make_schedule
from fusionnet.train.static import StaticSteps, share_of_tokens, why_no_graph, why_not_static
from fusionnet.train.tally import Tally
from fusionnet.train.world import World
from fusionnet.workflow.recipes import recipe_of

ON_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if ON_GPU else []
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EPOCHS = 2
OVERRIDES = [
    "encoder.lora.dropout=0.0",
    "model.dropout=0.0",
    "model.standardize_vectors=false",  # it multiplies the encoder's rounding
    *(f"tasks.{task}.head_dropout=0.0" for task in range(3)),
    "optim.lr=0.003",
    "optim.lr_encoder=0.01",
    "optim.lr_log_variance=0.01",
    "optim.warmup_epochs=0",
    f"train.epochs={EPOCHS}",
    "train.batch_rows=17",  # a step lacks strings, and the last ones of an epoch are a row short
]


class Ranks(World):
    """So many ranks, of which this is the first, without their process group."""

    def __init__(self, size: int = 1) -> None:
        self.rank, self.size, self.device = 0, size, DEVICE


WORLD = Ranks()


class Setting:
    """All that steps are made of, from one config."""

    def __init__(self, config: Path, *further: str, num_micro_batches: int = 1) -> None:
        self.experiment = experiment = load_experiment(config, [*OVERRIDES, *further])
        cache = open_cache(experiment.cache.path)
        self.recipe = recipe_of(experiment, cache)
        self.model = build_model(self.recipe, cache.layout, cache.scaling, DEVICE).train()
        self.sources = make_sources(self.model, self.recipe, cache, DEVICE)
        self.table = load_rows(cache, "train", DEVICE)
        num_strings = [spec.num_strings for spec in cache.layout.strings]
        self.tally = Tally(num_strings, DEVICE)
        train = experiment.train
        self.plan = StepPlan(
            self.table.num_rows, train.batch_rows, num_micro_batches, 1, train.seed
        )
        self.schedule: Schedule = make_schedule(
            experiment.optim, self.plan.steps_per_epoch, train.epochs
        )

    def engine(self) -> PlainEngine:
        groups = self.model.parameter_groups(self.experiment.optim)
        num = self.plan.num_micro_batches
        return PlainEngine(self.model, groups, WORLD, self.experiment.optim, num)

    def steps(
        self, engine: PlainEngine, table: RowTable | None = None, captured: bool = ON_GPU
    ) -> StaticSteps:
        table = table or self.table
        return StaticSteps(
            engine, self.sources, table, self.plan, self.schedule, self.tally, captured
        )


def plain_pytorch(setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    """Return the losses and the weights after EPOCHS of per-row encoding, clipping and AdamW."""
    model, optim = setting.model, setting.experiment.optim
    groups = [group for group in model.parameter_groups(optim) if group["params"]]
    weights = [weight for group in groups for weight in cast(list[Tensor], group["params"])]
    adam = torch.optim.AdamW(
        groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    losses = []
    for epoch in range(EPOCHS):
        for number, positions in enumerate(setting.plan.steps(epoch)):
            rows = setting.table.take(positions.to(DEVICE))
            read = [source.read(rows.string_id[:, c]) for c, source in enumerate(setting.sources)]
            index = torch.stack([each.vector_index for each in read], dim=1)
            vectors = [each.vectors for each in read]
            denominators = rows.loss_denominators()
            inputs = replace(rows.inputs, string_id=index)
            parts = model(vectors, inputs, rows.targets, rows.weight, denominators, 1.0)
            adam.zero_grad()
            parts.total.backward()
            torch.nn.utils.clip_grad_norm_(weights, optim.clip)
            rates = setting.schedule.rates(epoch * setting.plan.steps_per_epoch + number)
            for group in adam.param_groups:
                group["lr"] = rates[group["name"]]
            adam.step()
            losses.append(parts.total.detach())
    return losses, weights


def weights_of(setting: Setting) -> list[Tensor]:
    return [each for each in setting.model.parameters() if each.requires_grad]


def taken(steps: StaticSteps, epochs: Iterator[int]) -> list[Tensor]:
    """Take whole epochs and return each step's total loss."""
    return [losses[0].clone() for epoch in epochs for losses in steps.of_epoch(epoch)]


class Plain(NamedTuple):
    """What plain PyTorch made of a mode's rows."""

    mode: str
    losses: list[Tensor]
    initial: list[Tensor]
    weights: list[Tensor]


@pytest.fixture(scope="module", params=["per_step", "frozen"])
def plain(tiny_experiment: Path, request: pytest.FixtureRequest) -> Plain:
    naive = "naive" if request.param == "per_step" else request.param
    setting = Setting(tiny_experiment, f"encoder.mode={naive}")
    initial = [weight.detach().clone() for weight in weights_of(setting)]
    losses, _ = plain_pytorch(setting)
    return Plain(request.param, losses, initial, weights_of(setting))


@pytest.mark.slow
@pytest.mark.parametrize("num_micro_batches", [1, 3])
def test_static_steps_are_those_of_plain_adamw(
    tiny_experiment: Path, plain: Plain, num_micro_batches: int
) -> None:
    mode, losses, initial, weights = plain
    found = Setting(tiny_experiment, f"encoder.mode={mode}", num_micro_batches=num_micro_batches)
    sizes = set(found.plan.step_sizes)
    assert len(sizes) == 2, "a step should be a row short"
    present = [found.table.string_id[p.to(DEVICE), 0].unique() for p in found.plan.steps(0)]
    assert min(map(len, present)) < len(found.table.string_id[:, 0].unique()), "or none is absent"
    own = taken(found.steps(found.engine()), iter(range(EPOCHS)))
    torch.testing.assert_close(torch.stack(own), torch.stack(losses), rtol=1e-5, atol=1e-5)
    moved = 0.0
    for start, one, other in zip(initial, weights_of(found), weights, strict=True):
        motion = (other.detach() - start).norm()
        moved += float(motion)
        # AdamW divides by a gradient's own size: where that is rounding, motion is noise
        assert (one - other).norm() <= 5e-3 * motion + 1e-6
    assert moved > 1


@pytest.mark.parametrize("mode", ["per_step", "frozen"])
def test_no_gradient_node_outlives_its_step(tiny_experiment: Path, mode: str) -> None:
    # it would lie on the stream of its time, and a graph could not be captured
    setting = Setting(tiny_experiment, f"encoder.mode={mode}")
    steps = setting.steps(setting.engine())
    assert living_gradient_nodes(setting.model) == []
    steps._step()
    assert living_gradient_nodes(setting.model) == []


class NothingAsked(TorchDispatchMode):
    """Fail on every operation whose result, or its shape, the host would have to wait for."""

    FORBIDDEN = (
        *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"),
        *("unique_consecutive", "is_nonzero", "equal", "_assert_async", "repeat_interleave"),
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        assert name not in self.FORBIDDEN, f"{func} asks the host"
        if name in ("index", "index_put", "index_put_"):
            indices = [each for each in args[1] if each is not None]
            assert all(each.dtype != torch.bool for each in indices), f"{func} with a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(ON_GPU, reason="there the capture itself would fail")
@pytest.mark.parametrize(
    ("mode", "numeric", "members"),
    [("per_step", "linear", 1), ("frozen", "ple", 3), ("frozen", "periodic", 1)],
)
def test_a_static_step_asks_the_host_nothing(
    tiny_experiment: Path,
    mode: str,
    numeric: str,
    members: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = (f"model.numeric={numeric}", "model.feature_noise={first: 0.1}")
    changes = (*changes, f"model.members={members}")
    setting = Setting(tiny_experiment, f"encoder.mode={mode}", *changes)
    steps = setting.steps(setting.engine())
    steps._step()  # what is made once

    def refuse(self: Tensor, *_: Any) -> Any:
        raise AssertionError("a static step read a tensor on the host")

    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, name, refuse)
    with NothingAsked():
        steps._step()


def test_the_dispatch_mode_sees_a_question() -> None:
    for ask in (
        lambda x: x.unique(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.sum().item(),
    ):
        with pytest.raises(AssertionError), NothingAsked():
            ask(torch.arange(4))


FEW_STEPS = ("train.batch_rows=33",)  # in an epoch
BAD_STEP = 2


@pytest.fixture(scope="module")
def good(tiny_experiment: Path) -> list[Tensor]:
    """The weights before the bad step."""
    setting = Setting(tiny_experiment, *FEW_STEPS)
    steps = setting.steps(setting.engine()).of_epoch(0)
    for _ in range(BAD_STEP):
        next(steps)
    steps.close()
    return weights_of(setting)


@pytest.mark.parametrize("check_steps", [1, 4, 1000])
def test_a_bad_gradient_is_named_late_and_changes_nothing(
    tiny_experiment: Path, good: list[Tensor], check_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "CHECK_STEPS", check_steps)
    setting = Setting(tiny_experiment, *FEW_STEPS)
    victim = int(list(setting.plan.steps(0))[BAD_STEP][3])
    numeric = setting.table.numeric.clone()
    numeric[victim, 0] = torch.inf
    table = replace(setting.table, numeric=numeric)
    engine, victim_row = setting.engine(), int(table.row[victim])
    wanted = rf"step {BAD_STEP}: .*rows \[{victim_row}\]"
    with pytest.raises(NonFiniteLossError, match=wanted):
        taken(setting.steps(engine, table), iter(range(EPOCHS)))
    for one, other in zip(weights_of(setting), good, strict=True):
        assert torch.equal(one, other)
    assert engine.state()["step"] == BAD_STEP


def test_a_checkpoint_has_tensors_of_its_own(tiny_experiment: Path) -> None:
    # it is written while training goes on
    setting = Setting(tiny_experiment)
    engine = setting.engine()
    position = Position(totals=torch.ones(1, 4))
    content = checkpoint_content(engine, position, 5, "resident", {})
    names = ("model_state_dict", "optimizer_state_dict", "loss_module_state_dict", "epoch_losses")
    content = {name: content[name] for name in names}
    before = copy.deepcopy(content)
    position.totals += 1
    next(setting.steps(engine).of_epoch(0))
    assert engine.state()["step"] == 1
    torch.testing.assert_close(content, before, rtol=0, atol=0)


@pytest.mark.parametrize("members", [1, 2])
def test_a_run_goes_on_from_its_state(tiny_experiment: Path, members: int) -> None:
    dropout = ("model.dropout=0.1", "encoder.lora.dropout=0.1", *FEW_STEPS)
    dropout = (*dropout, f"model.members={members}")
    whole = Setting(tiny_experiment, *dropout)
    wanted = taken(whole.steps(whole.engine()), iter(range(EPOCHS)))
    half = Setting(tiny_experiment, *dropout)
    engine = half.engine()
    first = taken(half.steps(engine), iter([0]))
    state = engine.state()
    rest = Setting(tiny_experiment, *dropout)
    engine = rest.engine()
    engine.load_state(state)
    found = first + taken(rest.steps(engine), iter(range(1, EPOCHS)))
    assert torch.equal(torch.stack(found), torch.stack(wanted))
    for one, other in zip(weights_of(rest), weights_of(whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("overrides", "world_size", "reason"),
    [
        ((), 1, None),
        ((), 2, "2 ranks"),
        (("train.zero_stage=2",), 1, "DeepSpeed's optimizer"),
        (("encoder.mode=naive",), 1, "each micro-batch"),
        (("encoder.memory_budget_gib=0.00001",), 1, "memory is for"),
        (("train.batch_rows=2",), 1, "of the tokens of all strings"),
    ],
)
def test_what_forbids_static_steps_is_said(
    tiny_experiment: Path, overrides: tuple[str, ...], world_size: int, reason: str | None
) -> None:
    setting = Setting(tiny_experiment, *overrides)
    rows = ResidentRows(setting.table)
    found = why_not_static(setting.recipe.train, Ranks(world_size), rows, setting.sources)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.parametrize("num_columns", [1, 3])
def test_the_share_of_tokens_is_that_of_random_steps(num_columns: int) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([3, 10, 40, 7, 5])
    string_id = torch.multinomial(
        torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]), 2000 * num_columns, True, generator=generator
    ).unflatten(0, (2000, num_columns))
    found = []
    for _ in range(400):
        step = string_id[torch.randperm(2000, generator=generator)[:8]].unique()
        found.append(lengths[step].sum() / lengths[:4].sum())
    assert share_of_tokens(string_id, lengths, 8) == pytest.approx(
        float(torch.stack(found).mean()), abs=0.02
    )
    assert share_of_tokens(string_id, lengths, 10**6) == pytest.approx(1.0)


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_a_graph_that_is_asked_for_and_cannot_be_is_refused(tiny_experiment: Path) -> None:
    setting = Setting(tiny_experiment, "train.cuda_graph=on")
    with pytest.raises(ConfigError, match="no CUDA graphs on a CPU"):
        why_no_graph(setting.recipe.train, WORLD, ResidentRows(setting.table), setting.sources)


DROPOUT = ("model.dropout=0.1", "encoder.lora.dropout=0.1", "model.feature_noise={first: 0.1}")
needs_gpu = pytest.mark.skipif(
    not ON_GPU, reason="needs a GPU that EMBEDCACHE_GPU=1 leaves visible"
)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["per_step", "frozen"])
def test_replays_are_the_steps_without_a_graph(
    tiny_experiment: Path, mode: str, precision: str
) -> None:
    overrides = (*DROPOUT, f"encoder.mode={mode}", f"train.precision={precision}")
    results = []
    for captured in (True, True, False):
        setting = Setting(tiny_experiment, *overrides)
        steps = setting.steps(setting.engine(), captured=captured)
        losses = torch.stack(taken(steps, iter(range(EPOCHS))))
        assert steps.num_replays == captured * len(losses)
        results.append((losses, [weight.detach() for weight in weights_of(setting)]))
    (losses, weights), (again, same), (eager, others) = results
    assert torch.equal(losses, again), "two graphs of one seed differ"
    assert all(map(torch.equal, weights, same))
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(losses, eager, rtol=tolerance, atol=tolerance)
    difference = torch.stack([(a - b).norm() for a, b in zip(weights, others, strict=True)]).norm()
    size = torch.stack([weight.norm() for weight in weights]).norm()
    assert difference <= tolerance * size


@needs_gpu
@pytest.mark.parametrize("dropout", [DROPOUT, ()])
def test_replays_draw_new_masks(tiny_experiment: Path, dropout: tuple[str, ...]) -> None:
    still = ("optim.lr=1e-30", "optim.lr_encoder=1e-30", "optim.lr_log_variance=1e-30")
    setting = Setting(tiny_experiment, *dropout, *still, "train.batch_rows=500")
    steps = setting.steps(setting.engine())
    losses = torch.stack(taken(steps, iter(range(4))))  # all rows in each
    spread = float((losses.max() - losses.min()) / losses.mean().abs())
    assert (spread > 1e-4) is bool(dropout), spread
