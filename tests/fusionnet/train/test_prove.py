"""The certificate holds for what trains, and fails, or the count does, for every fault planted into
it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedcache.cache.reader import open_cache
from embedcache.encoder import model as encoder_model
from embedcache.encoder.deberta import attention, packed, projection
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import ProofError, RunError, UnfinishedStepError
from embedcache.live import arrival, bounded
from embedcache.live import step as live_step
from fusionnet.assemble import build_model, make_sources
from fusionnet.experiment import load_experiment
from fusionnet.model import loss as model_loss
from fusionnet.model.adapters import NumericGroups, StringAdapter
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.train import step as train_step
from fusionnet.train.plain import PlainEngine
from fusionnet.train.proof import prover as proof
from fusionnet.train.proof.comparison import LIMIT, NORM, in_fp32, in_narrow_type
from fusionnet.train.proof.prover import Prover, due_steps, subject_of
from fusionnet.train.proof.record import Judgement, Proof, ProofFile, certificate, read_proofs
from fusionnet.train.schedule import make_schedule
from fusionnet.train.static import StaticSteps
from fusionnet.train.step import EngineSteps
from fusionnet.train.tally import Tally
from fusionnet.train.world import World
from fusionnet.workflow.training import recipe_of

Patch = pytest.MonkeyPatch
OVERRIDES = [
    "train.batch_rows=60",
    "optim.clip=0.5",
    "optim.warmup_epochs=0",
    "optim.lr_encoder=0.01",  # B leaves zero, and A gets gradients
    "model.standardize_vectors=false",  # it multiplies the encoder's rounding
]


class Alone(World):
    """One rank on the CPU, without its process group."""

    def __init__(self) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")


class Training:
    """A training that has taken two steps, and the third one's rows."""

    def __init__(self, config: Path, folder: Path, *overrides: str, static: bool = False) -> None:
        experiment = load_experiment(config, [*OVERRIDES, *overrides])
        cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, cache)
        self.model = build_model(recipe, cache.layout, cache.scaling).train()
        self.sources = make_sources(self.model, recipe, cache)
        self.table = load_rows(cache, "train")
        self.plan = StepPlan(self.table.num_rows, experiment.train.batch_rows, 3, 1, 0)
        groups = self.model.parameter_groups(experiment.optim)
        self.world = Alone()
        self.engine = PlainEngine(self.model, groups, self.world, experiment.optim, 3)
        self.tally = Tally([spec.num_strings for spec in cache.layout.strings], self.world.device)
        schedule = make_schedule(experiment.optim, self.plan.steps_per_epoch, 2)
        rest = (self.plan, schedule, self.tally)
        self.steps: EngineSteps | StaticSteps
        if static:
            self.steps = StaticSteps(self.engine, self.sources, self.table, *rest, captured=False)
        else:
            rows = ResidentRows(self.table)
            self.steps = EngineSteps(self.engine, self.sources, rows, *rest)
        self.file = ProofFile(folder / "tiny_proof.json", due_steps(recipe, self.plan), 0)
        self.prover = Prover(
            subject_of(self.model, recipe, cache),
            cache,
            self.engine,
            self.steps,
            self.sources,
            self.plan,
            experiment.optim,
            self.file,
        )
        taken = self.steps.of_epoch(0)
        next(taken), next(taken)
        taken.close()
        self.rows = self.table.take(list(self.plan.steps(0))[2])
        self.state = self.engine.state()

    def reset(self) -> None:
        """Forget what a fault has left."""
        for source in self.sources:
            if isinstance(source, live_step.LiveEncoder):
                source.abandon_step()
        self.engine._num_read = 0
        self.engine.hold_updates(False)
        self.engine._adam.zero_grad()
        self.engine.load_state(self.state)
        self.model.train()

    def prove(self) -> Proof:
        """Prove the third step and return what was found."""
        self.prover.look(2, self.rows)
        return self.file.proofs[-1]

    def epoch(self) -> None:
        """Take an epoch and check the count of its rows."""
        self.tally.begin()
        for _ in self.steps.of_epoch(1):
            pass
        self.tally.check(self.plan.num_rows, self.world, self.table)


