"""`save_pretrained`, `from_pretrained` and `push_to_hub` by huggingface_hub's mixin: what is saved
loads offline, what is uploaded is what is saved, and the hub's own parsers read the card.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import polars as pl
import pytest
from huggingface_hub import ModelCard, hub_mixin, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from embedcache.errors import OutputError, RunError
from fusionnet import RewardModel
from fusionnet.trained import hub
from fusionnet.trained.card import model_card
from fusionnet.trained.measured import OWN_ROWS
from fusionnet.trained.run import load_run


@pytest.fixture(scope="module")
def model(made_run: Path) -> RewardModel:
    return RewardModel.load(made_run)


@pytest.fixture(scope="module")
def saved(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "saved"
    assert model.save_pretrained(folder) is None
    return folder


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet").head(60)


def test_what_is_saved_loads_and_is_saved_again(
    model: RewardModel, saved: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    loaded = RewardModel.from_pretrained(str(saved), precision="fp32")
    assert isinstance(loaded, RewardModel)
    assert loaded.predict(frame).equals(model.predict(frame))
    loaded.save_pretrained(tmp_path / "saved")
    for file in ("model.safetensors", "config.json", "README.md", "run_files.jsonl"):
        assert (tmp_path / "saved" / file).read_bytes() == (saved / file).read_bytes()
    assert 'from_pretrained("saved")' in (saved / "README.md").read_text()


def test_a_folder_in_use_is_left_alone(model: RewardModel, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for name, message in [
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "holds no trained model"),
        ("someone/nothing", "HF_HUB_OFFLINE is set"),
    ]:
        with pytest.raises(RunError, match=message):
            RewardModel.from_pretrained(name)


def test_a_hub_id_is_fetched_as_it_was_asked_for(
    model: RewardModel, saved: Path, frame: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return str(saved)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    loaded = RewardModel.from_pretrained("someone/model", revision="v1", token="t")
    assert loaded.predict(frame).equals(model.predict(frame))
    assert (asked["name"], asked["revision"], asked["token"]) == ("someone/model", "v1", "t")


def test_what_is_pushed_is_what_is_saved(
    model: RewardModel, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", {"token": token}))

        def create_repo(self, **how: Any) -> SimpleNamespace:
            calls.append(("create", how))
            return SimpleNamespace(repo_id=how["repo_id"])

        def upload_folder(self, *, folder_path: Path, **how: Any) -> str:
            calls.append(("upload", how))
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return "https://hub/commit"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    found = model.push_to_hub("someone/model", private=True, token="t", commit_message="mine")
    assert found == "https://hub/commit"
    assert [name for name, _ in calls] == ["token", "create", "upload"]
    assert calls[1][1] == {"repo_id": "someone/model", "private": True, "exist_ok": True}
    assert calls[2][1]["commit_message"] == "mine"
    uploaded = {path.name: path for path in (tmp_path / "uploaded").iterdir() if path.is_file()}
    assert uploaded.keys() == {path.name for path in saved.iterdir() if path.is_file()}
    for name, path in uploaded.items():
        if name != "README.md":
            assert path.read_bytes() == (saved / name).read_bytes()
    assert 'from_pretrained("someone/model")' in uploaded["README.md"].read_text()
    assert model._pushed_as is None


def test_the_card_has_what_the_hub_reads(made_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made_run, tmp_path / "run")
    run = load_run(folder)
    scores = {
        task.column: {metric: 0.25 for metric in task.metrics} | {"f1": None} for task in run.tasks
    }
    written = {"test": scores, "checkpoint": "best", "epoch": run.epoch, "rows": OWN_ROWS}
    (folder / "metrics.json").write_text(json.dumps(written))
    file = tmp_path / "README.md"
    file.write_text(model_card(run, "someone/model"))
    data = metadata_load(file)
    assert data is not None
    assert "license" not in data, "nobody said which"
    assert "datasets" not in data
    card = ModelCard.load(file)
    card.validate = lambda: None  # type: ignore[method-assign]  # it would ask the hub
    results = card.data.eval_results
    by_split = {(each.dataset_split, each.metric_name): each.metric_value for each in results or []}
    assert by_split["test", "outcome MAE"] == 0.25
    assert by_split["validation", "outcome MAE"] == 0.5
    assert ("test", "good F1") not in by_split
    assert {each.task_type for each in results or []} <= set(data["tags"])
    name, again = model_index_to_eval_results(data["model-index"])
    assert name == "tiny"
    assert eval_results_to_model_index(name, again) == data["model-index"]
    assert "## Metrics on test rows" in card.text
    assert "anew (bootstrap)" not in card.text
    ends = {"outcome": {"mae": [0.2, 0.3], "r2": None}}
    intervals = {"unit": "patient", "num_units": 9, "metrics": ends}
    (folder / "metrics.json").write_text(json.dumps({**written, "confidence": intervals}))
    text = model_card(run)
    assert "| outcome | mae | 0.25 | 0.2 to 0.3 |" in text
    assert "| outcome | r2 | 0.25 | none |" in text
    assert "drawing the 9 values of `patient` of the test rows anew" in text
    for other in ({"epoch": 1}, {"checkpoint": "final"}, {"rows": "another table's"}):
        (folder / "metrics.json").write_text(json.dumps({**written, **other}))
        assert "Metrics on test rows\n\n|" not in model_card(run)
    (folder / "metrics.json").write_text("[")
    assert "Metrics on test rows\n\n|" not in model_card(run)


def test_a_model_is_imported_without_what_writes_cards() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from fusionnet import RewardModel; RewardModel.from_pretrained;"
            " print(*(name for name in ('jinja2', 'transformers', 'peft', 'deepspeed', 'onnx')"
            " if name in sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
    assert issubclass(RewardModel, huggingface_hub.ModelHubMixin)
