"""Scaling: statistics of train rows only, the same however the rows come in blocks."""

import json

import numpy as np
import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedcache.build.moments import SPREAD_FLOOR, Moments, vector_scaling
from embedcache.build.sample import RowSample
from embedcache.build.statistics import ScalingFit
from embedcache.config.columns import NumericColumn
from embedcache.config.targets import TargetColumn
from embedcache.scaling import CELSIUS_ZERO_K, Scaling, transformed, undone

FINITE = st.floats(-1e6, 1e6, width=32)


@examples(cost=2)
@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=FINITE
    ),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_moments_are_those_of_all_rows_at_once(values: np.ndarray, cuts: list[int]) -> None:
    moments = Moments(values.shape[1])
    for block in np.split(values, sorted(min(cut, len(values)) for cut in cuts)):
        moments.add(block)
    wide = values.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-12, atol=1e-9)
    constant = (wide == wide[0]).all(0)
    expected = np.where(constant, 1.0, wide.std(0))
    np.testing.assert_allclose(moments.std, expected, rtol=1e-9, atol=1e-12)
    assert (moments.count == len(values)).all()


def test_a_large_mean_does_not_eat_the_spread() -> None:
    values = 1e8 + np.tile([[0.0], [1.0]], (50, 1))
    moments = Moments(1)
    for block in np.split(values, 10):
        moments.add(block)
    assert moments.std[0] == pytest.approx(0.5, rel=1e-9)


def test_unobserved_values_do_not_count() -> None:
    moments = Moments(2)
    moments.add(np.array([[1.0, np.nan], [3.0, np.nan]]))
    moments.add(np.array([[np.nan, 7.0], [5.0, np.nan]]))
    np.testing.assert_allclose(moments.mean, [3.0, 7.0])
    np.testing.assert_allclose(moments.std, [np.std([1, 3, 5]), 1.0])
    assert moments.count.tolist() == [3, 1]


def test_a_column_may_begin_without_values_and_blocks_may_be_empty() -> None:
    moments = Moments(1)
    for block in ([np.nan, np.nan], [], [2.0, 4.0], [np.nan]):
        moments.add(np.array(block).reshape(-1, 1))
    assert (moments.mean.tolist(), moments.std.tolist()) == ([3.0], [1.0])


def test_a_constant_feature_has_spread_one_even_where_rounding_says_otherwise() -> None:
    moments = Moments(1)
    for _ in range(7):
        moments.add(np.full((13, 1), 0.1))
    assert moments.std.tolist() == [1.0]


def test_transforms_are_the_written_formulas() -> None:
    raw = torch.tensor([[2.0, 100.0, 0.5, 26.85]], dtype=torch.float64)
    result = transformed(raw, ("identity", "log10", "log1p", "inverse_kelvin"))
    expected = [2.0, 2.0, np.log(1.5), 1000 / (26.85 + CELSIUS_ZERO_K)]
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-14)
    assert raw[0, 1] == 100.0, "the raw values must stay raw"


@examples(cost=1)
@given(labels=hnp.arrays(np.float32, (9, 1), elements=st.floats(2.0**-126, 2.0**100, width=32)))
def test_a_transform_of_targets_is_undone(labels: np.ndarray) -> None:
    raw = torch.from_numpy(np.concatenate([labels] * 3, axis=1)).double()
    transforms = ("identity", "log10", "log1p")
    stored = transformed(raw, transforms).float()
    back = undone(stored.double(), transforms).numpy()
    np.testing.assert_array_equal(back[:, 0], raw[:, 0].numpy())
    # fp32 keeps a logarithm of up to 128 to 4e-6
    np.testing.assert_allclose(back[:, 1], raw[:, 1].numpy(), rtol=2e-5)
    np.testing.assert_allclose(back[:, 2], raw[:, 2].numpy(), rtol=2e-5, atol=1e-7)


