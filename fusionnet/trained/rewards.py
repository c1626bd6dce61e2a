"""Rewards of rows, with what each is the sum of and how far it can be trusted.

Pessimism k is a lower confidence bound: k standard deviations of the members' own rewards are
subtracted, and a policy that looks for the model's weak spots gains nothing where its members
disagree. (Coste et al. 2024, Reward model ensembles help mitigate overoptimization, subtract a
multiple of the variance; a deviation is in the reward's own unit.) Of a new string members are
wrong together: there the deviation holds what strings left out have shown too (`novelty`), in
quadrature. What else members agree on is not corrected, and the noise of labels, which `loss:
beta_nll` learns, is not doubt about their mean.

Axes: B rows, T terms, N penalties, k members, P predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import get_args

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from embedcache.errors import ConfigError, NonFinitePredictionError
from fusionnet.config.reward import Unseen
from fusionnet.trained.blended import Found
from fusionnet.trained.formula import Formula
from fusionnet.trained.novelty import has_errors_of_strings
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import Columns


@dataclass(frozen=True)
class Rewards:
    """Rewards of B rows: `total` = sum of `terms` - sum of `penalties` - `doubt`."""

    total: Float[Tensor, " B"]
    terms: Float[Tensor, "B T"]  # weight times prediction
    penalties: Float[Tensor, "B N"]  # as they are subtracted: 0 or more
    doubt: Float[Tensor, " B"]  # as it is subtracted; 0 without pessimism
    names: tuple[str, ...]  # of the terms (reward_<task>), then of the penalties (penalty_<task>)
    # training saw the row's strings and categories; None where nobody looked (unseen: allow)
    known: Bool[Tensor, " B"] | None = None
    # a number of the row lies outside of the train rows'
    outside: Bool[Tensor, " B"] | None = None

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.total)


def rewards_of(
    run: TrainedRun,
    formula: Formula,
    found: Found,
    predictions: Float[Tensor, "B P"],
    pessimism: float = 0.0,
    widths: Sequence[float | None] | None = None,
    of_strings: Float[Tensor, " B"] | None = None,
) -> Rewards:
    """Return the rewards of rows; `predictions` are those of `found` as the reward reads them.

    Each penalty with a width is a sigmoid; without `widths` all thresholds are hard. `of_strings`
    is the variance that rows' strings add to what members disagree on (`NewStrings`). Raises
    NonFinitePredictionError where a reward is NaN or infinite.
    """
    parts = formula.parts(predictions, widths)
    total = parts.total()
    doubt = torch.zeros_like(total)
    if pessimism:
        if run.recipe.model.members > 1:
            doubt = _spread_of_members(run, formula, found, widths)
        if of_strings is not None:
            doubt = (doubt.square() + of_strings.to(doubt)).sqrt()
        doubt = pessimism * doubt
        total = total - doubt
    broken = int((~total.isfinite()).sum())
    if broken:
        raise NonFinitePredictionError(
            f"the rewards of {broken:,} of {len(total):,} rows are NaN or infinite: reward in"
            f" {run.folder / run.name}_config.yaml multiplies predictions beyond"
            " fp32, or a feature of these rows is far beyond the train rows"
        )
    return Rewards(total, parts.terms, parts.penalties, doubt, formula.names)


def _spread_of_members(
    run: TrainedRun, formula: Formula, found: Found, widths: Sequence[float | None] | None
) -> Float[Tensor, " B"]:
    """Return the standard deviation over members of each one's own reward, over k, not k - 1.

    Its slope is 0 where all members agree.
    """
    each = found.of_members(run).in_units(run, run.reward.binary)
    totals = formula.parts(each, widths).total()
    members = totals.unflatten(0, (run.recipe.model.members, len(found.outputs))).double()
    off = members - members.mean(0)
    return (torch.linalg.vector_norm(off, dim=0) / len(members) ** 0.5).to(totals)


def check_pessimism(run: TrainedRun, asked: float | None) -> float:
    """Return k, where none is asked for that of the run's config.

    Raises ConfigError for what is none, or what the run cannot have.
    """
    pessimism = run.reward.pessimism if asked is None else asked
    if not 0 <= pessimism < float("inf"):
        raise ConfigError(f"pessimism must be a number, 0 or more; got {pessimism:g}")
    if pessimism and run.recipe.model.members == 1 and not has_errors_of_strings(run):
        raise ConfigError(
            f"pessimism is {pessimism:g}, and {run.folder} is one network, which does not say how"
            " far its rewards can be trusted: train an ensemble (model.members: 8), or leave"
            " strings out (split.strategy: leave_strings_out), whose errors say it of new ones, or"
            " set reward.pessimism: 0. The noise of labels (loss: beta_nll) is no doubt about their"
            " mean"
        )
    return pessimism


def check_unseen(run: TrainedRun, asked: str | None) -> Unseen:
    """Return the policy on what training never saw; unset: that of the run's config.

    Raises ConfigError for what is none.
    """
    if asked is None:
        return run.reward.unseen
    for policy in get_args(Unseen):
        if asked == policy:
            known: Unseen = policy
            return known
    raise ConfigError(f"unseen must be {', '.join(get_args(Unseen))}; got {asked!r:.80}")


def flagged(rewards: Rewards, marks: pl.DataFrame) -> Rewards:
    """Return rewards with what is known and outside of the same rows."""
    known, outside = (
        torch.from_numpy(marks[name].to_numpy(writable=True)).to(rewards.total.device)
        for name in ("known", "outside")
    )
    return replace(rewards, known=known, outside=outside)


def reward_names(formula: Formula, pessimism: float) -> list[str]:
    """Return the columns of `reward_columns`."""
    return ["reward", *formula.names, *(["doubt"] if pessimism else [])]


def reward_columns(rewards: Rewards, formula: Formula, pessimism: float) -> Columns:
    """Return rewards with their parts, and with pessimism `doubt`, as columns."""
    values = [rewards.total.unsqueeze(1), rewards.terms, rewards.penalties]
    if pessimism:
        values.append(rewards.doubt.unsqueeze(1))
    return Columns(reward_names(formula, pessimism), torch.cat(values, dim=1))


def joined_rewards(batches: Sequence[Rewards]) -> Rewards:
    """Return the rewards of all batches, one after the other."""
    first = batches[0]
    columns = {
        field.name: torch.cat([getattr(batch, field.name) for batch in batches])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return Rewards(**{**vars(first), **columns})
