"""Configs: unknown keys name their nearest neighbour, overrides reach lists, files extend files,
and the resolved config reads back unchanged.
"""

from pathlib import Path

import pytest
import yaml

from embedcache.errors import ConfigError
from fusionnet.experiment import load_experiment

MINIMAL = {
    "data": {
        "path": "t.parquet",
        "strings": [{"name": "polymer", "column": "smiles"}],
        "group": "patient",
    },
    "tasks": [{"name": "ef", "column": "y"}],
}


def written(folder: Path, **changes: object) -> Path:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return file


def test_every_config_in_the_repository_is_valid(repository: Path) -> None:
    files = sorted((repository / "configs").glob("*.yaml"))
    assert {file.name for file in files} >= {"stage1.yaml", "quickstart.yaml"}
    for file in files:
        load_experiment(file)


def test_stage1_is_as_specified(repository: Path) -> None:
    stage1 = load_experiment(repository / "configs" / "stage1.yaml")
    assert len(stage1.data.numeric) == 19
    assert stage1.train.batch_rows == 8192
    assert stage1.train.epochs == 15
    assert stage1.encoder.pooling == "cls"
    assert (stage1.encoder.lora.r, stage1.encoder.lora.alpha, stage1.encoder.lora.dropout) == (
        16,
        32.0,
        0.1,
    )
    assert stage1.optim.lr_encoder == 2e-5
    ef, opt, stress = stage1.tasks[:3]
    assert (ef.loss, ef.beta, ef.head) == ("smooth_l1", 2.0, (256, 64))
    assert (opt.loss, opt.gamma, opt.head) == ("focal", 2.0, (128,))
    assert (stress.loss, stress.weight, stress.head) == ("mse", 0.3, (128,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": {}}, r"trian: unknown key; did you mean 'train'\?"),
        ({"train": {"epoch": 3}}, r"train.epoch: unknown key; did you mean 'epochs'\?"),
        (
            {"encoder": {"lora": {"rank": 3}}},
            r"encoder.lora.rank: unknown key; did you mean 'r'\?",
        ),
        (
            {"tasks": [{"name": "ef", "column": "y", "los": "mse"}]},
            r"tasks.0.los: unknown key; did you mean 'loss'\?",
        ),
        # a key of another place, or by the name that it has in other tools
        ({"epochs": 3}, r"epochs: unknown key; did you mean train\.epochs\?"),
        ({"train": {"lr": 3}}, r"train.lr: unknown key; did you mean optim\.lr\?"),
        ({"learning_rate": 3}, r"did you mean optim\.lr\?"),
        ({"seed": 3}, r"did you mean split\.seed or train\.seed\?"),
        ({"train": {"batch_size": 3}}, r"did you mean 'batch_rows'\?"),
        ({"encoder": {"model": "x"}}, r"did you mean 'source'\?"),
        ({"data": {"features": ["x"]}}, r"did you mean 'numeric'\?"),
        # nothing that was meant
        ({"foo": 3}, r"foo: unknown key; known keys here: blend, cache, calibration, data"),
        ({"device": "cpu"}, r"device: unknown key; known keys here: "),
        ({"split": {"k": 3}}, r"split.k: unknown key; known keys here: column, folds"),
        ({"train": {"epochs": "many"}}, r"train.epochs: .*integer.*'many'"),
        (
            {"tasks": [{"name": "ef", "column": "y", "loss": "focal"}]},
            "is regression, which takes the losses smooth_l1 or mse",
        ),
        (
            {"reward": {"terms": [{"task": "safety", "weight": 1}]}},
            "reward reads task 'safety', which is not among the tasks: ef",
        ),
        ({"split": {"stratify_by": "y"}}, "not the column of a task of classes"),
        (
            {"model": {"feature_noise": {"patient": 0.3}}},
            "model.feature_noise names 'patient', which is no feature_group of data.numeric",
        ),
        (
            {"model": {"linear_skip": True}},
            "model.linear_skip is a function of data.numeric, which has no columns",
        ),
        (
            {"model": {"feature_noise": {"patient": -0.3}}},
            "model.feature_noise.patient: .*greater than or equal to 0",
        ),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(written(tmp_path, **changes))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(written(tmp_path, train={"epoch": 3, "batch_rows": 0}, cahce={}))
    assert str(error.value).count("\n  - ") == 3


def test_overrides_reach_mappings_and_lists(tmp_path: Path) -> None:
    file = written(tmp_path)
    experiment = load_experiment(
        file,
        ["train.epochs=3", "data.strings.0.kind=smiles", "encoder.lora.r=4", "cache.path=x.zarr"],
    )
    assert (
        experiment.train.epochs,
        experiment.data.strings[0].kind,
        experiment.encoder.lora.r,
        experiment.cache.path,
    ) == (3, "smiles", 4, "x.zarr")
    for override, message in [
        ("train.epochs", "expected KEY=VALUE"),
        ("data.strings.7.kind=x", "'7' does not address"),
        ("train.x=1", "unknown key"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_experiment(file, [override])


@pytest.mark.parametrize(
    ("word", "value"), [("on", True), ("off", False), ("true", True), ("auto", "auto")]
)
def test_compiling_is_switched_in_yamls_words(word: str, value: object, tmp_path: Path) -> None:
    file = written(tmp_path)
    assert load_experiment(file, [f"train.compile={word}"]).train.compile == value
    file.write_text(f"{file.read_text()}train: {{compile: {word}}}\n")
    assert load_experiment(file).train.compile == value


def test_a_file_extends_one_that_a_variable_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("BASES", str(tmp_path / "elsewhere"))
    written(tmp_path, train={"epochs": 3, "batch_rows": 64})
    (tmp_path / "c.yaml").rename(tmp_path / "elsewhere" / "base.yaml")
    child = tmp_path / "child.yaml"
    child.write_text("extends: $BASES/base.yaml\ntrain: {epochs: 5}\n")
    assert load_experiment(child).train.epochs == 5


def test_a_file_extends_another(tmp_path: Path) -> None:
    written(tmp_path, train={"epochs": 3, "batch_rows": 64})
    (tmp_path / "child.yaml").write_text("extends: c.yaml\ntrain: {epochs: 5}\n")
    child = load_experiment(tmp_path / "child.yaml")
    assert (child.train.epochs, child.train.batch_rows, child.data.path) == (5, 64, "t.parquet")


def test_the_resolved_config_reads_back_unchanged(tmp_path: Path, repository: Path) -> None:
    stage1 = load_experiment(repository / "configs" / "stage1.yaml")
    (tmp_path / "again.yaml").write_text(stage1.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == stage1


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no config file"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_experiment(tmp_path / "broken.yaml")
