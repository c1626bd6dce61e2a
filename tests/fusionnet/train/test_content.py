"""A checkpoint made by hand is refused by what is wrong in it, for every reader alike."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.errors import ConfigError, RunError
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.train.content import check_moments, read_content
from fusionnet.trained.run import load_run

WEIGHT = "network.projection.weight"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def whole(made_run: Path) -> Content:
    return load_checkpoint(made_run / "tiny_best.pt")


@pytest.fixture(scope="module")
def folder(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made_run, tmp_path_factory.mktemp("forged") / "run")


def at(*path: Any, value: Any = None) -> Callable[[Content], None]:
    """Return the change that puts a value at a path, or takes away what is there."""

    def change(content: Content) -> None:
        *above, last = path
        for step in above:
            content = content[step]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


def spoilt(*path: str, value: float = float("nan")) -> Callable[[Content], None]:
    """Return the change that spoils one number of a tensor."""

    def change(content: Content) -> None:
        *above, last = path
        for step in above:
            content = content[step]
        content[last] = content[last].clone()
        content[last].view(-1)[-1] = value

    return change


KINDS: dict[str, tuple[Callable[[Content], None], str]] = {
    "epoch": (at("epoch", value="x"), "epoch: Input should be a valid integer"),
    "negative": (at("step", value=-1), "step: Input should be greater than or equal to 0"),
    "weights": (at("model_state_dict", value=5), "model_state_dict: Input should be"),
    "a weight": (at("model_state_dict", WEIGHT, value=[1.0]), f"model_state_dict.{WEIGHT}: "),
    "integers": (
        at("model_state_dict", WEIGHT, value=torch.zeros(3, dtype=torch.int64)),
        f"model_state_dict.{WEIGHT}: is of torch.int64 on device cpu, expected dense",
    ),
    "without numbers": (
        at("model_state_dict", WEIGHT, value=torch.zeros(3, device="meta")),
        f"model_state_dict.{WEIGHT}: is of torch.float32 on device meta, expected dense",
    ),
    "sparse": (
        at("model_state_dict", WEIGHT, value=torch.zeros(3, 3).to_sparse()),
        f"model_state_dict.{WEIGHT}: is of torch.float32 on device cpu, expected dense",
    ),
    "NaN": (spoilt("model_state_dict", WEIGHT), f"model_state_dict.{WEIGHT}: holds NaN or inf"),
    "infinite": (
        spoilt("model_state_dict", WEIGHT, value=float("-inf")),
        f"model_state_dict.{WEIGHT}: holds NaN or infinity",
    ),
    "a vector": (spoilt("vectors", "polymer"), "vectors.polymer: holds NaN or infinity"),
    "no records": (at("records", value=[]), "records must be those of epochs 1 to 2"),
    "other records": (at("records", 1, "epoch", value=7), "records must be those of epochs 1 to 2"),
    "a record's loss": (at("records", 0, "val_loss", value="low"), "records.0.val_loss: "),
    "no config": (at("config"), "it lacks config"),
    "no data": (at("config", "data"), "it lacks config.data"),
    "no tasks": (at("config", "tasks", value=[]), "config.tasks: List should have at least 1"),
    "no name": (at("config", "tasks", 0, "name"), "it lacks config.tasks.0.name"),
    "no epochs": (at("config", "train", value={"": None}), "it lacks config.train.epochs"),
    "no split": (at("config", "split", value={}), "it lacks config.split.strategy"),
    "strings": (at("strings", value=["[*]CC[*]"]), "strings: Input should be a valid dictionary"),
    "fewer strings": (at("strings", "polymer", 0), "expected one row for each of 6 strings"),
    "a string twice": (at("strings", "polymer", 0, value="[*]CC[*]"), "are not distinct"),
    "columns": (at("vectors", "partner"), "strings and vectors must be of the same columns"),
    "identity": (at("identity", value={"table": 5}), "identity.table: Input should be"),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_wrong_kind_of_content_is_refused_by_its_key(
    case: str, whole: Content, folder: Path
) -> None:
    change, message = KINDS[case]
    content = deepcopy(whole)
    change(content)
    file = folder / "tiny_best.pt"
    save_checkpoint(file, content)
    for read in (lambda: read_content(file), lambda: load_run(folder)):
        with pytest.raises(RunError) as error:
            read()
        assert f"{file} is not the checkpoint of a whole run: " in str(error.value)
        assert message in str(error.value)


COLUMNS: dict[str, tuple[Callable[[Content], None], str]] = {
    "scaling": (at("scaling", value="{}"), "does not say what its columns are"),
    "another width": (
        lambda content: content["vectors"].update(polymer=torch.zeros(7, 25)),
        "has vectors of",
    ),
    "another feature": (
        at("config", "data", "numeric", 0, "column", value="other"),
        "its config has numeric",
    ),
    "a task less": (
        lambda content: content["config"].update(tasks=content["config"]["tasks"][:2]),
        "tasks must be those that were trained",
    ),
    "another kind of task": (
        lambda content: content["config"]["tasks"][1].update(kind="regression", loss=None),
        "its config has tasks",
    ),
    "a config value": (at("config", "model", "num_layers", value="x"), "model is not a valid"),
    "a network that needs terabytes": (
        at("config", "model", "feedforward", value=16_000),
        "the weights in",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_parts_that_do_not_belong_together_are_refused(
    case: str, whole: Content, folder: Path
) -> None:
    change, message = COLUMNS[case]
    content = deepcopy(whole)
    change(content)
    save_checkpoint(folder / "tiny_best.pt", content)
    with pytest.raises((RunError, ConfigError), match=message):
        load_run(folder)


def test_moments_that_do_not_fit_the_weights_are_not_resumed() -> None:
    module = torch.nn.Linear(3, 2)
    moments = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    state: dict[str, Any] = {"step": 4, "exp_avg": moments, "exp_avg_sq": moments}
    state["loss_scaler"] = {}
    check_moments(module, state, Path("last.pt"))
    for wrong, message in [
        ({}, "has no state of the optimizer, as best and final checkpoints have none"),
        ({"exp_avg": moments}, "has no state of the optimizer: step: Field required"),
        ({**state, "step": "x"}, "step: Input should be a valid integer"),
        (
            {**state, "exp_avg": {**moments, "weight": torch.zeros(1)}},
            r"moments of the optimizer\) do not fit .*: weight is \[1\], expected \[2, 3\]",
        ),
        (
            {**state, "exp_avg_sq": {**moments, "bias": torch.full((2,), torch.inf)}},
            r"exp_avg_sq\.bias: holds NaN or infinity",
        ),
    ]:
        with pytest.raises(RunError, match=message):
            check_moments(module, wrong, Path("last.pt"))
