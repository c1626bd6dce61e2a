"""The parts of a reward add up to it; pessimism subtracts what members disagree on; what training
never saw is refused or told.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from torch import Tensor

from embedcache.cache.reader import open_cache
from embedcache.config.table import DataConfig
from embedcache.errors import ConfigError, NonFinitePredictionError, TableError
from embedcache.schema import parse_config
from fusionnet import RewardModel
from fusionnet.calibration.saved import Calibration
from fusionnet.config.reward import RewardConfig, RewardPenalty, RewardTerm
from fusionnet.experiment import load_experiment
from fusionnet.model.forward import to_units
from fusionnet.trained.batches import standardised
from fusionnet.trained.blended import found_of, tree_tables
from fusionnet.trained.formula import Formula, Reading, formula_of
from fusionnet.trained.frames import open_frame
from fusionnet.trained.rewards import Rewards, check_unseen
from fusionnet.trained.run import TrainedRun
from fusionnet.workflow.blending import blend_run

PENALTIES = (
    RewardPenalty(task="aux", above=13.0, penalty=1.0, width=1.0),
    RewardPenalty(task="ef", below=1.7, penalty=0.5, width=0.3),
    RewardPenalty(task="aux", below=12.5, penalty=0.25, width=1.0),
)
TERMS = (RewardTerm(task="ef", weight=0.5), RewardTerm(task="opt", weight=-0.3))
NAMES = ("reward_ef", "reward_opt", "penalty_aux", "penalty_ef", "penalty_aux_2")
NEW = "[*]CCCCN[*]"


def rewarding(model: RewardModel, **changes: Any) -> RewardModel:
    config = RewardConfig(**{"terms": TERMS, "penalties": PENALTIES, **changes})
    return RewardModel(replace(model.run, reward=config))


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def model(made_run: Path) -> RewardModel:
    return rewarding(RewardModel.load(made_run))


@pytest.fixture(scope="module")
def ensemble(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three members, which differ, with trees beside them."""
    blend = {"boosting": True, "parts": 3, "most_trees": 5, "least_rows": 5}
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    make_run(folder, model={"members": 3, "linear_skip": True}, blend=blend)
    experiment = load_experiment(folder.with_name("run.yaml"))
    blend_run(folder, experiment, open_cache(experiment.cache.path), verbose=False)
    return folder


def with_row(frame: pl.DataFrame, row: int, **cells: Any) -> pl.DataFrame:
    here = pl.int_range(pl.len()) == row
    return frame.with_columns(
        pl.when(here).then(pl.lit(value)).otherwise(name).alias(name)
        for name, value in cells.items()
    )


def sum_of_parts(rewards: Rewards) -> Tensor:
    return rewards.terms.sum(1) - rewards.penalties.sum(1) - rewards.doubt


def test_parts_add_up_and_have_names_of_their_own(model: RewardModel, frame: pl.DataFrame) -> None:
    found, predicted = model.rewards(frame), model.predict(frame)
    assert found.names == NAMES
    torch.testing.assert_close(found.total, sum_of_parts(found), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.total, model.reward(frame))
    assert not found.doubt.any()
    outcome, good, gappy = (predicted[f"predicted_{each}"] for each in ("outcome", "good", "gappy"))
    wanted = [
        0.5 * outcome,
        -0.3 * good,
        1.0 * (gappy > 13.0),
        0.5 * (outcome < 1.7),
        0.25 * (gappy < 12.5),
    ]
    parts = torch.cat([found.terms, found.penalties], dim=1)
    for place, values in enumerate(wanted):
        own = torch.from_numpy(values.cast(pl.Float32).to_numpy(writable=True))
        torch.testing.assert_close(parts[:, place], own, rtol=1e-6, atol=1e-6)
        assert own.unique().numel() > 1


def test_parts_stand_beside_predictions(model: RewardModel, frame: pl.DataFrame) -> None:
    found, scored = model.rewards(frame), model.score(frame)
    assert scored.columns[3:9] == ["reward", *NAMES] == model.columns(reward=True)[3:]
    values = scored.select("reward", *NAMES).to_torch()
    parts = torch.cat([found.total.unsqueeze(1), found.terms, found.penalties], dim=1)
    assert torch.equal(values, parts)
    broken = with_row(frame.head(3), 1, x1=500.0)
    scored = model.score(broken, on_invalid="skip")
    assert scored["penalty_aux_2"].is_null().to_list() == [False, True, False]


