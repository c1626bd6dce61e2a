"""A replicate's metrics are those of its rows, put together; intervals hold as often as they say
where rows come in groups, and those of rows alone would not.
"""

import numpy as np
import pytest
from jaxtyping import Float, Int
from scipy import stats
from sklearn import metrics

from fusionnet.config.tasks import Task
from fusionnet.evaluation import bootstrap, replicates
from fusionnet.evaluation.bootstrap import LEAST_UNITS, bounds, confidence_of, drawn, replicated
from fusionnet.evaluation.replicates import Draws, replicate_metrics
from fusionnet.evaluation.rows import Units
from fusionnet.metrics import task_metrics

NUMBER = Task(name="y", column="y")
BINARY = Task(name="b", column="b", kind="binary")
CLASSES = Task(name="c", column="c", kind="multiclass", classes=("p", "q", "r", "s"))
ORDERED = Task(name="o", column="o", kind="ordinal", classes=("p", "q", "r", "s"))
DECADES = Task(name="k", column="k", transform="log10")


def made(
    task: Task, num_rows: int, decimals: int, seed: int = 0
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N K"]]:
    """Return labels, a tenth of them missing, and predictions."""
    generator = np.random.default_rng(seed)
    if task.kind == "regression":
        target = 3 + generator.normal(size=num_rows)
        predicted = (target + generator.normal(size=num_rows))[:, None]
        target, predicted = target.round(decimals), predicted.round(decimals)
        if task.transform == "log10":
            target, predicted = 10**target, 10**predicted
    else:
        num_classes = task.num_classes
        target = generator.integers(0, max(num_classes, 2), num_rows).astype(np.float64)
        sure = 2 * np.eye(max(num_classes, 2))[target.astype(int)]
        chance = np.exp(sure + generator.normal(size=sure.shape))
        chance = (chance / chance.sum(1, keepdims=True)).round(decimals)
        predicted = chance[:, 1:] if task.kind == "binary" else chance
    target[generator.random(num_rows) < 0.1] = np.nan
    return target, predicted


def rows_of(draws: Draws, replicate: int) -> Int[np.ndarray, " M"]:
    """Return the rows of a replicate, each as often as its unit was drawn."""
    return np.repeat(np.arange(len(draws.unit)), draws.weight[replicate][draws.unit].astype(int))


@pytest.mark.parametrize("task", [NUMBER, BINARY, CLASSES, ORDERED, DECADES], ids=lambda t: t.kind)
@pytest.mark.parametrize(("num_rows", "num_units"), [(23, 6), (800, 40)])
@pytest.mark.parametrize("decimals", [1, 15])  # with ties, and without
def test_a_replicates_metrics_are_those_of_its_rows(
    task: Task, num_rows: int, num_units: int, decimals: int
) -> None:
    target, predicted = made(task, num_rows, decimals)
    draws = drawn(np.random.default_rng(1).integers(0, num_units, num_rows))
    found = replicate_metrics(task, target, predicted, draws)
    assert tuple(found) == task.metrics
    undefined = 0
    for replicate in [0, *range(1, 40)]:
        rows = rows_of(draws, replicate)
        wanted = task_metrics([task], target[rows][:, None], predicted[rows])[task.column]
        for name, value in wanted.items():
            own = found[name][replicate]
            undefined += value is None
            assert np.isnan(own) if value is None else own == pytest.approx(value, abs=1e-9), name
    assert undefined == 0 or num_rows == 23


@pytest.mark.parametrize("decimals", [1, 15])
def test_ranks_of_a_replicate_are_those_of_scikit_learn(decimals: int) -> None:
    target, predicted = made(NUMBER, 700, decimals)
    label, score = made(BINARY, 700, decimals, seed=1)
    draws = drawn(np.arange(700) // 20)
    of_numbers = replicate_metrics(NUMBER, target, predicted, draws)
    of_labels = replicate_metrics(BINARY, label, score, draws)
    for replicate in range(30):
        rows = rows_of(draws, replicate)
        own = rows[~np.isnan(target[rows])]
        assert of_numbers["spearman"][replicate] == pytest.approx(
            stats.spearmanr(target[own], predicted[own, 0]).statistic, rel=1e-9
        )
        assert of_numbers["r2"][replicate] == pytest.approx(
            metrics.r2_score(target[own], predicted[own, 0]), rel=1e-9
        )
        own = rows[~np.isnan(label[rows])]
        for name, function in (
            ("auroc", metrics.roc_auc_score),
            ("auprc", metrics.average_precision_score),
        ):
            wanted = function(label[own] == 1, score[own, 0])
            assert of_labels[name][replicate] == pytest.approx(wanted, rel=1e-9)


def test_levels_change_intervals_by_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    target, predicted = made(NUMBER, 4000, 15)
    label, score = made(BINARY, 4000, 15, seed=1)
    targets, scores = np.stack([target, label], axis=1), np.concatenate([predicted, score], axis=1)
    tasks, units = [NUMBER, BINARY], Units(np.arange(4000) // 100, "patient")
    found = task_metrics(tasks, targets, scores)
    rounded = confidence_of(tasks, targets, scores, found, units)
    monkeypatch.setattr(replicates, "LEVELS", 4000)
    exact = confidence_of(tasks, targets, scores, found, units)
    for column, of_task in exact.metrics.items():
        for name, wanted in of_task.items():
            assert wanted is not None
            width = wanted[1] - wanted[0]
            assert rounded.of(column, name) == pytest.approx(wanted, abs=0.01 * width), name
            assert wanted[0] < found[column][name] < wanted[1]


def world(generator: np.random.Generator, num_units: int) -> tuple[np.ndarray, ...]:
    """Return rows of units that differ in outcome, bias and noise: unit, label, prediction."""
    unit = np.repeat(np.arange(num_units), generator.integers(10, 30, num_units))
    of_units = generator.normal(size=(3, num_units))[:, unit]
    target = of_units[0] + generator.normal(size=len(unit))
    noise = 0.7 * np.exp(0.3 * of_units[2]) * generator.normal(size=len(unit))
    return unit, target, target + 0.7 * of_units[1] + noise


@pytest.mark.parametrize("num_units", [8, 30])
def test_intervals_hold_where_rows_come_in_groups_and_those_of_rows_do_not(
    num_units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "REPLICATES", 400)
    monkeypatch.setattr(replicates, "_spearman", lambda x, y, draws: np.zeros(len(draws.weight)))
    generator = np.random.default_rng(num_units)
    _, target, predicted = world(generator, 50_000)
    truth = task_metrics([NUMBER], target[:, None], predicted[:, None])["y"]
    held: dict[str, list[bool]] = {"unit": [], "row": []}
    trials = 150
    for _ in range(trials):
        unit, target, predicted = world(generator, num_units)
        own = task_metrics([NUMBER], target[:, None], predicted[:, None])
        for name, number in (("unit", unit), ("row", np.arange(len(unit)))):
            pair = (target[:, None], predicted[:, None])
            found = confidence_of([NUMBER], *pair, own, Units(number, name))
            for metric in ("mae", "rmse", "r2"):
                low, high = found.of("y", metric) or (0, 0)
                held[name].append(low <= truth[metric] <= high)
    # three metrics of a trial rise and fall together: as if there were `trials` alone
    error = np.sqrt(0.95 * 0.05 / trials)
    assert np.mean(held["unit"]) == pytest.approx(0.95, abs=3 * error + 0.02)
    assert np.mean(held["row"]) < 0.75


@pytest.mark.parametrize("num_units", [5, 12, 300])
def test_of_normal_replicates_the_interval_is_students(num_units: int) -> None:
    """A bootstrap's variance of a mean has n where Student's interval has n - 1."""
    values = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    wanted = stats.t.ppf(0.975, num_units - 1) * np.sqrt(num_units / (num_units - 1))
    found = bounds(np.append(0.1, 0.1 + values), 7.0, num_units)
    assert found == pytest.approx((7 - wanted, 7 + wanted), rel=2e-3)


def test_few_units_have_no_interval_and_the_reason_is_told() -> None:
    targets, scores = np.arange(40.0)[:, None], np.arange(40.0)[:, None] + 1
    found = task_metrics([NUMBER], targets, scores)
    few = Units(np.arange(40) % (LEAST_UNITS - 1), "patient")
    told = confidence_of([NUMBER], targets, scores, found, few)
    assert told.metrics == {}
    assert "the rows are of 4 values of patient" in told.reason
    enough = Units(np.arange(40) % LEAST_UNITS, "patient")
    told = confidence_of([NUMBER], targets, scores, found, enough)
    assert (told.reason, told.num_units) == ("", LEAST_UNITS)
    assert told.of("y", "mae") == (1, 1)
    # a label in too few of them
    targets[enough.number > 2] = np.nan
    told = confidence_of([NUMBER], targets, scores, task_metrics([NUMBER], targets, scores), enough)
    assert told.of("y", "mae") is None


def test_what_is_undefined_in_replicates_has_no_interval() -> None:
    label, unit = np.zeros(60), np.arange(60) // 6
    label[:3] = 1  # in one unit of ten: a third of the replicates have no positive
    score = np.linspace(1, 0, 60)[:, None]
    own = task_metrics([BINARY], label[:, None], score)
    told = confidence_of([BINARY], label[:, None], score, own, Units(unit, "patient"))
    assert own["b"]["auroc"] is not None
    assert told.of("b", "auroc") is None
    assert told.of("b", "accuracy") is not None
    assert bounds(np.arange(11.0), None, 10) is None


def test_binary_targets_have_intervals_of_their_means() -> None:
    tasks = [BINARY, Task(name="d", column="d", kind="binary")]
    pairs = [made(BINARY, 300, 15, seed) for seed in (0, 1)]
    targets = np.stack([pair[0] for pair in pairs], axis=1)
    scores = np.concatenate([pair[1] for pair in pairs], axis=1)
    own, units = task_metrics(tasks, targets, scores), Units(np.arange(300) // 10, "patient")
    told = confidence_of(tasks, targets, scores, own, units)
    values = replicated(tasks, targets, scores, drawn(units.number))
    mean = (values["b"]["auroc"] + values["d"]["auroc"]) / 2
    value = (own["b"]["auroc"] + own["d"]["auroc"]) / 2
    assert told.macro["auroc"] == bounds(mean, value, 30)


def test_bundles_of_many_units_spread_as_the_units_do() -> None:
    """The standard error of a mean of N rows, each alone, is sd / sqrt(N), in whatever order."""
    error = np.sort(np.abs(np.random.default_rng(0).normal(size=(20_000, 1))), axis=0)
    target = np.zeros_like(error)
    own = task_metrics([NUMBER], target, error)
    told = confidence_of([NUMBER], target, error, own, Units(np.arange(20_000), "row"))
    low, high = told.of("y", "mae") or (0, 0)
    wanted = 2 * 1.96 * error.std() / np.sqrt(20_000)
    assert high - low == pytest.approx(wanted, rel=0.15)
    assert told.num_units == 20_000
