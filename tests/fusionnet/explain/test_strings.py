"""Attributions of a run's strings are of its own predictions; where there are none, it says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import EncoderError
from fusionnet import RewardModel
from fusionnet.config.tasks import Task
from fusionnet.evaluation.rows import RunRows, rows_of_cache
from fusionnet.explain import strings
from fusionnet.explain.attribution import attributed_tokens, readout_of
from fusionnet.explain.permutation import sample_of
from fusionnet.explain.strings import evenly, explained_strings, most_frequent
from fusionnet.trained.run import TrainedRun, load_run


@pytest.fixture(scope="module")
def run(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture(scope="module")
def given(run: TrainedRun, tiny_experiment: Path) -> RunRows:
    return rows_of_cache(run, open_cache(tiny_experiment.parent / "cache.zarr"))


@pytest.mark.parametrize("column", [0, 1])
def test_the_end_of_the_way_is_the_runs_own_prediction(
    run: TrainedRun, given: RunRows, tiny_experiment: Path, column: int
) -> None:
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    rows = np.flatnonzero(given.block.string_id[:, column] == 1)[:20]
    text = given.texts[run.layout.strings[column].name][1]
    found = attributed_tokens(run, column, text, sample_of(run, given, rows), run.tasks)
    predicted = RewardModel(run).predict(frame[rows]).select(pl.selectors.float())
    wanted = predicted.mean().row(0)
    np.testing.assert_allclose(found.integrated.at_end.numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert all(found.integrated.is_complete)
    assert (found.integrated.shares.abs().max(0).values > 0).all()


def test_the_runs_own_adapters_read_the_string(
    run: TrainedRun, given: RunRows, made_run: Path
) -> None:
    rows = np.flatnonzero(given.block.string_id[:, 0] == 2)[:4]
    text = given.texts["polymer"][2]
    own = attributed_tokens(run, 0, text, sample_of(run, given, rows), run.tasks[:1])
    other = load_run(made_run)
    other.encoder_state.update(
        {
            name: torch.zeros_like(each)
            for name, each in other.encoder_state.items()
            if "lora_B" in name
        }
    )
    without = attributed_tokens(other, 0, text, sample_of(other, given, rows), run.tasks[:1])
    assert not torch.allclose(own.integrated.shares, without.integrated.shares, rtol=0.05)


def test_strings_of_most_rows_are_drawn_and_their_atoms_add_up(
    run: TrainedRun, given: RunRows
) -> None:
    chosen = np.flatnonzero(given.block.split == 2)
    found = explained_strings(run, given, chosen, list(run.tasks[:2]), 2, progress=False)
    assert [each.column for each in found.strings] == ["smiles", "smiles", "other", "other"]
    assert list(found.pictures) == [f"atoms_{number}.svg" for number in (1, 2, 3, 4)]
    assert [each.picture for each in found.strings] == list(found.pictures)
    assert found.not_attributed == {}
    counts = np.bincount(given.block.string_id[chosen, 0])
    assert found.strings[0].num_rows == counts.max()
    for each in found.strings:
        assert each.attributions.keys() == {"outcome", "good"}
        for one in each.attributions.values():
            total = one.prediction - one.masked
            assert sum(one.tokens) == pytest.approx(total, rel=0.05)
            assert one.atoms is not None
            assert sum(one.atoms) + sum(one.rest.values()) == pytest.approx(sum(one.tokens))
            assert one.gap >= abs(sum(one.tokens) - total) / abs(total) - 1e-4
    assert explained_strings(run, given, chosen, list(run.tasks), 0, False).strings == []


def test_what_cannot_be_attributed_or_drawn_is_said(
    run: TrainedRun, given: RunRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = np.arange(30)
    of_text = [each.model_copy(update={"kind": "text"}) for each in run.data.strings]
    as_text = replace(run, data=run.data.model_copy(update={"strings": tuple(of_text)}))
    found = explained_strings(as_text, given, chosen, list(run.tasks[:1]), 1, progress=False)
    assert found.pictures == {}
    assert [each.picture for each in found.strings] == [None, None]
    assert all("text" in each.remark for each in found.strings)
    assert all(
        len(each.tokens) == len(each.attributions["outcome"].tokens) for each in found.strings
    )

    specs = [each.model_copy(update={"width": 0}) for each in run.layout.strings]
    unread = replace(run, layout=run.layout.model_copy(update={"strings": tuple(specs)}))
    found = explained_strings(unread, given, chosen, list(run.tasks[:1]), 1, progress=False)
    assert found.not_attributed == {"smiles": strings.NO_MODEL, "other": strings.NO_MODEL}
    assert found.strings == []

    def gone(*_: object) -> None:
        raise EncoderError("it is gone")

    monkeypatch.setattr(strings, "attributed_tokens", gone)
    found = explained_strings(run, given, chosen, list(run.tasks[:1]), 1, progress=False)
    assert found.not_attributed == {"smiles": "it is gone", "other": "it is gone"}


def test_a_readout_is_a_number_a_chance_or_a_mean_class() -> None:
    labels = ("u", "v", "w")
    tasks = [
        Task(name="y", column="y"),
        Task(name="m", column="m", kind="multiclass", classes=labels),
        Task(name="o", column="o", kind="ordinal", classes=labels),
        Task(name="b", column="b", kind="binary", classes=("no", "yes")),
    ]
    own = np.array([5.0, 0.2, 0.7, 0.1, 0.3, 0.3, 0.4, 0.9])
    found = [readout_of(tasks, task, own) for task in tasks]
    assert [float(own @ np.array(each.weights)) for each in found] == pytest.approx(
        [5.0, 0.7, 0.3 + 2 * 0.4, 0.9]
    )
    assert [each.what for each in found] == [
        "the number",
        "the probability of v",
        "the mean class number",
        "the probability of yes",
    ]


def test_rows_are_taken_from_the_whole_table() -> None:
    rows = np.arange(1000)
    found = evenly(rows, 64)
    assert len(np.unique(found)) == 64
    assert (np.bincount(found // 100, minlength=10) >= 6).all()
    assert np.array_equal(evenly(rows[:5], 64), rows[:5])
    assert most_frequent(np.array([2, 2, 7, 0, 0, 7, 7, 9]), 3) == [7, 0, 2]