def test_numbered_names_take_nobodys(model: RewardModel) -> None:
    names = ["aux", "aux", "aux_2", "aux"]
    penalties = [RewardPenalty(task=name, above=1.0, penalty=1.0) for name in names]
    formula = Formula((), tuple((each, Reading(slice(0, 1), False)) for each in penalties))
    assert formula.names == ("penalty_aux", "penalty_aux_3", "penalty_aux_2", "penalty_aux_4")


def test_rewards_of_no_rows(model: RewardModel, ensemble: Path, frame: pl.DataFrame) -> None:
    for each, pessimism in ((model, None), (rewarding(RewardModel.load(ensemble)), 2.0)):
        found = each.rewards(frame.head(0), pessimism=pessimism)
        assert found.num_rows == 0
        assert (found.terms.shape, found.penalties.shape) == ((0, 2), (0, 3))
        assert found.known is not None


@pytest.mark.parametrize("binary", ["probability", "score"])
def test_pessimism_subtracts_the_spread_of_the_members_own_rewards(
    binary: str, ensemble: Path, frame: pl.DataFrame
) -> None:
    run = RewardModel.load(ensemble).run
    parts = {name: replace(each, share=0.6) for name, each in run.blend.tasks.items()}
    run = replace(run, blend=replace(run.blend, tasks=parts))
    model = rewarding(RewardModel(run), binary=binary)
    run, plain = model.run, model.rewards(frame)
    assert not plain.doubt.any()
    own = []
    vectors, inputs = model.inputs(frame)
    table = open_frame(run, frame, "refuse")
    texts = {name: strings.text for name, strings in table.strings.items()}
    rows = standardised(run, inputs)
    outputs = run.model.network(vectors, rows)
    found = found_of(run, outputs, rows, tree_tables(run, texts, vectors))
    for member in outputs.split(3, dim=1):
        predictions = found._replace(outputs=member).in_units(run, binary)
        own.append(model.reward_of(predictions))
    sigma = torch.stack(own).double().std(0, correction=0).float()
    assert sigma.median() > 0.05
    for k in (0.5, 2.0):
        pessimistic = model.rewards(frame, pessimism=k)
        torch.testing.assert_close(pessimistic.doubt, k * sigma, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pessimistic.total, plain.total - pessimistic.doubt)
        torch.testing.assert_close(pessimistic.total, sum_of_parts(pessimistic))
        assert torch.equal(pessimistic.terms, plain.terms)
        configured = rewarding(model, binary=binary, pessimism=k)
        assert torch.equal(configured.reward(frame), pessimistic.total)
        assert torch.equal(configured.reward(frame, pessimism=0.0), plain.total)
        scored = configured.score(frame)
        assert torch.equal(scored["doubt"].to_torch(), pessimistic.doubt)
        assert configured.columns(reward=True)[-1] == "doubt"


def test_one_network_has_no_pessimism(model: RewardModel, frame: pl.DataFrame) -> None:
    vectors, inputs = model.inputs(frame.head(2))
    configured = rewarding(model, pessimism=0.5)
    calls = (
        lambda: model.reward(frame, pessimism=1.0),
        lambda: model.score(frame, pessimism=1.0),
        lambda: model.differentiable(vectors, inputs, pessimism=1.0),
        lambda: model.on_strings({}, pessimism=1.0),
        lambda: configured.rewards(frame),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"train an ensemble \(model\.members: 8\)"):
            call()
    assert configured.predict(frame.head(2)).height == 2
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="pessimism must be a number, 0 or more"):
            model.reward(frame, pessimism=wrong)


def test_a_config_with_pessimism_and_one_network_is_refused(tiny_experiment: Path) -> None:
    keys = ["reward={terms: [{task: ef, weight: 1.0}], pessimism: 1}"]
    with pytest.raises(ConfigError, match=r"reward\.pessimism is 1, and one network .*members: 8"):
        load_experiment(tiny_experiment, keys)
    load_experiment(tiny_experiment, [*keys, "model.members=2"])
    alone = ["split={strategy: leave_strings_out, folds: 3}"]
    load_experiment(tiny_experiment, [*keys, *alone])


# of two strings left out and three columns of predictions: ef, opt, aux
ERRORS = ((0.6, 0.1, 5.0), (-0.2, -0.3, None))


def with_errors(run: TrainedRun, errors: Any = ERRORS) -> TrainedRun:
    """Return a run that left the second string of its column out, and knows how far it is off."""
    calibration = Calibration(
        run_id=run.run_id,
        epoch=run.epoch,
        unit="string",
        unit_name="polymer",
        by=None,
        guaranteed=False,
        folds=0,
        scores={},
        chances={},
        mean_errors=errors,
    )
    scaling = replace(run.scaling, untrained_strings={"polymer": (1,)})
    return replace(run, calibration=calibration, scaling=scaling)


