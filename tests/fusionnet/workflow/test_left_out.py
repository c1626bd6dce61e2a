"""Intervals from trainings that left each part out: each is a training of its own, whose part's
rows it never read; a kill at any moment goes on.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from embedcache.build.rotation import left_out_in_turn
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import ConfigError, RunError, SplitError
from fusionnet.calibration.conformal import LEVELS, score_quantiles
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.runfolder.listing import foreign_files
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow import left_out, training
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.training import train_experiment

pytestmark = pytest.mark.slow

FOLDS = ["split.folds=6", "split.train_folds=4", "split.validation_folds=1", "calibration.folds=2"]


THIRDS = ["split.folds=3", "split.train_folds=1", "split.validation_folds=1"]
THIRDS += ["split.stratify_by=null"]


def study(config: Path, folder: Path, *changes: str) -> Experiment:
    sets = ["encoder.mode=frozen", "train.epochs=3", *FOLDS, f"cache.path={folder}/c.zarr"]
    return load_experiment(config, [*sets, f"run.dir={folder}/run", *changes])


class Study:
    """A run with two trainings beside it, which are still there."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.folder = Path(experiment.run.dir)
        self.kept = self.folder.with_name("kept")
        self.cache = open_cache(experiment.cache.path)
        self.views = left_out_in_turn(self.cache, experiment.split, 2)

    def part(self, number: int) -> TrainedRun:
        return load_run(self.kept / str(number), "final")