def test_what_is_undone_stays_in_the_domain_and_tells_of_overflow() -> None:
    low, high = (undone(torch.full((1, 2), x), ("log10", "log1p")) for x in (-200.0, 200.0))
    assert (low > torch.tensor([0.0, -1.0])).all()
    assert transformed(low, ("log10", "log1p")).isfinite().all()
    assert high.isinf().all()


def test_statistics_of_a_target_are_of_its_transformed_labels() -> None:
    labels = 10.0 ** np.array([[-6.0], [-2.0], [np.nan], [2.0]])
    fit = ScalingFit([], [TargetColumn(name="k", column="k", transform="log10")])
    fit.add(np.empty((4, 0), dtype=np.float32), labels.astype(np.float32))
    found = fit.result()
    assert found.target_mean == pytest.approx((-2.0,), abs=1e-6)
    assert found.target_std == pytest.approx((np.std([-6, -2, 2]),), rel=1e-6)


def fitted(numeric: np.ndarray, targets: np.ndarray) -> Scaling:
    kinds = [
        TargetColumn(name="ef", column="ef"),
        TargetColumn(name="opt", column="opt", kind="binary"),
    ]
    transforms = {"a": "identity", "b": "log10", "c": "inverse_kelvin"}
    columns = [NumericColumn(column=name, transform=each) for name, each in transforms.items()]
    fit = ScalingFit(columns, kinds)
    fit.add(numeric, targets)
    return fit.result({"polymer": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)})


@pytest.fixture
def scaling() -> tuple[Scaling, np.ndarray]:
    rng = np.random.default_rng(0)
    numeric = np.stack(
        [2020 + rng.integers(0, 3, 500), 10 ** rng.normal(size=500), rng.uniform(-20, 80, 500)],
        axis=1,
    ).astype(np.float32)
    targets = np.stack([rng.normal(7, 4, 500), rng.random(500) < 0.25], axis=1).astype(np.float32)
    targets[::5] = np.nan
    return fitted(numeric, targets), numeric


def test_vectors_are_standardised_dimension_by_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.build.statistics.ROWS_AT_ONCE", 7)
    vectors = (
        5 + np.random.default_rng(0).normal(size=(40, 6)) * [1, 0.5, 0.1, 2, 1e-6, 0]
    ).astype(np.float32)
    found = vector_scaling(vectors)
    spread = vectors.astype(np.float64).std(0)
    np.testing.assert_allclose(found.mean, vectors.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std[:4], spread[:4], rtol=1e-9)
    floor = SPREAD_FLOOR * np.sqrt(np.mean(spread**2))
    np.testing.assert_allclose(
        found.std[4:], floor, rtol=1e-6, err_msg="what hardly differs must not be blown up"
    )


@pytest.mark.parametrize("num_strings", [0, 1, 3])
def test_vectors_without_spread_are_only_centred(num_strings: int) -> None:
    found = vector_scaling(np.full((num_strings, 4), 1 / 3, dtype=np.float32))
    assert found.std == (1.0,) * 4
    assert found.mean == (float(np.float32(1 / 3)) if num_strings else 0.0,) * 4


def test_applied_to_its_own_rows_it_gives_mean_zero_and_spread_one(
    scaling: tuple[Scaling, np.ndarray],
) -> None:
    result = scaling[0].apply(torch.from_numpy(scaling[1]))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.double().mean(0).numpy(), 0.0, atol=1e-6)
    np.testing.assert_allclose(result.double().std(0, correction=0).numpy(), 1.0, rtol=1e-6)


def test_regression_targets_are_standardised_and_binary_ones_are_not(
    scaling: tuple[Scaling, np.ndarray],
) -> None:
    result = scaling[0]
    assert result.target_mean[0] == pytest.approx(7, abs=0.6)
    assert result.target_std[0] == pytest.approx(4, abs=0.4)
    assert (result.target_mean[1], result.target_std[1]) == (0.0, 1.0)
    assert set(result.positive_rate) == {"opt"}
    assert 0.15 < result.positive_rate["opt"] < 0.35