@pytest.mark.parametrize("kind", ["one network", "ensemble"])
def test_of_a_new_string_doubt_is_what_strings_left_out_have_shown(
    kind: str, made_run: Path, ensemble: Path, frame: pl.DataFrame
) -> None:
    loaded = RewardModel.load(made_run if kind == "one network" else ensemble).run
    model = rewarding(RewardModel(with_errors(loaded)))
    new = [NEW, list(loaded.strings["polymer"])[1]]
    rows = with_row(frame.head(80), 3, smiles=NEW)
    is_new = rows["smiles"].is_in(new).to_torch()
    assert 2 <= is_new.sum() < 70
    off = [0.5 * 0.6 - 0.3 * 0.1, 0.5 * -0.2 - 0.3 * -0.3]
    deviation = (sum(each**2 for each in off) / 2) ** 0.5
    spread = torch.zeros(rows.height)
    if kind == "ensemble":
        spread = rewarding(RewardModel(loaded)).rewards(rows, pessimism=1.0).doubt
        assert spread.median() > 0.05
    wanted = 2.0 * torch.hypot(spread, deviation * is_new)
    plain, found = model.rewards(rows), model.rewards(rows, pessimism=2.0)
    torch.testing.assert_close(found.doubt, wanted)
    torch.testing.assert_close(found.total, plain.total - wanted)
    torch.testing.assert_close(model.score(rows, pessimism=2.0)["doubt"].to_torch(), wanted)
    texts = {"polymer": rows["smiles"].to_list(), "partner": rows["other"].to_list()}
    for unseen in ("flag", "allow"):
        rewarder = model.on_strings(texts, 2.0, unseen)
        _, inputs = model.inputs(rows)
        number = torch.arange(rows.height)
        given = replace(inputs, string_id=torch.stack([number, number], dim=1))
        torch.testing.assert_close(rewarder(given).doubt, wanted)
    assert not model.rewards(rows, pessimism=0.0).doubt.any()


def test_strings_without_all_labels_of_the_reward_say_nothing(
    made_run: Path, frame: pl.DataFrame
) -> None:
    loaded = RewardModel.load(made_run).run
    terms = [*TERMS, RewardTerm(task="aux", weight=1.0)]
    model = rewarding(RewardModel(with_errors(loaded)), terms=terms)
    rows = frame.filter(pl.col("smiles") == list(loaded.strings["polymer"])[1])
    doubt = model.rewards(rows, pessimism=1.0).doubt
    torch.testing.assert_close(doubt, torch.full_like(doubt, 0.5 * 0.6 - 0.3 * 0.1 + 5.0))
    none = with_errors(loaded, ((0.6, None, None), (0.1, None, 1.0)))
    silent = rewarding(RewardModel(none), terms=terms)
    assert not silent.rewards(rows, pessimism=1.0).doubt.any()


@pytest.mark.slow
@pytest.mark.parametrize("softness", [None, 0.4])
def test_the_slope_of_the_pessimistic_reward_is_that_of_finite_differences(
    softness: float | None, ensemble: Path, frame: pl.DataFrame
) -> None:
    model = rewarding(RewardModel.load(ensemble))
    vectors, inputs = model.inputs(frame.head(6))

    def value(numeric: Tensor) -> Tensor:
        moved = replace(inputs, numeric=numeric)
        return model.differentiable(vectors, moved, softness, pessimism=10.0)

    numeric = inputs.numeric.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(numeric).sum(), numeric)
    plain = model.differentiable(vectors, replace(inputs, numeric=numeric), softness)
    (of_plain,) = torch.autograd.grad(plain.sum(), numeric)
    wanted = torch.zeros_like(found)
    for place in range(found.numel()):
        nudge = torch.zeros_like(found)
        nudge.view(-1)[place] = 3e-3 * max(1.0, abs(numeric.flatten()[place].item()))
        with torch.no_grad():
            rise = value(numeric + nudge) - value(numeric - nudge)
        wanted.view(-1)[place] = rise.sum() / (2 * nudge.sum())
    assert (found - wanted).norm() < 0.03 * wanted.norm()
    assert (of_plain - wanted).norm() > 0.2 * wanted.norm()  # the spread has a slope of its own


def test_a_soft_pessimistic_reward_is_the_hard_one_but_for_its_thresholds(
    ensemble: Path, frame: pl.DataFrame
) -> None:
    run = replace(RewardModel.load(ensemble).run, blend=None)
    model = rewarding(
        RewardModel(run), penalties=[each.model_copy(update={"width": None}) for each in PENALTIES]
    )
    found = model.differentiable(*model.inputs(frame), pessimism=2.0)
    torch.testing.assert_close(found, model.reward(frame, pessimism=2.0), rtol=1e-3, atol=1e-3)


