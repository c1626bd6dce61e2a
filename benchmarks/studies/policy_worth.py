"""What designs are promised by a model, and what the reference cohort's outcome model says of them.

Axes: B rows, P patients.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from fusionnet import RewardModel
from fusionnet.design.space import Designs
from fusionnet.rl.problem import DesignProblem
from jobs.cohort.generate import calibrate
from jobs.cohort.outcomes import latent_effects, noise_free
from jobs.cohort.polymers import chemistry_of


class Found(NamedTuple):
    """One design for each of P patients."""

    designs: Designs
    promised: Float64[np.ndarray, " P"]  # the model's reward as it was maximised
    true: Float64[np.ndarray, " P"]  # the outcome model's


def random_search(problem: DesignProblem, count: int, seed: int) -> Designs:
    """Return for each patient the design of greatest reward among `count` random ones."""
    generator = np.random.default_rng(seed)
    best = []
    for patient in range(problem.num_patients):
        designs = problem.space.draw(generator, count)
        rewards = problem.rewards(np.full(count, patient), designs).total
        place = int(rewards.argmax())
        best.append([part[place] for part in designs])
    return Designs(*(np.stack(parts) for parts in zip(*best, strict=True)))


def judged(model: RewardModel, problem: DesignProblem, designs: Designs) -> Found:
    """Return designs for all patients with what they are promised and what they are worth."""
    patients = np.arange(problem.num_patients)
    promised = problem.rewards(patients, designs).total.double().numpy()
    return Found(designs, promised, true_rewards(model, problem.rows(patients, designs)))


def true_rewards(model: RewardModel, rows: pl.DataFrame) -> Float64[np.ndarray, " B"]:
    """Return the rewards of the outcome model without noise, by the run's own formula."""
    columns = {
        name: rows[name].to_numpy() for name in rows.columns if rows[name].dtype.is_numeric()
    }
    chemistry = [chemistry_of(text) for text in rows["polymer_SMILES"]]
    for effect in ("bioactivity", "adhesion", "irritation"):
        columns[effect] = np.array([getattr(each, effect) for each in chemistry])
    outcomes = noise_free(latent_effects(columns), calibrate())
    by_task = {task.name: outcomes[task.column] for task in model.run.tasks}
    total = sum(term.weight * by_task[term.task] for term in model.run.reward.terms)
    for each in model.run.reward.penalties:
        value = by_task[each.task]
        beyond = value > each.above if each.above is not None else value < each.below
        total = total - each.penalty * beyond
    return np.asarray(total, dtype=np.float64)
