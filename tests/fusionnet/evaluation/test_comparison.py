"""Two runs are compared on the same rows of units that neither knows, by differences of which the
noise that they share is gone; equal runs are not told apart.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from embedcache.cache.reader import open_cache
from embedcache.errors import RunError
from fusionnet.evaluation import bootstrap, replicates
from fusionnet.evaluation.bootstrap import confidence_of
from fusionnet.evaluation.comparison import Comparison, Scored, common_tasks, compared
from fusionnet.evaluation.comparison_rows import (
    Candidate,
    candidate,
    common_rows,
    refuse_other_labels,
)
from fusionnet.evaluation.comparison_text import comparison_summary, sentences
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.rows import RunRows, Units, rows_of_cache
from fusionnet.metrics import task_metrics
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.comparing import comparison_of, paired

MAIN = {"outcome": ("mae", "r2"), "good": ("auroc", "f1"), "gappy": ("mae", "r2")}


@pytest.fixture(scope="module")
def run(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture(scope="module")
def given(run: TrainedRun, tiny_experiment: Path) -> RunRows:
    return rows_of_cache(run, open_cache(tiny_experiment.parent / "cache.zarr"))


class Case:
    """Labels of 40 patients, and what predicts them; patients differ in how hard they are."""

    def __init__(self, run: TrainedRun, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.run, self.units = run, Units(np.repeat(np.arange(40), 15), "patient")
        number = generator.normal(size=(600, 2))
        label = (number[:, 0] > 0.3).astype(float)
        self.targets = {"outcome": number[:, 0], "good": label, "gappy": number[:, 1]}
        self.hard = np.exp(generator.normal(size=40))[self.units.number, None]
        self.noise = self.hard * generator.normal(size=(600, 3))

    def scores(self, factor: float, noise: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Return predictions that are off by a factor of some noise."""
        outcome, _, gappy = self.targets.values()
        best = np.stack([outcome, outcome - 0.3, gappy], axis=1) + factor * noise
        best[:, 1] = 1 / (1 + np.exp(-best[:, 1]))
        return best

    def compared(
        self, own: Float[np.ndarray, "N 3"], other: Float[np.ndarray, "N 3"]
    ) -> Comparison:
        """Return how two such predictions differ."""
        return compared(Scored(self.run, own), Scored(self.run, other), self.targets, self.units)


def test_what_both_find_hard_cancels(run: TrainedRun) -> None:
    """A tenth less error in every row is told, though the metrics' own intervals overlap."""
    case = Case(run)
    pair = case.scores(0.9, case.noise), case.scores(1.0, case.noise)
    found = case.compared(*pair).differences
    targets = np.stack(list(case.targets.values()), axis=1)
    for column, metric in (("outcome", "mae"), ("outcome", "r2"), ("good", "auroc")):
        each = found[column][metric]
        assert each.verdict == "better"
        assert each.in_favour == 1
        intervals = []
        for scores in pair:
            own = task_metrics(run.tasks, targets, scores)
            told = confidence_of(run.tasks, targets, scores, own, case.units).of(column, metric)
            assert told is not None
            intervals.append(told)
        assert max(low for low, _ in intervals) < min(high for _, high in intervals)
        assert each.low is not None
        assert each.high is not None
        assert each.low < (each.difference or 0) < each.high


def test_the_other_way_round_everything_is_turned_round(run: TrainedRun) -> None:
    case = Case(run)
    one, two = case.scores(0.9, case.noise), case.scores(1.0, case.noise)
    found, turned = case.compared(one, two), case.compared(two, one)
    opposite = {"better": "worse", "worse": "better"}
    for column, metrics in found.differences.items():
        for name, each in metrics.items():
            other = turned.differences[column][name]
            assert (other.own, other.other) == (each.other, each.own)
            assert other.verdict == opposite.get(each.verdict, each.verdict)
            if each.low is None:
                continue
            assert [other.low, other.high] == pytest.approx([-(each.high or 0), -each.low])
            assert other.in_favour == pytest.approx(1 - (each.in_favour or 0))


def test_a_run_and_itself_are_not_told_apart(run: TrainedRun) -> None:
    case = Case(run)
    own = case.scores(1.0, case.noise)
    for metrics in case.compared(own, own).differences.values():
        for each in metrics.values():
            assert (each.difference, each.low, each.high, each.in_favour) == (0, 0, 0, 0.5)
            assert each.verdict == "undecided"


def test_equal_runs_are_told_apart_one_time_in_twenty(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "REPLICATES", 300)
    monkeypatch.setattr(replicates, "_spearman", lambda x, y, draws: np.zeros(len(draws.weight)))
    trials, told = 120, 0
    for seed in range(trials):
        case = Case(run, seed)
        own = np.random.default_rng(1000 + seed).normal(size=(600, 3))
        one, two = case.scores(1, case.noise), case.scores(1, case.hard * own)
        case.targets = {"outcome": case.targets["outcome"]}
        found = case.compared(one, two)
        told += found.differences["outcome"]["mae"].verdict != "undecided"
    assert told / trials == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / trials) + 0.01)