def test_members_pay_soft_penalties_where_their_mean_does(
    ensemble: Path, frame: pl.DataFrame
) -> None:
    run = replace(RewardModel.load(ensemble).run, blend=None)
    model = rewarding(RewardModel(run))
    vectors, inputs = model.inputs(frame)
    outputs = run.model.network(vectors, standardised(run, inputs))
    formula = formula_of(model.run)
    own = []
    for member in outputs.split(3, dim=1):
        predictions = to_units(member, run.tasks, run.scaling)
        own.append(formula.parts(predictions, [0.4, 0.4, 0.4]).total())
    sigma = torch.stack(own).std(0, correction=0)
    plain, pessimistic = (
        model.differentiable(vectors, inputs, softness=0.4, pessimism=k) for k in (0.0, 2.0)
    )
    torch.testing.assert_close(plain - pessimistic, 2 * sigma, rtol=1e-3, atol=1e-4)


def test_members_that_agree_have_a_slope(ensemble: Path, frame: pl.DataFrame) -> None:
    model = rewarding(RewardModel.load(ensemble), terms=[RewardTerm(task="ef", weight=0.0)])
    vectors, inputs = model.inputs(frame.head(4))
    inputs.numeric.requires_grad_()
    model.differentiable(vectors, inputs, softness=1e30, pessimism=1.0).sum().backward()
    assert inputs.numeric.grad.isfinite().all()


def test_what_training_never_saw_is_told(model: RewardModel, frame: pl.DataFrame) -> None:
    new = with_row(with_row(frame.head(8), 3, smiles=NEW), 5, x0=1e6)
    found, marks = model.rewards(new), model.predict(new)
    assert found.known.tolist() == marks["known"].to_list()
    assert found.outside.tolist() == marks["outside"].to_list()
    assert [row for row, known in enumerate(found.known) if not known] == [3]
    assert found.outside[5]
    allowed = model.rewards(new, unseen="allow")
    assert allowed.known is None
    assert allowed.outside is None
    assert torch.equal(allowed.total, found.total)
    assert rewarding(model, unseen="allow").rewards(new).known is None
    with pytest.raises(ConfigError, match="unseen must be refuse, flag, allow; got 'forbid'"):
        check_unseen(model.run, "forbid")


