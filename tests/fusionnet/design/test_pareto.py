"""The front is what no other candidate dominates, in whatever parts a stream comes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Bool, Float64

from fusionnet.design import pareto
from fusionnet.design.candidates import Pool
from fusionnet.design.pareto import RunningFront, non_dominated


def brute_force(values: Float64[np.ndarray, "N O"]) -> Bool[np.ndarray, " N"]:
    """Return, pair by pair, which rows no other is at least as good as and somewhere better."""
    return np.array(
        [
            not any((other >= row).all() and (other > row).any() for other in values)
            for row in values
        ],
        dtype=bool,
    )


def pool_of(number: Float64[np.ndarray, " N"]) -> Pool:
    return Pool(number, number * 0, np.zeros((len(number), 0)), np.zeros(len(number)))


# few values, so that many are equal
FEW = st.integers(0, 3).map(float)


@given(st.integers(0, 40), st.integers(1, 4), st.data())
def test_the_front_is_that_of_brute_force(num: int, width: int, data: st.DataObject) -> None:
    values = data.draw(arrays(np.float64, (num, width), elements=FEW))
    assert np.array_equal(non_dominated(values), brute_force(values))


@pytest.mark.parametrize("waiting", [0, 300, 10**6])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_stream_has_the_front_of_the_whole(
    width: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pareto, "LEAST_WAITING", waiting)
    monkeypatch.setattr(pareto, "CHUNK", 64)
    rng = np.random.default_rng(width)
    values = np.round(rng.normal(size=(1_023, width)), 1)
    front = RunningFront(width, 0)
    for rows in np.split(np.arange(1_023), [0, 1, 258, 600, 601]):
        front.add(values[rows], pool_of(rows))
    front.settle()
    wanted = np.flatnonzero(brute_force(values))
    assert sorted(front.pool.number.tolist()) == wanted.tolist()
    assert np.array_equal(values[front.pool.number], front.values)
    assert not front._waiting