def test_words_say_who_is_better_and_what_is_not_known(run: TrainedRun) -> None:
    case = Case(run)
    found = case.compared(case.scores(0.9, case.noise), case.scores(1.0, case.noise))
    text = comparison_summary(
        found.model_copy(update={"remark": "Few", "left_out": {"x": "y"}}), MAIN
    )
    for part in (
        "600 rows of 40 patient",
        "NOTE  Few.",
        "not compared: x, y",
        "outcome MAE: this run is better than the other (difference -0.",
        "another seed of either training may differ by more",
    ):
        assert part in text
    few = Units(case.units.number % 4, "patient")
    scored = [Scored(run, case.scores(factor, case.noise)) for factor in (0.5, 1.0)]
    none = compared(*scored, case.targets, few)
    assert none.differences["outcome"]["mae"].verdict == "undecided"
    assert none.differences["outcome"]["mae"].in_favour is None
    assert "no difference can be told from chance" in comparison_summary(none, MAIN)
    assert sentences(none, MAIN) == []


def test_targets_of_another_kind_are_left_out(run: TrainedRun) -> None:
    outcome, good, gappy = run.tasks
    changed = (
        outcome.model_copy(update={"kind": "binary"}),
        good.model_copy(update={"classes": ("no", "yes")}),
        gappy.model_copy(update={"column": "new"}),
    )
    other = replace(run, recipe=replace(run.recipe, tasks=changed), folder=Path("other"))
    common, left_out = common_tasks(run, other)
    assert common == []
    assert left_out == {
        "outcome": "regression here, binary in other",
        "good": "other has other classes",
        "gappy": "other does not predict it",
        "new": f"{run.folder} does not predict it",
    }


def resplit(given: RunRows, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> RunRows:
    """Return the rows with other splits, a function of their groups and splits."""
    split = change(given.block.group, given.block.split).astype(np.int8)
    return replace(given, block=replace(given.block, split=split))


def pair_of(run: TrainedRun, given: RunRows, other: RunRows) -> tuple[Candidate, Candidate]:
    return candidate(run, given, "test"), candidate(run, other, "test")


def test_the_rows_are_those_of_both(run: TrainedRun, given: RunRows) -> None:
    same = common_rows(*pair_of(run, given, given), "test", same_files=False)
    assert (same.own.tolist(), same.remark) == (list(range(140)), "")
    # of the four patients that test the one run, one trains the other; of it there are no rows
    group = np.unique(given.block.group[given.block.split == 2])
    moved = resplit(given, lambda codes, split: np.where(codes == group[0], 0, split))
    pair = pair_of(run, given, moved)
    found = common_rows(*pair, "test", same_files=False)
    assert len(found.own) == 105
    rows = [each.given.row[each.chosen[place]] for each, place in zip(pair, found[:2], strict=True)]
    np.testing.assert_array_equal(*rows)
    assert not (given.block.group[rows[0]] == group[0]).any()
    assert "105 rows are those that both runs are evaluated on, of 140 and 105" in found.remark
    assert "neither was trained or validated on any patient of them" in found.remark
    # another table's rows are in no split: which patients of it are known is not
    table = resplit(moved, lambda codes, split: np.full_like(split, -1))
    unknown = common_rows(*pair_of(run, given, table), "test", same_files=True)
    assert len(unknown.own) == 140
    assert "neither" not in unknown.remark
    refuse_other_labels(*pair, found, run.tasks)


def test_rows_that_would_favour_a_run_are_refused(run: TrainedRun, given: RunRows) -> None:
    group = np.unique(given.block.group[given.block.split == 2])
    row = np.arange(420)
    # half of a patient's rows train the other run
    half = resplit(
        given, lambda codes, split: np.where((codes == group[0]) & (row < 200), 0, split)
    )
    with pytest.raises(
        RunError, match=r"\d+ of the \d+ that both .* are of a patient that .* the run"
    ):
        common_rows(*pair_of(run, given, half), "test", same_files=False)
    nothing = resplit(given, lambda codes, split: (split + 1) % 3)
    with pytest.raises(RunError, match=r"no test row of .*Train both on the same split"):
        common_rows(*pair_of(run, given, nothing), "test", same_files=False)
    one, two = pair_of(run, given, given)
    elsewhere = replace(run, identity={**run.identity, "table": "sha256 00"})
    with pytest.raises(RunError, match=r"tables of other bytes.*--table FILE"):
        common_rows(one, two._replace(run=elsewhere), "test", same_files=False)
    common = common_rows(one, two._replace(run=elsewhere), "test", same_files=True)
    targets = given.block.targets.copy()
    targets[np.flatnonzero(given.block.split == 2)[3], 0] += 1
    shifted = replace(given, block=replace(given.block, targets=targets))
    with pytest.raises(RunError, match=r"other labels of outcome in row \d+ of their tables"):
        refuse_other_labels(one, two._replace(given=shifted), common, run.tasks)


def test_a_comparison_is_of_the_runs_own_metrics(
    run: TrainedRun, given: RunRows, made_other: Path, tiny_experiment: Path
) -> None:
    other = load_run(made_other)
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    own, theirs = (
        evaluate_run(each, cache, "test", progress=False, with_baselines=False)
        for each in (run, other)
    )
    pair = paired(run, given, other, rows_of_cache(other, cache), "test", same_files=False)
    found = comparison_of(pair, own, progress=False)
    assert found.num_rows == 140
    for column, metrics in found.differences.items():
        for name, each in metrics.items():
            assert each.own == own.metrics[column][name]
            assert each.other == theirs.metrics[column][name]


@pytest.fixture(scope="module")
def made_other(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "other", seed=8)