def test_what_training_never_saw_is_refused_with_its_rows(
    made_run: Path, frame: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rewarding(RewardModel.load(made_run))
    values = {**plain.run.data.model_dump(), "categories": [{"column": "kind", "other": "b"}]}
    run = replace(plain.run, data=parse_config(DataConfig, values, "test"))
    model = rewarding(RewardModel(run), unseen="refuse")
    new = with_row(with_row(frame.head(9), 3, smiles=NEW), 7, smiles=NEW, kind="z")
    wanted = re.escape(repr(NEW)) + r" is none of the strings .*rows 3, 7[^z]*'z'.*row 7"
    for call in (
        model.reward,
        model.rewards,
        model.score,
        lambda each: rewarding(model).reward(each, unseen="refuse"),
    ):
        with pytest.raises(TableError, match=f"(?s){wanted}"):
            call(new)
    assert not run.memory.encoders  # nothing was encoded for it
    scored = model.score(new, on_invalid="skip")
    assert scored["reward"].is_null().to_list() == [row in (3, 7) for row in range(9)]
    assert "is none of the strings that the run was trained on" in scored["reason"][3]
    # predictions are no rewards
    assert model.predict(new)["known"].to_list() == [row not in (3, 7) for row in range(9)]
    assert model.reward(frame).isfinite().all()
    assert model.rewards(new, unseen="flag").known.sum() == 7


def test_a_category_of_test_rows_alone_is_refused_too(made_run: Path, frame: pl.DataFrame) -> None:
    run = RewardModel.load(made_run).run
    ((name, values),) = run.layout.categories
    b = values.index("b")
    run = replace(run, scaling=replace(run.scaling, untrained_categories={name: (b,)}))
    model = rewarding(RewardModel(run))
    has_b = frame["kind"] == "b"
    assert has_b.any()
    with pytest.raises(TableError, match=rf"unknown category 'b': {has_b.sum()} rows"):
        model.reward(frame, unseen="refuse")
    others = frame.filter(~has_b)
    assert torch.equal(model.reward(others, unseen="refuse"), model.reward(others)), "same codes"
    assert model.rewards(frame).known.tolist() == (~has_b).to_list()
    texts = {"polymer": frame["smiles"].to_list(), "partner": frame["other"].to_list()}
    rewarder = model.on_strings(texts, unseen="refuse")
    number = torch.arange(frame.height)
    inputs = model.inputs(frame)[1]
    given = replace(inputs, string_id=torch.stack([number, number], dim=1))
    first = int(has_b.arg_true()[0])
    with pytest.raises(TableError, match=rf"no train row had .*the first of them row {first}"):
        rewarder(given)
    assert rewarder(given.take(slice(0, first))).num_rows == first


@pytest.mark.parametrize("pessimism", [0.0, 1.0])
def test_a_rewarder_on_strings_is_the_reward(
    pessimism: float, ensemble: Path, frame: pl.DataFrame
) -> None:
    model = rewarding(RewardModel.load(ensemble))
    spelled = [*frame["smiles"].unique().sort(), NEW, "*CC*"]  # the last is another spelling
    others = frame["other"].unique().sort().to_list()
    rewarder = model.on_strings({"polymer": spelled, "partner": others}, pessimism=pessimism)
    rng = torch.Generator().manual_seed(0)
    smiles = torch.randint(len(spelled), (300,), generator=rng)
    other = torch.randint(len(others), (300,), generator=rng)
    rows = frame.head(300).with_columns(
        smiles=pl.Series([spelled[each] for each in smiles.tolist()]),
        other=pl.Series([others[each] for each in other.tolist()]),
    )
    wanted, (_, inputs) = model.rewards(rows, pessimism=pessimism), model.inputs(rows)
    given = replace(inputs, string_id=torch.stack([smiles, other], dim=1))
    for block in (slice(0, 1), slice(0, 300)):
        found = rewarder(given.take(block))
        for name in ("total", "terms", "penalties", "doubt"):
            own = getattr(wanted, name)[block]
            torch.testing.assert_close(getattr(found, name), own, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.known, wanted.known[block])
        assert torch.equal(found.outside, wanted.outside[block])
    assert not found.known.all()
    assert found.outside.any()
    assert not found.total.requires_grad
    texts = {"polymer": spelled, "partner": others}
    allowed = model.on_strings(texts, pessimism=pessimism, unseen="allow")(given)
    assert allowed.known is None
    assert torch.equal(allowed.total, found.total)


def test_strings_that_cannot_be_rewarded_are_refused_at_once(
    model: RewardModel, frame: pl.DataFrame
) -> None:
    known = frame["other"].unique().to_list()
    told = r"(?s)'polymer' number 1: 'CCO' is not a psmiles.*number 2: .*longer than"
    with pytest.raises(TableError, match=told):
        model.on_strings({"polymer": [known[0], "CCO", f"[*]{'C' * 5000}[*]"], "partner": known})
    with pytest.raises(TableError, match=r"'partner' number 0: .* is none of the strings"):
        model.on_strings({"polymer": known, "partner": [NEW]}, unseen="refuse")
    both = {"polymer": known, "partner": known}
    for texts in ({"polymer": known}, {**both, "partner": []}, {**both, "smiles": known}):
        with pytest.raises(TableError, match=r"each string column of .*: polymer, partner; got"):
            model.on_strings(texts)
    rewarder = model.on_strings(both)
    _, inputs = model.inputs(frame.head(3))
    inputs.numeric[1] = float("nan")
    inputs.string_id.zero_()
    with pytest.raises(NonFinitePredictionError, match="1 of 3 rows"):
        rewarder(inputs)


KNOWN_STRINGS = """
import sys
from fusionnet import RewardModel
model = RewardModel.load(sys.argv[1])
assert model.run.blend is not None
print(model.rewards(sys.argv[2], pessimism=1.0).num_rows)
heavy = "deepspeed transformers peft lightgbm sklearn scipy matplotlib pandas jinja2 torch._dynamo"
print(*sorted(set(heavy.split()) & set(sys.modules)))
"""


@pytest.mark.slow
def test_known_strings_are_rewarded_without_what_trains(
    ensemble: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    folder = shutil.copytree(ensemble, tmp_path / "run")
    config = yaml.safe_load((folder / "tiny_config.yaml").read_text())
    config["reward"] = {"terms": [{"task": "ef", "weight": 1.0}]}
    (folder / "tiny_config.yaml").write_text(yaml.safe_dump(config))
    frame.head(5).write_parquet(tmp_path / "rows.parquet")
    words = [sys.executable, "-c", KNOWN_STRINGS, str(folder), str(tmp_path / "rows.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["5", ""]), done.stderr