def test_gradients_pass_through_to_raw_values(scaling: tuple[Scaling, np.ndarray]) -> None:
    raw = torch.tensor([[2021.0, 3.0, 25.0]], requires_grad=True)
    scaling[0].apply(raw).sum().backward()
    std = scaling[0].std
    expected = [
        1 / std[0],
        1 / (3.0 * np.log(10) * std[1]),
        -1000 / (25 + CELSIUS_ZERO_K) ** 2 / std[2],
    ]
    np.testing.assert_allclose(raw.grad[0].numpy(), expected, rtol=1e-5)


def test_json_round_trip_is_exact(scaling: tuple[Scaling, np.ndarray]) -> None:
    text = scaling[0].to_json()
    json.loads(text)
    assert Scaling.from_json(text) == scaling[0]


def test_a_scaling_without_features_works() -> None:
    fit = ScalingFit([], [TargetColumn(name="ef", column="ef")])
    fit.add(np.empty((4, 0), dtype=np.float32), np.ones((4, 1), dtype=np.float32))
    assert fit.result().apply(torch.empty(4, 0)).shape == (4, 0)
    assert fit.result().target_mean == (1.0,)


def ranked(*blocks: list[float], transform: str = "quantile") -> Scaling:
    """Return what is fitted to the labels of one target, block by block."""
    fit = ScalingFit((), [TargetColumn(name="y", column="y", transform=transform)])
    for block in blocks:
        labels = np.array(block, dtype=np.float32).reshape(-1, 1)
        fit.add(np.zeros((len(block), 0), dtype=np.float32), labels)
    return fit.result()


def labels_of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_a_quantile_transform_is_the_normal_score_of_a_rank() -> None:
    scaling = ranked([3.0, np.nan, 1000.0], [1.0, 2.0])
    scores = torch.special.ndtri(labels_of([1 / 8, 3 / 8, 5 / 8, 7 / 8]))
    torch.testing.assert_close(scaling.as_learnt(labels_of([1.0, 2.0, 3.0, 1000.0])), scores)
    between = scaling.as_learnt(labels_of([1.5, 501.5]))
    torch.testing.assert_close(between, (scores[[0, 2]] + scores[[1, 3]]) / 2)
    # beyond the train labels there are no ranks
    torch.testing.assert_close(scaling.as_learnt(labels_of([-9.0, 9e9])), scores[[0, 3]])
    assert scaling.in_units(labels_of([-50.0, 50.0])).flatten().tolist() == [1.0, 1000.0]
    assert scaling.as_learnt(labels_of([np.nan])).isnan().all()
    assert scaling.target_std[0] == pytest.approx(float(scores.std(correction=0)))


