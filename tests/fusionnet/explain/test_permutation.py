"""Importance is what is lost by shuffling: nothing for what is not read, all for all columns, the
run's own predictions in between.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embedcache.cache.reader import open_cache
from fusionnet.config.tasks import Task
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.rows import RunRows, rows_of_cache
from fusionnet.experiment import load_experiment
from fusionnet.explain.columnsets import ColumnSet
from fusionnet.explain.explain import explain_rows
from fusionnet.explain.permutation import Sample, importances, increase_of, sample_of
from fusionnet.explain.rowerrors import described_errors, row_errors
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.blending import blend_run

NUM_ROWS = 2000
NUMBER = Task(name="y", column="y")
NUMBERS = [ColumnSet(f"x{k}", "number", numeric=(k,)) for k in range(3)]
EVERYTHING = ColumnSet("all", "all", numeric=(0, 1, 2))


def planted(targets: np.ndarray, weights: list[float]) -> Sample:
    """Rows of three independent numbers, and what reads them with these weights."""
    x = torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(1))
    nothing = torch.zeros(NUM_ROWS, 0, dtype=torch.int64)
    slopes = torch.tensor(weights)

    def predict(inputs: RowInputs, _: str) -> np.ndarray:
        return (inputs.numeric @ slopes)[:, None].double().numpy()

    inputs = RowInputs(nothing, x, nothing)
    known = predict(inputs, "") if not len(targets) else targets
    return Sample(inputs, known, predict, [], [])


def increases(sample: Sample, sets: list[ColumnSet], repeats: int = 3) -> list[float]:
    names = [(each.name,) for each in sets]
    found = importances([NUMBER], sample, sets, names, np.arange(NUM_ROWS), repeats, progress=False)
    return [each.increases["y"].mean for each in found]


def test_a_planted_feature_leads_by_its_weight_and_one_without_has_exactly_none() -> None:
    sample = planted(np.empty((0, 1)), [0.5, 3.0, 0.0])
    weak, strong, none = increases(sample, NUMBERS, repeats=20)
    # of standard normals E|x - x'| = 2 / sqrt(pi), and shuffling takes all but 1/n of it
    assert strong == pytest.approx(3 * 2 / math.sqrt(math.pi), rel=0.05)
    assert weak == pytest.approx(strong / 6, rel=0.05)
    assert none == 0.0


def test_all_columns_shuffled_is_labels_shuffled() -> None:
    noise = np.random.default_rng(0).normal(size=(NUM_ROWS, 1))
    sample = planted(noise + planted(np.empty((0, 1)), [1.0, 2.0, 3.0]).targets, [1.0, 2.0, 3.0])
    (found,) = increases(sample, [EVERYTHING], repeats=1)
    order = np.random.default_rng(0).permutation(NUM_ROWS)
    labels = np.empty_like(sample.targets)
    labels[order] = sample.targets  # each label goes where its row went
    own = sample.predict(sample.inputs, "")
    before = row_errors([NUMBER], sample.targets, own).mean()
    relabelled = row_errors([NUMBER], labels, own).mean()
    assert found == pytest.approx(relabelled - before)
    assert found > 0.5 * before


def test_nothing_is_important_for_labels_that_the_rows_say_nothing_of() -> None:
    own = planted(np.empty((0, 1)), [1.0, 2.0, 3.0]).targets
    shuffled = np.random.default_rng(5).permutation(own)
    of_noise = increases(planted(shuffled, [1.0, 2.0, 3.0]), [*NUMBERS, EVERYTHING], repeats=10)
    of_labels = increases(planted(own, [1.0, 2.0, 3.0]), [*NUMBERS, EVERYTHING], repeats=10)
    assert max(map(abs, of_noise)) < 0.1 * min(of_labels)


@pytest.fixture
def run(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture
def given(run: TrainedRun, tiny_experiment: Path) -> RunRows:
    return rows_of_cache(run, open_cache(tiny_experiment.parent / "cache.zarr"))


def test_a_column_that_the_network_cannot_read_has_exactly_no_importance(
    run: TrainedRun, given: RunRows
) -> None:
    with torch.no_grad():
        run.model.network.numeric[0][0].weight[:, 1] = 0
        run.model.network.categories[0].weight[:] = run.model.network.categories[0].weight[:1]
    found = explain_rows(run, given, "test", 0, 2, progress=False).explained
    by_name = {each.name: each.increases for each in found.importances}
    for column in ("outcome", "good", "gappy"):
        assert by_name["x1"][column].mean == by_name["kind"][column].mean == 0.0
        assert by_name["x1"][column].spread == 0.0
        assert by_name["x0"][column].mean != 0.0
        assert by_name["smiles"][column].mean != 0.0
    assert found.counted_by == "patient"


def test_what_is_shuffled_are_the_predictions_of_the_evaluation(
    run: TrainedRun, given: RunRows, make_run: Callable[..., Path], tmp_path: Path,
    tiny_experiment: Path,
) -> None:  # fmt: skip
    blend = {"boosting": True, "parts": 3, "most_trees": 10, "least_rows": 5}
    folder = make_run(tmp_path / "blended", blend=blend)
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    blend_run(folder, load_experiment(folder.with_name("blended.yaml")), cache, verbose=False)
    blended = load_run(folder)
    assert blended.blend is not None
    chosen = np.flatnonzero(given.block.split == 2)
    for each in (run, blended):
        sample = sample_of(each, given, chosen)
        wanted = evaluate_run(each, cache, "test", progress=False, with_baselines=False)
        np.testing.assert_allclose(sample.predict(sample.inputs, ""), wanted.predictions, rtol=1e-6)
    # a column that trees alone read is important, to the blend
    with torch.no_grad():
        for each in (run, blended):
            each.model.network.numeric[0][0].weight[:, 0] = 0
    sets = [ColumnSet("x0", "number", numeric=(0,))]
    counted = given.block.group[chosen]
    alone, both = (
        importances(each.tasks, sample_of(each, given, chosen), sets, [("x0",)], counted, 2)[0]
        for each in (run, blended)
    )
    assert alone.increases["outcome"].mean == 0
    assert both.increases["outcome"].mean > 0.1


def test_errors_are_absolute_of_logarithms_or_log_losses() -> None:
    tasks = [
        NUMBER,
        Task(name="z", column="z", transform="log10"),
        Task(name="b", column="b", kind="binary"),
        Task(name="m", column="m", kind="multiclass", classes=("u", "v", "w")),
    ]
    targets = np.array([[1.0, 100.0, 1.0, 2.0], [np.nan, 1.0, 0.0, np.nan]])
    predictions = np.array([[3.0, 10.0, 0.8, 0.2, 0.3, 0.5], [1.0, 1.0, 0.8, 1.0, 0.0, 0.0]])
    found = row_errors(tasks, targets, predictions)
    nan = np.nan
    wanted = [[2.0, 1.0, -np.log(0.8), -np.log(0.5)], [nan, 0.0, -np.log(0.2), nan]]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    described = described_errors(tasks, found)
    names = ["MAE", "MAE of log10", "log loss", "log loss"]
    assert [each.name for each in described.values()] == names
    assert described["y"].value == pytest.approx(2.0)


def test_the_standard_error_is_of_groups_and_the_spread_of_shuffles() -> None:
    rng = np.random.default_rng(3)
    of_group = rng.normal(size=200)
    counted = np.repeat(np.arange(200), 10)
    more = np.stack([of_group[counted] + shift for shift in (0.0, 1.0)])
    found = increase_of(np.concatenate([more, np.full((2, 1), np.nan)], 1), np.append(counted, 0))
    assert found.mean == pytest.approx(of_group.mean() + 0.5)
    assert found.spread == pytest.approx(np.std([0, 1], ddof=1))
    assert found.standard_error == pytest.approx(of_group.std(ddof=1) / math.sqrt(200))
    alone = increase_of(more[:1], np.zeros(2000, dtype=np.int64))
    assert alone.spread is None
    assert alone.standard_error is None


def test_a_sample_is_drawn_from_all_groups(run: TrainedRun, given: RunRows) -> None:
    found = explain_rows(run, given, "test", 0, 1, most_rows=60, progress=False).explained
    assert (found.num_sampled, found.num_rows) == (60, (given.block.split == 2).sum())
    again = explain_rows(run, given, "test", 0, 1, most_rows=60, progress=False).explained
    assert again == found