@pytest.fixture(scope="module")
def found(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Tests read it and copy it, never change it."""
    experiment = study(tiny_experiment, tmp_path_factory.mktemp("parts"))
    build_experiment(experiment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "forget", _kept)
        train_experiment(experiment, "config", verbose=False)
    return Study(experiment)


def _kept(folder: Path) -> None:
    shutil.copytree(folder / left_out.FOLDER, folder.with_name("kept"))
    left_out.forget(folder)


def test_each_is_a_training_on_the_other_parts(found: Study, tmp_path: Path) -> None:
    epochs = load_run(found.folder).epoch
    for number, view in enumerate(found.views):
        part = found.part(number)
        assert part.epoch == epochs
        assert part.identity == dict(view.identity.entries)
        changes = {"run": found.experiment.run.model_copy(update={"dir": f"{tmp_path}/{number}"})}
        section = found.experiment.calibration.model_copy(update={"folds": 0})
        alone = found.experiment.model_copy(update={**changes, "calibration": section})
        until = left_out._Until(epochs, tqdm(disable=True))
        train_experiment(alone, "config", callbacks=[until], verbose=False, cache=view)
        own = load_run(tmp_path / str(number), "final")
        mine, others = part.model.network.state_dict(), own.model.network.state_dict()
        assert mine.keys() == others.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, others[name], rtol=0, atol=0)


def test_scores_are_those_of_rows_left_out(found: Study) -> None:
    calibration = load_run(found.folder).calibration
    assert calibration is not None
    assert calibration.folds == 2
    rows = found.cache.rows()
    scores: list[np.ndarray] = []
    units: list[np.ndarray] = []
    spread = found.cache.scaling.target_std[0]
    for number, view in enumerate(found.views):
        chosen = np.flatnonzero((view.rows().split == 1) & np.isfinite(rows.targets[:, 0]))
        chosen = chosen[rows.weight[chosen] > 0]
        predicted = _predicted(found.part(number), view, chosen)
        scores.append(np.abs(rows.targets[chosen, 0] - predicted) / spread)
        units.append(rows.group[chosen])
    score, unit = np.concatenate(scores), np.concatenate(units)
    task = calibration.scores["ef"]
    assert task.num_rows == len(score)
    assert task.num_units == len(np.unique(rows.group[rows.split != 2]))
    wanted = score_quantiles(score, unit, guaranteed=False)
    mine = [task.score_at(level) for level in LEVELS]
    assert mine == pytest.approx(wanted, rel=1e-4)


def _predicted(run: TrainedRun, view: Cache, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    evaluation = evaluate_run(run, view, "validation", progress=False, with_baselines=False)
    at = {row: place for place, row in enumerate(evaluation.rows.tolist())}
    return np.array([float(evaluation.predictions[at[int(row)], 0]) for row in rows])


@pytest.mark.parametrize("folds", [0, 2])
def test_the_mean_error_of_each_string_left_out_is_known(
    tiny_experiment: Path, tmp_path: Path, folds: int
) -> None:
    changes = ["split.strategy=leave_strings_out", *THIRDS, f"calibration.folds={folds}"]
    kept = tmp_path / "kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "forget", _kept if folds else left_out.forget)
        experiment = study(tiny_experiment, tmp_path, *changes)
        build_experiment(experiment)
        train_experiment(experiment, "config", verbose=False)
    cache = open_cache(experiment.cache.path)
    run, rows = load_run(tmp_path / "run"), cache.rows()
    assert run.calibration is not None
    views = left_out_in_turn(cache, experiment.split, 2)
    parts = [(load_run(kept / str(n), "final"), views[n]) for n in range(folds)]
    errors = np.full((420, 3), np.nan)
    for part, view in parts or [(run, cache)]:
        told = evaluate_run(part, view, "validation", progress=False, with_baselines=False)
        errors[told.rows] = told.targets - told.predictions
    errors[rows.weight == 0] = np.nan
    looked = np.isfinite(errors).any(1)
    units = np.unique(rows.string_id[looked, 0])
    wanted = [np.nanmean(errors[looked & (rows.string_id[:, 0] == unit)], axis=0) for unit in units]
    np.testing.assert_allclose(run.calibration.mean_errors, wanted, rtol=1e-3, atol=1e-5)
    if folds:
        assert set(units) == set(rows.string_id[rows.split != 2, 0])


def test_strings_that_trained_say_nothing_of_new_ones(
    found: Study, tiny_experiment: Path, tmp_path: Path
) -> None:
    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    changes = ["calibration.unit=string", "calibration.folds=0"]
    experiment = study(tiny_experiment, tmp_path, *paths, *changes)
    train_experiment(experiment, "config", verbose=False)
    calibration = load_run(tmp_path / "run").calibration
    assert calibration is not None
    assert calibration.unit == "string"
    assert calibration.mean_errors == (), "patients are left out, strings are not"


def test_nothing_of_them_stays(found: Study) -> None:
    assert not (found.folder / left_out.FOLDER).exists()
    assert foreign_files(found.folder) == []


@pytest.mark.parametrize("moment", ["in a part", "between its last epoch and its end"])
def test_a_kill_goes_on_where_it_was(
    found: Study,
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    experiment = study(tiny_experiment, tmp_path, *paths)
    begun: list[str] = []
    real, ending = left_out.train_run, left_out._Until.on_epoch_end

    def train_run(trainer: Any, files: Any, *rest: Any) -> Any:
        begun.append(files.folder.name)
        if moment == "between its last epoch and its end" and len(begun) == 2:
            monkeypatch.setattr(files, "publish_end", _killed)
        return real(trainer, files, *rest)

    def killed_in_a_part(until: Any, record: dict[str, Any]) -> bool:
        if moment == "in a part" and len(begun) == 2 and record["epoch"] == 2:
            raise KeyboardInterrupt
        return ending(until, record)

    monkeypatch.setattr(left_out, "train_run", train_run)
    with monkeypatch.context() as patch:
        patch.setattr(left_out._Until, "on_epoch_end", killed_in_a_part)
        with pytest.raises(KeyboardInterrupt):
            train_experiment(experiment, "config", verbose=False)
    assert (tmp_path / "run" / left_out.FOLDER / "1").is_dir()
    train_experiment(experiment, "config", resume=True, verbose=False)
    assert begun == ["0", "1", "1"], "what was finished is not done again"
    one, other = load_run(tmp_path / "run").calibration, load_run(found.folder).calibration
    assert one is not None
    assert other is not None
    assert one.scores == other.scores
    assert one.chances == other.chances


def _killed() -> None:
    raise KeyboardInterrupt


def test_a_finished_run_gets_them_by_resume(
    found: Study, tiny_experiment: Path, tmp_path: Path
) -> None:
    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    plain = study(tiny_experiment, tmp_path, *paths, "calibration.folds=0")
    train_experiment(plain, "config", verbose=False)
    before = load_run(tmp_path / "run")
    assert before.calibration is not None
    assert before.calibration.folds == 0
    train_experiment(study(tiny_experiment, tmp_path, *paths), "c", resume=True, verbose=False)
    run, other = load_run(tmp_path / "run"), load_run(found.folder)
    assert run.run_id == before.run_id
    assert run.calibration is not None
    assert other.calibration is not None
    assert run.calibration.scores == other.calibration.scores


@pytest.mark.parametrize("folds", [0, 2])
def test_somebodys_folder_of_the_same_name_is_left_alone(
    found: Study, tiny_experiment: Path, tmp_path: Path, folds: int
) -> None:
    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    plain = study(tiny_experiment, tmp_path, *paths, "calibration.folds=0")
    train_experiment(plain, "config", verbose=False)
    mine = tmp_path / "run" / left_out.FOLDER / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    again = study(tiny_experiment, tmp_path, *paths, f"calibration.folds={folds}")
    with (
        pytest.raises(RunError, match="left_out/, which the run did not write")
        if folds
        else (contextlib.nullcontext())
    ):
        train_experiment(again, "config", resume=True, verbose=False)
    assert mine.read_text() == "mine"


def test_trees_of_a_part_count_as_much_as_the_runs_own(
    found: Study, tiny_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusionnet.workflow import looking

    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    blend = ["blend.boosting=true", "blend.most_trees=20"]
    experiment = study(tiny_experiment, tmp_path, *paths, *blend)
    seen: list[TrainedRun] = []
    real = looking._parts

    def parts(*arguments: Any) -> Iterator[TrainedRun]:
        for part in real(*arguments):
            seen.append(part)
            yield part

    monkeypatch.setattr(looking, "_parts", parts)
    train_experiment(experiment, "config", verbose=False)
    own = load_run(tmp_path / "run").blend
    assert own is not None
    counting = {name: each for name, each in own.tasks.items() if each.share < 1}
    assert counting, "a network that counts alone has no trees to compare"
    assert len(seen) == 2
    for part in seen:
        assert part.blend is not None
        shares = {name: each.share for name, each in part.blend.tasks.items()}
        assert shares == {name: each.share for name, each in counting.items()}
        for name, each in part.blend.tasks.items():
            assert len(each.forest.root) == len(counting[name].forest.root), "as many trees"
            assert not torch.equal(each.forest.value, counting[name].forest.value)


def test_what_cannot_be_is_told_before_anything_is_trained(
    found: Study, tiny_experiment: Path, tmp_path: Path
) -> None:
    paths = [f"run.dir={tmp_path}/run", f"cache.path={found.experiment.cache.path}"]
    many = study(tiny_experiment, tmp_path, *paths, "calibration.folds=6")
    with pytest.raises(SplitError, match="5 folds train or validate, which do not make 6 parts"):
        train_experiment(many, "config", verbose=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="without its only part nothing would be left"):
        study(tiny_experiment, tmp_path, "calibration.folds=1")
