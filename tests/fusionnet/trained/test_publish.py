"""A folder of safetensors and JSON predicts bit for bit as its run, with trees, calibration, new
strings and the reward; whatever of it is damaged, missing or another's is refused by name.
"""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from embedcache.cache.reader import open_cache
from embedcache.errors import OutputError, RunError
from fusionnet import FusionModel, RewardModel
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.listing import foreign_files
from fusionnet.trained.export import export_run
from fusionnet.trained.portable import Portable, read_portable
from fusionnet.trained.publish import write_portable
from fusionnet.trained.run import load_run
from fusionnet.workflow.blending import blend_run
from fusionnet.workflow.calibrating import write_calibration

BLEND = {"boosting": True, "parts": 3, "most_trees": 20, "least_rows": 5}
CALIBRATION = {"probabilities": "temperature"}
REWARD = {"terms": [{"task": "ef", "weight": 1.0}, {"task": "opt", "weight": 5.0}]}
NEW = "[*]OCC[*]"


@pytest.fixture(scope="module")
def run_folder(make_run, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that may lie beside its checkpoint."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    make_run(folder, blend=BLEND, calibration=CALIBRATION, reward=REWARD)
    experiment = load_experiment(folder.with_name("run.yaml"))
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    blend_run(folder, experiment, cache, verbose=False)
    write_calibration(folder, experiment, cache, verbose=False)
    export_run(folder)
    return folder


@pytest.fixture(scope="module")
def portable(run_folder: Path) -> Path:
    folder = run_folder.with_name("portable")
    write_portable(load_run(run_folder), folder)
    return folder


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    table = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    is_new = pl.int_range(pl.len()) % 50 == 0
    return table.with_columns(smiles=pl.when(is_new).then(pl.lit(NEW)).otherwise("smiles"))


def test_it_predicts_bit_for_bit_as_the_run(
    run_folder: Path, portable: Path, frame: pl.DataFrame
) -> None:
    run, moved = RewardModel.load(run_folder), RewardModel.load(portable)
    expected = run.predict(frame, coverage=0.9)
    assert moved.predict(frame, coverage=0.9).equals(expected)
    assert run.run.blend is not None
    assert run.run.temperature(run.run.tasks[1]) != 1
    assert moved.reward(frame).equal(run.reward(frame))
    alone = FusionModel.load(portable)
    assert pickle.loads(pickle.dumps(alone)).predict(frame, coverage=0.9).equals(expected)


def test_it_holds_no_pickle_and_nothing_of_training(run_folder: Path, portable: Path) -> None:
    names = {path.relative_to(portable).as_posix() for path in portable.rglob("*")}
    assert names >= {"model.safetensors", "config.json", "strings.json", "README.md", "adapter"}
    assert names >= {"tiny_config.yaml", "tiny_blend.safetensors", "tiny_calibration.json"}
    assert not [name for name in names if name.endswith((".pt", ".bin", ".pkl"))]
    assert foreign_files(portable) == []
    with safe_open(portable / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "exp_avg" in name]  # noqa: SIM118
    settings = json.loads((portable / "config.json").read_text())
    assert not settings.keys() & {"optimizer_state_dict", "order", "epoch_losses"}
    assert settings["scaling"]["columns"] == ["x0", "x1", "x2"]
    size = (portable / "model.safetensors").stat().st_size
    assert size < (run_folder / "tiny_best.pt").stat().st_size


def test_it_is_read_by_what_reads_runs(
    run_folder: Path, portable: Path, tiny_experiment: Path, tmp_path: Path
) -> None:
    cache = open_cache(tiny_experiment.parent / "cache.zarr")
    found, expected = (
        evaluate_run(load_run(folder), cache, "test", progress=False, with_baselines=False)
        for folder in (portable, run_folder)
    )
    assert found.metrics == expected.metrics
    again = tmp_path / "again"
    write_portable(load_run(portable), again)
    for file in ("model.safetensors", "config.json", "strings.json", "tiny_blend.safetensors"):
        assert (again / file).read_bytes() == (portable / file).read_bytes()
    edited = shutil.copytree(portable, tmp_path / "edited")
    file = edited / "tiny_config.yaml"
    file.write_text(file.read_text().replace("weight: 5.0", "weight: 50.0"))
    assert load_run(edited).reward.terms[1].weight == 50.0


@pytest.fixture
def copy(portable: Path, tmp_path: Path) -> Path:
    return shutil.copytree(portable, tmp_path / "copy")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "strings.json"])
def test_a_file_that_is_missing_or_changed_is_refused(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    for place in range(9, len(content), len(content) // 12):
        flipped = bytearray(content)
        flipped[place] ^= 1
        (copy / file).write_bytes(flipped)
        with pytest.raises(RunError, match=r"is damaged|not a readable|not a model that"):
            load_run(copy)
    (copy / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"is damaged|not a readable"):
        load_run(copy)
    (copy / file).unlink()
    with pytest.raises(RunError, match=rf"lacks {file}"):
        load_run(copy)


def test_a_file_of_another_run_or_tool_is_refused(copy: Path, make_run, tmp_path: Path) -> None:
    write_portable(load_run(make_run(tmp_path / "other", seed=8)), tmp_path / "theirs")
    for file in ("model.safetensors", "config.json", "strings.json"):
        shutil.copy(tmp_path / "theirs" / file, copy / file)
    with pytest.raises(RunError, match="is a checkpoint of another run"):
        load_run(copy)
    with safe_open(copy / "model.safetensors", framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(RunError, match="is not a model that fusionnet export wrote"):
        load_run(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "not a model of format 1"),
        ({"epoch": "x"}, "epoch: Input should be a valid integer"),
        ({"records": [{"epoch": 1, "train_loss": "nan", "val_loss": None}]}, "train_loss"),
        ({"layout": {"format": 0}}, "does not say what its columns are"),
        ({"scaling": None}, "does not say what its columns are"),
        ({"epoch": None}, "epoch: Input should be a valid integer"),
    ],
    ids=["version", "epoch", "records", "layout", "scaling", "nothing"],
)
def test_a_model_made_by_hand_is_refused_by_its_key(
    copy: Path, changes: dict[str, Any], message: str
) -> None:
    content = read_portable(copy)
    settings = json.loads((copy / "config.json").read_text())
    forged = Portable(
        {**settings, **changes},
        content["strings"],
        content["model_state_dict"],
        content["vectors"],
    )
    for name, text in forged.files().items():
        (copy / name).write_bytes(text)
    with pytest.raises(RunError, match=message):
        load_run(copy)


def test_what_belongs_to_it_may_not_be_lost(portable: Path, copy: Path) -> None:
    (copy / "tiny_blend.safetensors").unlink()
    with pytest.raises(RunError, match="the boosted trees that belong to this run's predictions"):
        load_run(copy)
    shutil.copy(portable / "tiny_blend.safetensors", copy)
    (copy / "tiny_calibration.json").unlink()
    with pytest.raises(RunError, match=r"there is no .*tiny_calibration\.json"):
        load_run(copy)


def test_other_epochs_and_used_folders_are_refused(
    run_folder: Path, portable: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="exported from the best epoch of a run, and holds no final"):
        load_run(portable, "final")
    with pytest.raises(RunError, match="its last one was loaded"):
        write_portable(load_run(run_folder, "last"), tmp_path / "last")
    assert not (tmp_path / "last").exists()
    with pytest.raises(OutputError, match="is there already"):
        write_portable(load_run(run_folder), portable)
