"""fusionnet/README.md: its code runs on a run, and what it names exists."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from huggingface_hub import hub_mixin
from shared_fixtures import TINY_STRINGS

from fusionnet import RewardModel
from fusionnet.experiment import Experiment
from fusionnet.workflow.exporting import export


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "fusionnet" / "README.md").read_text(encoding="utf-8")


def test_the_example_predicts_and_rewards(
    page: str,
    make_run: Callable[..., Path],
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    penalty = {"task": "opt", "below": 0.5, "penalty": 1.0, "width": 0.1}
    reward = {"terms": [{"task": "ef", "weight": 2.0}], "penalties": [penalty]}
    make_run(tmp_path / "run", reward=reward)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "frame": pl.read_parquet(tiny_experiment.parent / "table.parquet").head(9),
        "texts": {"polymer": TINY_STRINGS, "partner": TINY_STRINGS},
    }
    exec(compile(example(page, "model.differentiable"), "fusionnet/README.md", "exec"), names)
    assert names["predictions"].columns[0] == "predicted_outcome"
    assert names["rewards"].shape == names["soft"].shape == (9,)
    assert torch.isfinite(names["soft"]).all()
    shutil.rmtree(tmp_path / "run")


def test_the_example_draws_designs(page: str, designable: Path) -> None:
    names: dict[str, Any] = {"model": RewardModel.load(designable)}
    exec(compile(example(page, "space.draw("), "fusionnet/README.md", "exec"), names)
    assert names["rewards"].shape == (64,)
    wanted = names["model"].reward(names["frame"])
    torch.testing.assert_close(names["rewards"], wanted, rtol=1e-4, atol=1e-5)


def test_the_example_trains_until_its_callback_ends_it(
    page: str,
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = f"extends: {tiny_experiment}\nrun: {{dir: run}}\n"
    (tmp_path / "mine.yaml").write_text(own)
    code, names = example(page, "StopTraining"), dict[str, Any]()
    assert code.count("< 0.1:") == 1
    code = code.replace("< 0.1:", "< 100:")
    exec(compile(code, "fusionnet/README.md", "exec"), names)
    assert capfd.readouterr().out == ""
    assert [record.get("stopped") for record in names["records"]] == [
        "the validation loss is below 0.1"
    ]


def test_the_example_saves_pushes_and_loads(
    page: str, made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(_: object, *, folder_path: Path, **how: Any) -> str:
        shutil.copytree(folder_path, tmp_path / how["repo_id"])
        return "https://hub/commit"

    monkeypatch.setattr(hub_mixin.HfApi, "create_repo", lambda _, **how: SimpleNamespace(**how))
    monkeypatch.setattr(hub_mixin.HfApi, "upload_folder", upload)
    shutil.copytree(made_run, tmp_path / "runs" / "stage1")
    monkeypatch.chdir(tmp_path)
    names = {"RewardModel": RewardModel}
    exec(compile(example(page, "push_to_hub"), "fusionnet/README.md", "exec"), names)
    assert (tmp_path / "stage1" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_example_runs_a_program(
    page: str, made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(made_run, "onnx", tmp_path / "program")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example(page, "onnxruntime"), "fusionnet/README.md", "exec"), names)
    expected = torch.tensor(names["about"]["example"]["predictions"])
    torch.testing.assert_close(
        torch.from_numpy(names["predictions"]), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_the_example_fits_a_frame(
    page: str,
    tiny_experiment: Path,
    tiny_encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_encoder_folder.parent)
    code = example(page, "FusionModel(")
    given = 'encoder={"source": "encoder"}'
    assert code.count(given) == 1
    small = (
        f'encoder={{"source": "{tiny_encoder_folder.name}"}}, verbose=False,'
        ' train={"epochs": 1, "prove": 0}, model={"num_layers": 1, "feedforward": 32},'
        ' blend={"parts": 2, "most_trees": 20}'
    )
    names: dict[str, Any] = {"frame": pl.read_parquet(tiny_experiment.parent / "table.parquet")}
    exec(compile(code.replace(given, small), "fusionnet/README.md", "exec"), names)
    assert names["predictions"].columns[0] == "predicted_outcome"
    assert names["model"].experiment.data.group == "patient"


@pytest.mark.slow
def test_the_example_trains_a_policy(
    page: str, make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reward = {"terms": [{"task": "ef", "weight": 2.0}]}
    run = make_run(tmp_path / "run", reward=reward, model={"members": 2})
    code = example(page, "train_policy")
    assert code.count("100_000") == 1
    names = dict[str, Any]()
    exec(compile(code.replace("100_000", "1024"), "fusionnet/README.md", "exec"), names)
    predicted = names["RewardModel"].load(run).predict(names["table"])
    assert len(predicted) == 3
    assert not predicted["outside"].any()


def example(page: str, word: str) -> str:
    """Return the page's only program that has a word."""
    code = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (found,) = [program for program in code if word in program]
    return found


def test_what_it_names_exists(page: str, repository: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(((?!https:)[^)]+)\)", page)]
    assert len(links) > 8
    for link in links:
        assert (repository / "fusionnet" / link).exists(), link
    sections = Experiment.model_fields
    keys = re.findall(r"`((?:train|model|reward|encoder)\.(?!safetensors|json)[a-z_]+)", page)
    assert len(keys) > 12
    for key in keys:
        section, name = key.split(".")
        fields = sections[section].annotation.model_fields
        assert name in fields, key


def test_every_stage_names_a_class_or_function_of_its_file(page: str, repository: Path) -> None:
    stages = re.findall(r"^\d\. \*\*\w+\*\*: (.*?) in\s+\[`[^`]+`\]\(([^)]+)\)", page, re.M | re.S)
    assert len(stages) == 7
    for names, file in stages:
        source = (repository / "fusionnet" / file).read_text(encoding="utf-8")
        found = re.findall(r"`(\w+)`", names)
        assert any(re.search(rf"^(?:class|def) {name}\b", source, re.M) for name in found), names
