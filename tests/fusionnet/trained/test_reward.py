"""The reward is the specification's formula row by row; its differentiable form has the slope of
finite differences; nothing is invented.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
import torch
from torch import Tensor

from embedcache.cache.reader import open_cache
from embedcache.errors import (
    ConfigError,
    NonFinitePredictionError,
    TableError,
    UnobservedTaskError,
)
from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig, RewardPenalty, RewardTerm
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.trained import batches
from fusionnet.trained.run import load_run

ABOVE, BELOW = (
    RewardPenalty(task="aux", above=10.0, penalty=1.0),
    RewardPenalty(task="ef", below=1.5, penalty=0.5),
)
TERMS = (RewardTerm(task="ef", weight=0.5), RewardTerm(task="opt", weight=0.3))
FLOATS = pl.selectors.float()  # predictions, without what is said of them


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def plain(made_run: Path) -> RewardModel:
    return RewardModel.load(made_run)


def rewarding(
    model: RewardModel, *penalties: RewardPenalty, terms: tuple[RewardTerm, ...] = TERMS
) -> RewardModel:
    return RewardModel(replace(model.run, reward=RewardConfig(terms=terms, penalties=penalties)))


def at_the_median(model: RewardModel, frame: pl.DataFrame) -> tuple[RewardPenalty, RewardPenalty]:
    """Return penalties that half of the rows pay."""
    predicted = model.predict(frame)
    return (
        ABOVE.model_copy(update={"above": predicted["predicted_gappy"].median()}),
        BELOW.model_copy(update={"below": predicted["predicted_outcome"].median()}),
    )


def test_the_reward_is_the_specifications_row_by_row(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    above, below = at_the_median(plain, frame)
    model = rewarding(plain, above, below)
    predicted = model.predict(frame)
    wanted, paid = [], set()
    for row in predicted.iter_rows(named=True):
        value = row["predicted_outcome"] * 0.5 + row["predicted_good"] * 0.3
        penalty = 0.0
        if row["predicted_gappy"] > above.above:
            penalty += 1.0
        if row["predicted_outcome"] < below.below:
            penalty += 0.5
        wanted.append(value - penalty)
        paid.add(penalty)
    found = model.reward(frame)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert paid == {0.0, 0.5, 1.0, 1.5}
    assert not found.requires_grad
    scored = model.score(frame)
    assert scored["reward"].to_list() == pytest.approx(found.tolist(), abs=1e-6)
    assert scored.select(predicted.columns).equals(predicted)
    assert predicted["predicted_good"].is_between(0, 1).all()


def test_a_reward_reads_probabilities_or_as_specified_scores(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    opt = (RewardTerm(task="opt", weight=1.0),)
    as_score = RewardConfig(terms=opt, binary="score")
    rewards = {
        "probability": rewarding(plain, terms=opt),
        "score": RewardModel(replace(plain.run, reward=as_score)),
    }
    vectors, inputs = plain.inputs(frame)
    logit = plain.run.model.network(vectors, batches.standardised(plain.run, inputs))[:, 1]
    torch.testing.assert_close(rewards["score"].reward(frame), logit.sigmoid())
    predicted = torch.from_numpy(plain.predict(frame)["predicted_good"].to_numpy(writable=True))
    torch.testing.assert_close(rewards["probability"].reward(frame), predicted)
    assert (predicted - logit.sigmoid()).abs().max() > 0.05
    assert rewards["score"].predict(frame).equals(plain.predict(frame))
    for model in rewards.values():
        torch.testing.assert_close(
            model.differentiable(vectors, inputs), model.reward(frame), rtol=1e-4, atol=1e-5
        )


def test_batches_do_not_matter(
    plain: RewardModel, frame: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rewarding(plain, ABOVE)
    whole = model.reward(frame)
    monkeypatch.setattr(batches, "BATCH_ROWS", 37)
    torch.testing.assert_close(model.reward(frame), whole, rtol=1e-5, atol=1e-5)
    assert [len(part) for part in model.batches(frame)] == [37] * 11 + [13]
    torch.testing.assert_close(model.reward(frame[100:101]), whole[100:101], rtol=1e-5, atol=1e-5)


def test_the_model_is_frozen(plain: RewardModel) -> None:
    assert not plain.run.model.training
    assert not any(parameter.requires_grad for parameter in plain.run.model.parameters())


def slope_by_differences(value: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """Return d sum(value) / d at by central differences."""
    slope = torch.zeros_like(at)
    for place in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[place] = step * max(1.0, abs(at.view(-1)[place].item()))
        slope.view(-1)[place] = (value(at + nudge) - value(at - nudge)).sum() / (2 * nudge.sum())
    return slope


@pytest.mark.slow
@pytest.mark.parametrize(
    "penalties",
    [(), (ABOVE.model_copy(update={"width": 2.0}), BELOW.model_copy(update={"width": 0.3}))],
    ids=["terms", "penalties"],
)
def test_the_slope_is_that_of_finite_differences(
    penalties: tuple[RewardPenalty, ...], made_run: Path, frame: pl.DataFrame
) -> None:
    # slopes are fp32 whatever predictions are
    model = rewarding(RewardModel.load(made_run, precision="bf16"), *penalties)
    vectors, inputs = model.inputs(frame.head(6))

    def of_numeric(numeric: Tensor) -> Tensor:
        return model.differentiable(vectors, replace(inputs, numeric=numeric))

    def of_vectors(first: Tensor) -> Tensor:
        return model.differentiable([first, *vectors[1:]], inputs)

    for function, leaf in ((of_numeric, inputs.numeric), (of_vectors, vectors[0])):
        (found,) = torch.autograd.grad(function(leaf.requires_grad_()).sum(), leaf)
        wanted = slope_by_differences(function, leaf.detach(), 3e-3)
        assert found.abs().max() > 1e-3
        # ReLU kinks and fp32: a wrong factor or a lost term is far beyond
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_the_differentiable_form_is_the_reward_but_for_its_thresholds(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    above, below = at_the_median(plain, frame)
    model = rewarding(plain, above, below.model_copy(update={"width": 0.2}))
    inputs, hard = model.inputs(frame), model.reward(frame)
    torch.testing.assert_close(
        model.differentiable(*inputs, softness=1e-6), hard, rtol=1e-4, atol=2e-2
    )
    values = torch.from_numpy(model.predict(frame).select(FLOATS).to_numpy(writable=True))
    softened = (
        torch.sigmoid((below.below - values[:, 0]) / 0.2) - (values[:, 0] < below.below).float()
    )
    # `above` has no width: it stays hard
    torch.testing.assert_close(
        model.differentiable(*inputs), hard - below.penalty * softened, rtol=1e-4, atol=1e-4
    )
    both = (
        softened * below.penalty
        + torch.sigmoid((values[:, 2] - above.above) / 0.2)
        - (values[:, 2] > above.above).float()
    )
    torch.testing.assert_close(
        model.differentiable(*inputs, softness=0.2), hard - both, rtol=1e-4, atol=1e-4
    )


def test_an_untrained_task_is_an_error_that_says_so(
    make_run: Callable[..., Path], frame: pl.DataFrame, tmp_path: Path
) -> None:
    tasks = [
        {"name": "ef", "column": "outcome", "head": [16, 8]},
        {"name": "opt", "column": "good", "kind": "binary", "head": [8]},
        {"name": "aux", "column": "gappy", "head": [8]},
        {"name": "safety", "column": "safety", "optional": True},  # the table has no such column
    ]
    model = RewardModel.load(
        make_run(
            tmp_path / "run", tasks=tasks, reward={"terms": [{"task": "safety", "weight": 0.2}]}
        )
    )
    inputs = model.inputs(frame)
    for read in (
        model.reward,
        model.score,
        lambda _: model.differentiable(*inputs),
    ):
        with pytest.raises(
            UnobservedTaskError, match=r"task 'safety' was not trained.*its table had no labels"
        ):
            read(frame)
    assert "predicted_safety" not in model.predict(frame).columns


def test_a_reward_that_is_not_there_or_misspelt_is_an_error(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    with pytest.raises(ConfigError, match=r"has no reward\.terms"):
        rewarding(plain, terms=()).reward(frame)
    with pytest.raises(
        ConfigError, match=r"'saftey', which is not among the tasks .*: ef, opt, aux"
    ):
        rewarding(plain, terms=(RewardTerm(task="saftey", weight=1.0),)).reward(frame)


def outlying(frame: pl.DataFrame, value: float) -> pl.DataFrame:
    """Return the frame with a feature of two of its rows so large, and of one as small."""
    place = pl.int_range(pl.len())
    far = pl.when(place.is_in([3, 9])).then(value).when(place == 4).then(-value).otherwise("x0")
    return frame.with_columns(x0=far)


@pytest.mark.parametrize("value", [1e17, 1e20, 1e38])
def test_a_feature_beyond_fp32s_reach_is_refused_with_its_column_count_and_rows(
    plain: RewardModel, frame: pl.DataFrame, value: float
) -> None:
    model, wrong = rewarding(plain, ABOVE), outlying(frame, value)
    for read in (model.predict, model.reward, model.score, model.inputs):
        with pytest.raises(
            TableError,
            match=re.escape(f": 3 rows (-{value:g} to {value:g}); rows 3, 4, 9"),
        ):
            read(wrong)


def test_python_integers_of_a_pandas_frame_are_judged_as_all_numbers(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    columns = {name: column.to_list() for name, column in frame.head(4).to_dict().items()}
    for value, message in (
        (10**30, r"'x0': so far from the train rows that fp32 overflows: 1 row .*; row 2"),
        (2 * 10**38, r"'x0': so far from the train rows"),
        (10**400, "column 'x0' of the frame .*too large"),
    ):
        numbers = pd.Series([0, 1, value, 2], dtype=object)
        with pytest.raises(TableError, match=message):
            plain.predict(pd.DataFrame({**columns, "x0": numbers}))
    small = pd.DataFrame({**columns, "x0": pd.Series([0, 1, 10**9, 2], dtype=object)})
    assert plain.predict(small)["outside"].tolist() == [False, False, True, False]


def test_far_outside_of_the_train_rows_is_finite_and_let_through(
    plain: RewardModel, frame: pl.DataFrame
) -> None:
    predicted = plain.predict(outlying(frame, 1e12))
    assert predicted.select(FLOATS.is_finite().all()).row(0) == (True, True, True)
    where = predicted.filter(pl.col("outside"))
    assert 0 < where.height < frame.height
    assert where["reason"].str.contains("is outside of the train rows' ").all()


def test_predictions_that_are_not_finite_never_leave(
    made_run: Path, frame: pl.DataFrame, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 100)
    run = load_run(made_run)
    run.model.network.heads["aux"][-1].bias.data.fill_(float("inf"))
    model = rewarding(RewardModel(run), ABOVE)
    for read in (model.predict, model.reward, model.score):
        with pytest.raises(
            NonFinitePredictionError,
            match=(
                r"rows 0 to 99: 100 rows of 100 have predictions of gappy that are NaN or infinite:"
                r" rows 0, 1, 2, 3, 4, \.\.\.; the largest feature of the first is 'x"
            ),
        ):
            read(frame)
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    with pytest.raises(
        NonFinitePredictionError, match=r"the test rows of .*cache\.zarr: .* predictions of gappy"
    ):
        evaluate_run(run, cache, "test", progress=False, with_baselines=False)


def test_rewards_that_are_not_finite_never_leave(plain: RewardModel, frame: pl.DataFrame) -> None:
    model = rewarding(plain, terms=(RewardTerm(task="ef", weight=10.0),))
    predictions = torch.tensor([[1.0, 0.5, 1.0], [3e38, 0.5, 1.0]])
    with pytest.raises(NonFinitePredictionError, match="the rewards of 1 of 2 rows are NaN"):
        model.reward_of(predictions)
    vectors, inputs = model.inputs(frame.head(3))
    inputs.numeric[1, 0] = 1e30
    with pytest.raises(NonFinitePredictionError, match="the rewards of 1 of 3 rows are NaN"):
        model.differentiable(vectors, inputs)