@pytest.fixture(scope="module")
def shared(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tiny_experiment, tmp_path_factory.mktemp("proof"))


@pytest.fixture
def training(shared: Training, monkeypatch: Patch) -> Iterator[Training]:
    monkeypatch.setattr(proof, "MOST_ROWS", 30)
    monkeypatch.setattr(proof, "OWN_TOKENS", 30)
    monkeypatch.setattr(proof, "ROWS_READ_AGAIN", 2)
    yield shared
    monkeypatch.undo()
    shared.reset()


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace a function by `change(original, *arguments)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *words, **named: change(original, *words, **named))


# --- faults, each planted into the path that trains --------------------------------------------
def swapped_ids(patch: Patch, _: Training) -> None:
    def change(read: Any, *words: Any) -> Any:
        found = read(*words)
        return found._replace(vector_index=found.vector_index.roll(1))

    wrap(patch, live_step.LiveEncoder, "read", change)


def one_string_has_anothers_vector(patch: Patch, _: Training) -> None:
    def change(read: Any, *words: Any) -> Any:
        found = read(*words)
        return found._replace(vectors=torch.cat([found.vectors[:1], found.vectors[:-1]]))

    wrap(patch, live_step.LiveEncoder, "read", change)


def stale_vectors(patch: Patch, training: Training) -> None:
    polymer = training.sources[0]
    current = training.engine.state()
    with torch.no_grad():
        for name, weight in training.model.named_parameters():
            if "lora_B" in name:
                weight.zero_()  # as before the first step
        old = polymer.vectors_of_all_strings()
    training.engine.load_state(current)

    def change(encode: Any, encoder: Any, tokens: TokenTable, most: int) -> Tensor:
        vectors = encode(encoder, tokens, most)
        if len(vectors) != len(old):
            return vectors
        return vectors - vectors.detach() + old

    wrap(patch, live_step, "encode_bounded", change)


def earlier_micro_batches_lost(patch: Patch, _: Training) -> None:
    def change(whole: Any, own: Any, last: Tensor) -> Tensor:
        whole(own, last)
        return last

    wrap(patch, arrival.Arrival, "whole", change)


def earlier_micro_batches_counted_twice(patch: Patch, _: Training) -> None:
    def change(whole: Any, own: Any, last: Tensor) -> Tensor:
        return whole(own, last) + own.leaf.grad

    wrap(patch, arrival.Arrival, "whole", change)


def micro_batch_read_twice(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        first, _, *rest = cut(*words, **named)
        return [first, first, *rest]

    wrap(patch, StepPlan, "micro_batches", change)


def micro_batch_dropped(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        first, _, *rest = cut(*words, **named)
        return [first, slice(0, 0), *rest]

    wrap(patch, StepPlan, "micro_batches", change)


def last_row_dropped(patch: Patch, _: Training) -> None:
    def change(cut: Any, *words: Any, **named: Any) -> Any:
        *first, last = cut(*words, **named)
        return [*first, slice(last.start, last.stop - 1)]

    wrap(patch, StepPlan, "micro_batches", change)


def loss_divided_by_micro_batches(patch: Patch, _: Training) -> None:
    wrap(patch, PlainEngine, "backward", lambda back, own, loss: back(own, loss / 3))


def regulariser_in_every_micro_batch(patch: Patch, _: Training) -> None:
    def change(forward: Any, *words: Any) -> Any:
        return forward(*words[:-1], 1.0)

    wrap(patch, model_loss.MultiTaskLoss, "forward", change)


def denominators_count_rows(patch: Patch, _: Training) -> None:
    wrap(
        patch,
        RowTable,
        "loss_denominators",
        lambda _, own: own.targets.isfinite().sum(0).float(),
    )


def mean_of_means(patch: Patch, _: Training) -> None:
    def change(loss: Any, engine: Any, model: Any, sources: Any, batch: Any, *rest: Any) -> Any:
        return loss(engine, model, sources, batch, 3 * batch.loss_denominators(), *rest[1:])

    wrap(patch, train_step, "_micro_batch_loss", change)


def row_weights_ignored(patch: Patch, _: Training) -> None:
    def change(loss: Any, outputs: Tensor, targets: Tensor, weight: Tensor, *rest: Any) -> Any:
        return loss(outputs, targets, torch.ones_like(weight), *rest)

    wrap(patch, model_loss, "multitask_loss", change)


def unobserved_labels_are_zero(patch: Patch, _: Training) -> None:
    def change(loss: Any, outputs: Tensor, targets: Tensor, *rest: Any) -> Any:
        return loss(outputs, targets.nan_to_num(0.0), *rest)

    wrap(patch, model_loss, "multitask_loss", change)


def log_variances_of_other_tasks(patch: Patch, training: Training) -> None:
    with torch.no_grad():
        training.model.loss.log_variance.copy_(torch.tensor([0.1, 0.0, -0.2]))

    def change(loss: Any, *words: Any) -> Any:
        return loss(*words[:4], words[4].roll(1), *words[5:])

    wrap(patch, model_loss, "multitask_loss", change)


def wrong_pooling(patch: Patch, _: Training) -> None:
    wrap(patch, encoder_model, "pooled", lambda pool, *words: pool(*words[:-1], "mean"))


def a_strings_tokens_swapped(patch: Patch, _: Training) -> None:
    def change(take: Any, *words: Any) -> TokenTable:
        found = take(*words)
        values = found.values.clone()
        values[[1, 2, 3]] = values[[2, 3, 1]]
        return replace(found, values=values)

    wrap(patch, TokenTable, "take", change)


def positions_off_by_one(patch: Patch, _: Training) -> None:
    def change(embed: Any, base: Any, values: Tensor, packing: Any) -> Tensor:
        return embed(base, values, packing._replace(position=packing.position + 1))

    wrap(patch, encoder_model, "embed", change)


def padding_is_attended(patch: Patch, _: Training) -> None:
    def change(softmax: Any, q: Tensor, k: Tensor, group: Any) -> Tensor:
        return softmax(q, k, group._replace(padding=None))

    wrap(patch, attention, "_softmax", change)


def query_and_key_exchanged(patch: Patch, _: Training) -> None:
    def change(project: Any, casts: Any, x: Tensor, modules: Any) -> Tensor:
        if len(modules) == 3:
            modules = [modules[1], modules[0], modules[2]]
        return project(casts, x, modules)

    wrap(patch, packed, "project", change)


def residual_lost(patch: Patch, _: Training) -> None:
    def change(add_norm: Any, norm: Any, x: Tensor, residual: Tensor, **named: Any) -> Any:
        return add_norm(norm, x, 0.99 * residual, **named)

    wrap(patch, packed, "add_norm", change)


def strings_come_in_another_order(patch: Patch, _: Training) -> None:
    wrap(patch, encoder_model.StringEncoder, "encode", lambda run, *words: run(*words).flip(0))


def stale_casts_of_frozen_weights(patch: Patch, _: Training) -> None:
    def change(cast: Any, own: Any, originals: Any, dtype: Any) -> Tensor:
        return 1.001 * cast(own, originals, dtype)

    wrap(patch, projection.CastWeights, "__call__", change)


def lora_scale_doubled(patch: Patch, _: Training) -> None:
    def change(adapter: Any, module: Any) -> Any:
        found = adapter(module)
        return found._replace(scale=2 * found.scale)

    wrap(patch, projection, "_adapter_of", change)


def gradient_of_loras_a_lost(patch: Patch, _: Training) -> None:
    def change(adapter: Any, module: Any) -> Any:
        found = adapter(module)
        return found._replace(a=found.a.detach())

    wrap(patch, projection, "_adapter_of", change)


def a_row_sends_no_gradient_to_its_string(patch: Patch, _: Training) -> None:
    def change(forward: Any, *words: Any) -> Tensor:
        found = forward(*words)
        return torch.cat([found[:1].detach(), found[1:]])

    wrap(patch, StringAdapter, "forward", change)


def string_columns_exchanged(patch: Patch, _: Training) -> None:
    def change(forward: Any, own: Any, vectors: Any, inputs: Any) -> Tensor:
        ids = inputs.string_id.flip(1)
        return forward(own, vectors[::-1], replace(inputs, string_id=ids))

    wrap(patch, FusionNetwork, "forward", change)


def categories_of_other_rows(patch: Patch, _: Training) -> None:
    def change(forward: Any, own: Any, vectors: Any, inputs: Any) -> Tensor:
        return forward(own, vectors, replace(inputs, category=inputs.category.roll(1, 0)))

    wrap(patch, FusionNetwork, "forward", change)


def features_exchanged(patch: Patch, _: Training) -> None:
    wrap(patch, NumericGroups, "forward", lambda run, own, features: run(own, features.flip(1)))


def no_clipping(patch: Patch, training: Training) -> None:
    patch.setattr(training.engine, "_clip", 1e9)


def the_last_gradient_stays(patch: Patch, training: Training) -> None:
    patch.setattr(training.engine._adam, "zero_grad", lambda **_: None)
    training.steps.take_once(2, training.rows)
    training.engine.load_state(training.state)


def a_weight_without_optimizer(patch: Patch, training: Training) -> None:
    weights = training.engine._adam.param_groups[1]["params"]
    patch.setitem(training.engine._adam.param_groups[1], "params", weights[:-1])


def labels_of_other_rows(patch: Patch, training: Training) -> None:
    patch.setattr(
        training, "rows", replace(training.rows, targets=training.rows.targets.roll(1, 0))
    )


def strings_of_other_rows(patch: Patch, training: Training) -> None:
    patch.setattr(
        training, "rows", replace(training.rows, string_id=training.rows.string_id.roll(1, 0))
    )


def rows_lose_their_weights(patch: Patch, _: Training) -> None:
    def change(take: Any, *words: Any) -> RowTable:
        found = take(*words)
        return replace(found, weight=torch.ones_like(found.weight))

    wrap(patch, RowTable, "take", change)


SEEN_BY_THE_CERTIFICATE = [
    swapped_ids,
    one_string_has_anothers_vector,
    stale_vectors,
    earlier_micro_batches_lost,
    earlier_micro_batches_counted_twice,
    micro_batch_read_twice,
    micro_batch_dropped,
    last_row_dropped,
    loss_divided_by_micro_batches,
    regulariser_in_every_micro_batch,
    denominators_count_rows,
    mean_of_means,
    row_weights_ignored,
    unobserved_labels_are_zero,
    log_variances_of_other_tasks,
    wrong_pooling,
    a_strings_tokens_swapped,
    positions_off_by_one,
    padding_is_attended,
    query_and_key_exchanged,
    residual_lost,
    strings_come_in_another_order,
    stale_casts_of_frozen_weights,
    lora_scale_doubled,
    gradient_of_loras_a_lost,
    a_row_sends_no_gradient_to_its_string,
    string_columns_exchanged,
    categories_of_other_rows,
    features_exchanged,
    no_clipping,
    the_last_gradient_stays,
    a_weight_without_optimizer,
    labels_of_other_rows,
    strings_of_other_rows,
    rows_lose_their_weights,
]


@pytest.mark.parametrize("plant", SEEN_BY_THE_CERTIFICATE, ids=lambda plant: plant.__name__)
def test_the_certificate_sees(
    plant: Callable[[Patch, Training], None], training: Training, monkeypatch: Patch
) -> None:
    plant(monkeypatch, training)
    with pytest.raises(ProofError, match="does not compute what its equations say"):
        training.prove()
    assert not training.file.proofs[-1].passed


def test_nothing_is_seen_where_nothing_is_wrong(training: Training) -> None:
    found = training.prove()
    assert found.passed
    assert 20 < found.rows <= 30  # those at a ReLU's kink are left out
    assert 0 < found.rows_encoded_for_themselves < found.rows
    errors = found.precisions["fp32"].errors
    assert len(errors) > 10
    assert 0 < max(errors.values()) <= LIMIT


def test_a_proof_leaves_every_bit_as_it_was(training: Training) -> None:
    def taken() -> dict[str, Any]:
        training.engine.load_state(training.state)
        training.steps.take_once(2, training.rows)
        return training.engine.state()

    wanted = taken()
    training.engine.load_state(training.state)
    training.prove()
    assert_same(training.engine.state(), training.state)
    assert_same(taken(), wanted)  # with dropout and noise as they were


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["step"] == wanted["step"]
    for kind in ("parameters", "exp_avg", "exp_avg_sq"):
        for name, value in wanted[kind].items():
            assert torch.equal(found[kind][name], value), name


@pytest.mark.parametrize(
    ("overrides", "static"),
    [
        (("model.fusion=modality", "encoder.mode=per_microbatch"), False),
        (("model.fusion=mlp", "loss.uncertainty=kendall", "encoder.mode=naive"), False),
        (("encoder.mode=frozen", "train.precision=bf16", "tasks.1.reduction=batch"), False),
        (("encoder.memory_budget_gib=1e-9", "loss.uncertainty=none"), False),
        (("model.linear_skip=true", "model.feature_noise={first: 0.3}"), True),
        (("model.standardize_vectors=true", "train.precision=bf16"), True),
    ],
)
def test_every_kind_of_training_is_proven(
    overrides: tuple[str, ...],
    static: bool,
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(proof, "OWN_TOKENS", 30)
    training = Training(tiny_experiment, tmp_path, *overrides, static=static)
    found = training.prove()
    assert found.passed
    assert list(found.precisions) == (["fp32", "bf16"] if "bf16" in str(overrides) else ["fp32"])
    training.epoch()


# --- the count of rows --------------------------------------------------------------------------
def rows_of_an_epoch_repeat(patch: Patch, _: Training) -> None:
    def change(steps: Any, *words: Any) -> Iterator[Tensor]:
        for positions in steps(*words):
            yield torch.cat([positions[:-1], positions[:1]])

    wrap(patch, StepPlan, "steps", change)


def a_step_comes_short(patch: Patch, _: Training) -> None:
    wrap(patch, StepPlan, "steps", lambda steps, *words: (each[1:] for each in steps(*words)))


SEEN_BY_THE_COUNT = [
    (swapped_ids, "its own strings"),
    (micro_batch_read_twice, "its own strings"),
    (micro_batch_dropped, "rows were read of"),
    (last_row_dropped, "rows were read of"),
    (rows_of_an_epoch_repeat, "each once"),
    (a_step_comes_short, "rows came of"),
]


@pytest.mark.parametrize(("plant", "said"), SEEN_BY_THE_COUNT)
def test_the_count_sees(
    plant: Callable[[Patch, Training], None], said: str, training: Training, monkeypatch: Patch
) -> None:
    plant(monkeypatch, training)
    with pytest.raises(ProofError, match=said):
        training.epoch()


def test_strings_that_rows_exchange_change_the_count(training: Training) -> None:
    rows = training.rows
    strings = list(rows.string_id.unbind(1))
    wanted = training.tally.count(rows, strings)
    first, second = 0, int((strings[0] != strings[0][0]).nonzero()[0])
    exchanged = strings[0].clone()
    exchanged[[first, second]] = strings[0][[second, first]]
    assert training.tally.count(rows, [exchanged, strings[1]]).tolist() != wanted.tolist()
    order = torch.randperm(rows.num_rows)
    mixed = rows.take(order)
    assert training.tally.count(mixed, list(mixed.string_id.unbind(1))).tolist() == wanted.tolist()


def test_masks_that_are_not_replayed_are_seen_in_the_step_itself(
    tiny_experiment: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    training = Training(tiny_experiment, tmp_path, "encoder.memory_budget_gib=1e-9")
    training.epoch()

    def careless(function: Any, **_: Any) -> Any:
        return checkpoint(function, use_reentrant=False, preserve_rng_state=False)

    monkeypatch.setattr(bounded, "checkpoint", careless)
    with pytest.raises(UnfinishedStepError, match="another random state"):
        training.epoch()


# --- what is judged, and what is written --------------------------------------------------------
def test_rounding_is_measured_beside_plain_rounding() -> None:
    exact = {"network.projection.weight": torch.ones(4), "encoders.a.lora_A": torch.ones(4)}

    def off(by: float) -> dict[str, Tensor]:
        return {name: value * (1 + by) for name, value in exact.items()}

    assert in_fp32(off(5e-6), exact, lambda: exact).passed
    assert not in_fp32(off(5e-5), exact, lambda: exact).passed
    assert in_fp32(off(5e-5), exact, lambda: off(-6e-5)).passed, "plain fp32 is off as far"
    assert not in_fp32(off(float("nan")), exact, lambda: exact).passed
    bf16 = torch.bfloat16
    assert in_narrow_type(off(0.05), off(-0.03), exact, bf16).passed
    assert not in_narrow_type(off(0.07), off(-0.03), exact, bf16).passed
    assert not in_narrow_type(off(0.01), exact, exact, bf16).passed
    unclear = in_narrow_type(off(0.9), off(0.2), exact, bf16)
    assert unclear.errors == {}
    assert unclear.not_judged["LoRA"] == pytest.approx(0.9)
    wrong_part = {**exact, "encoders.a.lora_A": 0 * torch.ones(4)}
    assert not in_fp32(wrong_part, exact, lambda: exact).passed
    with_norm = {**exact, NORM: torch.tensor(2.0)}
    for by, passes in ((5e-5, True), (5e-4, False), (-1.0, False)):
        used = {**exact, NORM: torch.tensor(2.0) * (1 + by)}
        assert in_fp32(used, with_norm, lambda: with_norm).passed is passes, by


def test_due_steps_are_a_function_of_the_seed_and_the_number_of_steps(
    tiny_experiment: Path,
) -> None:
    def due(*overrides: str) -> frozenset[int]:
        experiment = load_experiment(tiny_experiment, ["train.epochs=40", *overrides])
        recipe = recipe_of(experiment, open_cache(experiment.cache.path))
        return due_steps(recipe, StepPlan(140, 14, 1, 1, experiment.train.seed))

    assert due("train.prove=0") == frozenset()
    assert due("train.precision=fp16") == frozenset()
    few, many = due("train.prove=2"), due("train.prove=9")
    assert few < many
    assert (len(few), len(many)) == (2, 9)
    assert many <= set(range(400))
    assert many != due("train.prove=9", "train.seed=1")
    assert due("train.prove=500") == frozenset(range(400))


def test_a_resumed_run_keeps_the_proofs_of_steps_that_it_has_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "run_proof.json"
    judged = Judgement(errors={"LoRA": 2e-6}, limits={"LoRA": 1e-5}, plain={}, not_judged={})
    proof = Proof(
        step=3,
        rows=10,
        strings=(2,),
        rows_encoded_for_themselves=1,
        rows_that_differ_from_the_cache=0,
        precisions={"fp32": judged},
        passed=True,
        seconds=1.0,
    )
    file = ProofFile(path, [7, 3], 0)
    assert file.line(100.0) == certificate([])
    for step in (3, 7):
        file.append(proof.model_copy(update={"step": step}))
    assert not path.exists(), "the folder is not the run's before its first step"
    file.open()
    assert "2 steps" in file.line(100.0)
    assert "2.0e-06" in file.line(100.0)
    assert "2.0 s, 2.0% of training" in file.line(100.0)
    assert [each.step for each in ProofFile(path, [7, 3], 5).proofs] == [3]
    assert ProofFile(path, [7, 3], 0).proofs == []
    assert json.loads(path.read_text())["due"] == [3, 7]
    file.append(proof.model_copy(update={"passed": False}))
    assert certificate(read_proofs(path)).startswith("NOT PROVEN")
    path.write_text(path.read_text().replace('"passed"', '"past"'))
    with pytest.raises(RunError, match="not what training wrote"):
        read_proofs(path)


@pytest.mark.dist
def test_faults_between_ranks_are_seen(tiny_experiment: Path, forks: Forks, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("prove_worker.py")
    done, _ = forks.run_ranks(worker, 2, tiny_experiment, tmp_path)
    seen = json.loads(done.out.splitlines()[-1])
    assert seen.pop("nothing") is False
    assert len(seen) == 4
    assert all(seen.values()), seen
