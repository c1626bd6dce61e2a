"""What designs are worth is what the cohort's own model says of them."""

import numpy as np
import polars as pl
import pytest

from benchmarks.studies.design import worth
from jobs.cohort.generate import cohort_frames


def test_rows_of_the_cohort_are_worth_their_noise_free_outcomes() -> None:
    (rows,) = cohort_frames(1, 48, 0, True)
    (oracle,) = cohort_frames(1, 48, 0, False)
    ef = oracle["delta_EF_pct"]
    said = {"reward": 1.0, "predicted_delta_EF_pct": ef + 0.5}
    said |= {"lower_delta_EF_pct": ef - 0.1, "upper_delta_EF_pct": ef + 0.1}
    given = rows.with_columns(**{k: v if k != "reward" else pl.lit(v) for k, v in said.items()})
    found = worth(given)
    assert found["ef_true"] == pytest.approx(ef.mean())
    assert found["ef_promised"] == pytest.approx(ef.mean() + 0.5)
    assert found["ef_inside"] == 1.0
    reward = 0.5 * ef + 0.3 * oracle["is_optimal"] + 0.2 * oracle["safety"]
    paid = 1.0 * (oracle["toxicity"] > 0.15) + 0.5 * (oracle["integrity"] < 0.8)
    assert found["reward_true"] == pytest.approx(np.mean((reward - paid).to_numpy()))
