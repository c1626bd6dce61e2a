"""The certificate holds for what trains, and fails, or the count does, for every fault planted into
it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Forks
from planted import SEEN_BY_THE_CERTIFICATE, SEEN_BY_THE_COUNT, Patch
from provable import Training
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedcache.cache.reader import open_cache
from embedcache.errors import ProofError, RunError, UnfinishedStepError
from embedcache.live import bounded
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.train.proof import prover as proof
from fusionnet.train.proof.comparison import LIMIT, NORM, in_fp32, in_narrow_type
from fusionnet.train.proof.prover import due_steps
from fusionnet.train.proof.record import Judgement, Proof, ProofFile, certificate, read_proofs
from fusionnet.workflow.recipes import recipe_of

pytestmark = pytest.mark.xdist_group("proof")  # they share a training


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "static"),
    [
        (("model.fusion=modality", "encoder.mode=per_microbatch"), False),
        (("model.fusion=mlp", "loss.uncertainty=kendall", "encoder.mode=naive"), False),
        (("encoder.mode=frozen", "train.precision=bf16", "tasks.1.reduction=batch"), False),
        (("encoder.memory_budget_gib=1e-9", "loss.uncertainty=none"), False),
        (("model.linear_skip=true", "model.feature_noise={first: 0.3}"), True),
        (("model.standardize_vectors=true", "train.precision=bf16"), True),
        (("model.numeric=ple", "model.linear_skip=true", "model.feature_noise={first: 0.3}"), True),
        (("model.numeric=periodic", "model.fusion=modality", "train.precision=bf16"), False),
        (("model.numeric=periodic", "model.numeric_embedding.lite=false"), False),
        (("model.members=3", "model.linear_skip=true"), True),
        (("model.members=2", "train.precision=bf16", "model.numeric=ple"), False),
        (("model.members=3", "model.fusion=modality", "encoder.mode=per_microbatch"), False),
        (("model.members=3", "model.fusion=mlp", "tasks.1.reduction=batch"), False),
        (("model.members=3", "model.member_layers=0", "encoder.mode=naive"), False),
        (("model.members=2", "model.member_layers=2", "encoder.mode=frozen"), False),
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


@pytest.mark.slow
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
    # a part of one number may be right by luck, but not four times
    unlucky = in_fp32(off(5e-5), exact, lambda: exact, jittered=lambda seed: off(seed * -2e-5))
    assert unlucky.passed
    assert not in_fp32(off(5e-4), exact, lambda: exact, jittered=lambda seed: off(2e-5)).passed
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


def test_what_cancels_in_a_log_variance_is_measured_by_its_terms() -> None:
    name = "loss.log_variance"
    settled = {name: torch.tensor([1e-3]), "network.projection.weight": torch.zeros(4)}
    off = {**settled, name: torch.tensor([1e-3 + 5e-6])}
    assert not in_fp32(off, settled, lambda: settled).passed
    assert in_fp32(off, settled, lambda: settled, {name: 1.0}).passed
    wrong = {**settled, name: torch.tensor([1e-3 + 5e-5])}
    assert not in_fp32(wrong, settled, lambda: settled, {name: 1.0}).passed


def test_due_steps_are_a_function_of_the_seed_and_the_number_of_steps(
    tiny_experiment: Path,
) -> None:
    def due(*overrides: str, patience: int = 40) -> frozenset[int]:
        length = ["train.epochs=40", f"train.early_stopping.patience={patience}"]
        experiment = load_experiment(tiny_experiment, [*length, *overrides])
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
    # none that a training may end without
    assert due("train.prove=500", patience=4) == frozenset(range(50))


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
