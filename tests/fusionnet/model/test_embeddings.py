"""Embeddings of numbers are those of their authors' package, and go on beyond the rows that train
as is said of them.
"""

import warnings

import numpy as np
import pytest
import torch
from rtdl_num_embeddings import PeriodicEmbeddings, PiecewiseLinearEmbeddings

from embedcache.build.statistics import ScalingFit
from embedcache.config.columns import NumericColumn
from embedcache.scaling import Scaling
from fusionnet.config.model import ModelConfig, NumericEmbedding
from fusionnet.model.embeddings import Periodic, PiecewiseLinear, numeric_embedding

EDGES = [[-2.0, -0.5, 0.0, 1.5], [0.0, 1.0], [-1e-3, 0.0, 3.0]]


def inside(num_rows: int) -> torch.Tensor:
    """Return features between the first and last edges, some of them on one."""
    x = torch.rand(num_rows, len(EDGES))
    low, high = (torch.tensor([each[end] for each in EDGES]) for end in (0, -1))
    rows = low + x * (high - low)
    if num_rows:
        rows[0] = torch.tensor([each[0] for each in EDGES])
    return rows


def piecewise_linear(width: int = 5) -> PiecewiseLinear:
    torch.manual_seed(0)
    module = PiecewiseLinear(EDGES, width)
    with torch.no_grad():
        module.weight.normal_()
    return module


@pytest.mark.parametrize("num_rows", [0, 1, 7, 257])
def test_piecewise_linear_is_the_authors_version_b(num_rows: int) -> None:
    ours = piecewise_linear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a feature with one bin
        theirs = PiecewiseLinearEmbeddings(
            [torch.tensor(each) for each in EDGES], 5, activation=False, version="B"
        )
    with torch.no_grad():
        theirs.linear0.weight.copy_(ours.linear)
        theirs.linear0.bias.copy_(ours.bias)
        theirs.linear.weight.zero_()
        for feature, each in enumerate(EDGES):  # they keep a feature's last bin at the end
            num = len(each) - 1
            theirs.linear.weight[feature, : num - 1] = ours.weight[feature, : num - 1]
            theirs.linear.weight[feature, -1] = ours.weight[feature, num - 1]
    x = inside(num_rows)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(ours(x).square().sum(), ours.weight)[0]
    wanted = torch.autograd.grad(theirs(x).square().sum(), theirs.linear.weight)[0]
    torch.testing.assert_close(gradient[1, 0], wanted[1, -1], rtol=1e-4, atol=1e-4)


def test_it_starts_as_a_linear_function_and_goes_on_as_one() -> None:
    fresh, x = PiecewiseLinear(EDGES, 4), torch.tensor([[-1.0, 0.3, 2.0]])
    assert fresh(x).equal(x.unsqueeze(2) * fresh.linear + fresh.bias)
    module = piecewise_linear()
    for far in (-50.0, 50.0):
        near, farther = (module(torch.full((1, 3), far * times)) for times in (1, 2))
        torch.testing.assert_close(farther - near, far * module.linear.unsqueeze(0))
    assert module(torch.full((1, 3), 1e15)).isfinite().all()


def test_bins_stay_exact_in_half_precision() -> None:
    edges = [[100.0, 100.001, 100.002]]
    module = PiecewiseLinear(edges, 3)
    wanted = module.lower.clone()
    module.half()
    assert module.weight.dtype == torch.float16
    assert module.lower.equal(wanted)
    assert module(torch.tensor([[100.0015]])).isfinite().all()


@pytest.mark.parametrize("lite", [True, False])
def test_periodic_is_the_authors(lite: bool) -> None:
    torch.manual_seed(0)
    ours = Periodic(3, 5, 7, 0.3, lite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeriodicEmbeddings(
            3, 5, n_frequencies=7, frequency_init_scale=0.3, activation=True, lite=lite
        )
    with torch.no_grad():
        theirs.periodic.weight.copy_(ours.frequencies)
        theirs.linear.weight.copy_(ours.weight[0].T if lite else ours.weight)
        theirs.linear.bias.copy_(ours.bias[0] if lite else ours.bias)
    x = 3 * torch.randn(33, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.frequencies.abs().max() <= 0.9 < 4 * ours.frequencies.std()


@pytest.mark.parametrize("numeric", ["ple", "periodic"])
def test_a_feature_is_embedded_by_itself(numeric: str) -> None:
    config = ModelConfig(numeric=numeric, numeric_embedding=NumericEmbedding(width=6, lite=False))
    torch.manual_seed(0)
    module = numeric_embedding(config, 3, EDGES)
    assert module is not None
    with torch.no_grad():
        module.weight.normal_()
    x = torch.randn(9, 3)
    changed = x.clone()
    changed[:, 1] += 0.2
    moved = (module(changed) - module(x)).abs().sum((0, 2))
    assert (moved[[0, 2]] == 0).all()
    assert moved[1] > 0
    assert module(x).shape == (9, 3, 6)
    assert numeric_embedding(config, 0, []) is None


def fitted(*columns: np.ndarray, transform: str = "identity") -> Scaling:
    names = [f"x{k}" for k in range(len(columns))]
    fit = ScalingFit([NumericColumn(column=name, transform=transform) for name in names], [])
    rows = np.stack(columns, axis=1).astype(np.float32)
    fit.add(rows, np.empty((len(rows), 0), dtype=np.float32))
    return fit.result()


@pytest.mark.parametrize("transform", ["identity", "log1p", "inverse_kelvin", "quantile"])
def test_bins_hold_equal_shares_of_the_train_rows(transform: str) -> None:
    values = np.random.default_rng(0).lognormal(size=4000)
    scaling = fitted(values, transform=transform)
    (edges,) = scaling.bin_edges(16)
    x = scaling.apply(torch.from_numpy(values).float().unsqueeze(1)).squeeze(1)
    counts, _ = np.histogram(x.numpy(), edges)
    assert len(edges) == 17
    assert sorted(edges) == edges
    assert counts.sum() == 4000
    assert abs(counts - 250).max() <= 12


def test_features_of_few_values_have_few_bins() -> None:
    one, two = np.full(100, 7.0), np.arange(100) % 2
    mostly = np.where(np.arange(100) < 90, 0.0, np.arange(100))
    edges = fitted(one, two, mostly).bin_edges(8)
    assert [len(each) for each in edges[:2]] == [2, 2]
    assert edges[0] == [-0.5, 0.5]
    assert edges[1] == pytest.approx([-1.0, 1.0])
    assert 3 <= len(fitted(mostly).bin_edges(32)[0]) < 9
    module = PiecewiseLinear(edges, 3)
    assert module(torch.randn(5, 3)).isfinite().all()