@examples(cost=2)
@given(
    labels=st.lists(st.one_of(FINITE, st.sampled_from([0.0, 1.0])), min_size=1, max_size=1500),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_quantile_transform_keeps_the_order_and_is_undone(
    labels: list[float], dtype: torch.dtype
) -> None:
    scaling = ranked(labels)
    assert Scaling.from_json(scaling.to_json()) == scaling
    raw = torch.tensor(sorted(np.float32(labels).tolist()), dtype=dtype).unsqueeze(1)
    learnt = scaling.as_learnt(raw)
    assert learnt.isfinite().all()
    assert (learnt.diff(dim=0) >= 0).all()
    back = scaling.in_units(learnt)
    spread = float(raw.max() - raw.min())
    knots = torch.tensor(scaling.quantiles[0]).to(dtype)
    inside = ((raw >= knots.min()) & (raw <= knots.max())).squeeze(1)
    torch.testing.assert_close(back[inside], raw[inside], rtol=1e-4, atol=1e-4 * spread + 1e-6)


def test_classes_have_their_shares_of_the_train_labels() -> None:
    target = TargetColumn(name="c", column="c", kind="multiclass", classes=("a", "b", "d"))
    fit = ScalingFit((), [target])
    fit.add(
        np.zeros((5, 0), dtype=np.float32), np.array([[0], [2], [2], [np.nan], [2]], np.float32)
    )
    scaling = fit.result()
    assert scaling.class_rates == {"c": (0.25, 0.0, 0.75)}
    assert (scaling.target_mean, scaling.target_std) == ((0.0,), (1.0,))
    assert "no train row has class 'b'" in " ".join(fit.remarks())


def features(*blocks: list[float], transform: str = "quantile", fill: str = "median") -> Scaling:
    """Return what is fitted to one feature, block by block."""
    fit = ScalingFit([NumericColumn(column="x", transform=transform, if_null=fill)], ())
    for block in blocks:
        values = np.array(block, dtype=np.float32).reshape(-1, 1)
        fit.add(values, np.zeros((len(block), 0), dtype=np.float32))
    return fit.result()


def test_a_quantile_transform_of_a_feature_is_the_normal_score_of_its_rank() -> None:
    scaling = features([3.0, np.nan, 1000.0], [1.0, 2.0])
    scores = torch.special.ndtri(torch.tensor([1 / 8, 3 / 8, 5 / 8, 7 / 8], dtype=torch.float64))
    spread = scores.std(correction=0)
    assert scaling.mean[0] == pytest.approx(0, abs=1e-12)
    assert scaling.std[0] == pytest.approx(float(spread))
    raw = torch.tensor([[1.0], [2.0], [3.0], [1000.0], [1.5], [-9.0], [9e9], [np.nan]])
    found = scaling.apply(raw).squeeze(1).double() * spread
    wanted = [*scores, (scores[0] + scores[1]) / 2, scores[0], scores[3], 0.0]  # the median's
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    assert Scaling.from_json(scaling.to_json()) == scaling
    assert scaling.reach() == {}


def test_gradients_pass_through_a_quantile_transform() -> None:
    raw = torch.tensor([[1.5], [400.0], [-3.0]], requires_grad=True)
    features([3.0, 1000.0, 1.0, 2.0]).apply(raw).sum().backward()
    slopes = raw.grad.squeeze(1)
    assert slopes[0] > 100 * slopes[1] > 0
    assert slopes[2] == 0


@examples(cost=2)
@given(
    values=st.lists(st.one_of(FINITE, st.sampled_from([0.0, 1.0])), min_size=1, max_size=600),
    cut=st.integers(0, 600),
)
def test_a_features_quantiles_do_not_depend_on_blocks_and_keep_the_order(
    values: list[float], cut: int
) -> None:
    scaling = features(values)
    assert features(values[:cut], values[cut:]) == scaling
    x = scaling.apply(torch.tensor(sorted(values)).unsqueeze(1))
    assert x.isfinite().all()
    assert (x.diff(dim=0) >= 0).all()
    knots = np.array(scaling.knots[0])
    assert (np.diff(knots) >= 0).all()
    np.testing.assert_array_equal(knots[[0, -1]], np.float32([min(values), max(values)]))


@pytest.mark.parametrize("num_blocks", [1, 7])
def test_a_sample_of_many_rows_is_bounded_and_like_all_of_them(
    num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcache.build.sample.MOST_ROWS", 1 << 13)
    rows = np.arange(200_000, dtype=np.float32).reshape(-1, 1)
    rows[::2] = 0  # an order that every second row would not show
    rows[5] = np.nan
    sample = RowSample(1)
    held = []
    for block in np.array_split(rows, num_blocks):
        sample.add(block)
        held.append(sample._num_held)
    (found,) = sample.columns()
    assert max(held) <= 3 * (1 << 13)
    assert len(found) == 1 << 13
    assert abs((found == 0).mean() - 0.5) < 0.02
    quantiles = np.quantile(found[found > 0], [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [20_000, 100_000, 180_000], atol=5_000)
    again = RowSample(1)
    again.add(rows)
    assert sorted(again.columns()[0]) == sorted(found)
