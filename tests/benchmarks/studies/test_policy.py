"""What a design is truly worth is what the cohort's own outcome model gives the same row."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from benchmarks.studies import policy
from benchmarks.studies.policy_worth import true_rewards
from fusionnet.config.reward import RewardConfig
from jobs.cohort.generate import OUTCOME_COLUMNS, cohort_frames


def test_true_rewards_are_those_of_the_noise_free_cohort() -> None:
    (rows,) = cohort_frames(1, 480, 0, with_noise=True)
    (oracle,) = cohort_frames(1, 480, 0, with_noise=False)
    tasks = [SimpleNamespace(name=name.lower(), column=name) for name in OUTCOME_COLUMNS]
    run = SimpleNamespace(tasks=tasks, reward=RewardConfig.model_validate(policy.REWARD))
    found = true_rewards(SimpleNamespace(run=run), rows.drop(OUTCOME_COLUMNS))
    toxic, weak = oracle["toxicity"] > 0.15, oracle["integrity"] < 0.8
    wanted = (
        0.5 * oracle["delta_EF_pct"] + 0.3 * oracle["is_optimal"] + 0.2 * oracle["safety"]
    ).to_numpy() - (1.0 * toxic + 0.5 * weak)
    assert found == pytest.approx(np.asarray(wanted, dtype=float))
    paid = pl.DataFrame({"toxic": toxic, "weak": weak}).n_unique()
    assert paid > 2  # both penalties are paid by some rows and not by others
