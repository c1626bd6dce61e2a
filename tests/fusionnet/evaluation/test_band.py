"""What a parity plot shows of intervals: the bounds of rows with about the same prediction."""

import numpy as np
import pytest

from fusionnet.config.tasks import Task
from fusionnet.evaluation.coverage import BAND_POINTS, band_of
from fusionnet.evaluation.figures import parity


def test_a_band_is_the_bounds_by_prediction() -> None:
    rng = np.random.default_rng(0)
    prediction = rng.uniform(0, 10, 5000)
    half = 1 + 0.2 * prediction  # wider where more is predicted
    bounds = np.column_stack([prediction - half, prediction + 2 * half])
    bounds[rng.random(5000) < 0.1] = [-np.inf, np.inf]
    band = band_of(bounds, prediction)
    assert band.shape == (BAND_POINTS, 3)
    assert (np.diff(band, axis=0) > 0).all(), "from the least prediction to the greatest"
    at, lower, upper = band.T
    assert lower == pytest.approx(at - (1 + 0.2 * at), abs=1e-9)
    assert upper == pytest.approx(at + 2 * (1 + 0.2 * at), abs=1e-9)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_few_rows_each_is_a_point_and_of_none_there_is_no_band(count: int) -> None:
    prediction = np.arange(float(count))
    bounds = np.column_stack([prediction - 1, prediction + 1])
    assert band_of(bounds, prediction).tolist() == [[p, p - 1, p + 1] for p in range(count)]
    endless = np.full((count, 2), [-np.inf, np.inf])
    assert band_of(endless, prediction).shape == (0, 3)


def test_a_plot_draws_both_bounds_and_none_without() -> None:
    task = Task(name="y", column="y")
    values = np.linspace(0, 1, 50)
    band = band_of(np.column_stack([values - 0.1, values + 0.2]), values)
    lines = parity(values, values, task, band).axes[0].lines
    assert len(lines) == 3
    assert lines[1].get_xdata() == pytest.approx(band[:, 1])
    assert lines[2].get_xdata() == pytest.approx(band[:, 2])
    assert lines[1].get_ydata() == pytest.approx(band[:, 0])
    assert len(parity(values, values, task).axes[0].lines) == 1
