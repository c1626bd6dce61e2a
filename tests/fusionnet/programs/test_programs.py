"""A program, in ONNX or of torch.export, predicts from raw units what the run predicts, for any
number of rows, every form of the network and every kind of target; what it cannot hold is refused.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
import yaml
from shared_fixtures import tiny_config, tiny_frame

from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError, RunError
from embedcache.schema import merged
from fusionnet import RewardModel
from fusionnet.experiment import load_experiment
from fusionnet.model.embeddings import PiecewiseLinear
from fusionnet.programs.files import ONNX_OPSET, write_program
from fusionnet.programs.program import INPUTS, RawProgram
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.workflow.blending import blend_run
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.calibrating import write_calibration

# every kind of target, loss and transform that has a formula of its own between output and unit
TASKS = [
    {"name": "ef", "column": "outcome", "unit": "mm", "head": [16, 8], "loss": "beta_nll"},
    {"name": "ratio", "column": "ratio", "head": [8], "transform": "log10"},
    {"name": "skewed", "column": "skewed", "head": [8], "transform": "quantile"},
    {"name": "opt", "column": "good", "kind": "binary", "head": [8], "loss": "focal"},
    {"name": "plain", "column": "answer", "kind": "binary", "classes": ["no", "yes"], "head": [8]},
    {
        "name": "shape",
        "column": "shape",
        "kind": "multiclass",
        "head": [8],
        "class_weights": "auto",
    },
    {"name": "grade", "column": "grade", "kind": "ordinal", "head": [8]},
]
MODELS: dict[str, dict[str, Any]] = {
    "joint": {},
    "modality, ple": {"fusion": "modality", "numeric": "ple"},
    "mlp, periodic": {"fusion": "mlp", "numeric": "periodic", "linear_skip": True},
    "joint, members": {"members": 3, "linear_skip": True},
    "modality, members": {"fusion": "modality", "members": 2, "member_layers": 2},
}
NUM_ROWS = (0, 1, 7, 257)


def rich_frame() -> pl.DataFrame:
    """Return the tiny table with targets of every kind, and gaps in its features."""
    rng = np.random.default_rng(1)
    frame = tiny_frame()
    outcome = frame["outcome"].to_numpy()
    place = np.arange(len(frame))
    return frame.with_columns(
        ratio=pl.Series(10 ** (outcome / 3)),
        skewed=pl.Series(np.exp(rng.normal(size=len(frame)) + outcome)),
        answer=pl.Series(np.where(outcome + rng.normal(size=len(frame)) > 1, "yes", "no")),
        shape=pl.Series(rng.choice(["round", "flat", "odd"], len(frame), p=[0.6, 0.3, 0.1])),
        grade=pl.Series(np.digitize(outcome, [0.5, 1.5, 2.5])),
        x0=pl.when(pl.Series(place % 9 == 0)).then(None).otherwise(pl.col("x0")),
        x3=pl.Series(rng.normal(size=len(frame)) ** 3),
        x4=pl.when(pl.Series(place % 7 == 0)).then(None).otherwise(pl.col("x1") * 2),
    )


class Scene(NamedTuple):
    """A cache of the rich table, and what makes runs of it."""

    frame: pl.DataFrame
    values: dict[str, Any]
    make: Callable[..., Path]

    def run(self, folder: Path, **changes: Any) -> Path:
        """Return a run folder, calibrated; its weights are random."""
        self.make(folder, **{**self.values, **changes})
        experiment = load_experiment(folder.with_name(f"{folder.name}.yaml"))
        cache = open_cache(experiment.cache.path)
        if experiment.blend.boosting:
            blend_run(folder, experiment, cache, verbose=False)
        write_calibration(folder, experiment, cache, verbose=False)
        return folder


@pytest.fixture(scope="module")
def scene(make_run, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("rich")
    frame = rich_frame()
    frame.write_parquet(folder / "table.parquet")
    values = tiny_config(folder, tiny_encoder_folder)
    values["tasks"] = TASKS
    values["data"]["numeric"] = [
        {"column": "x0", "feature_group": "first", "if_null": "indicator"},
        {"column": "x1", "low": 0, "high": 100},
        {"column": "x2", "transform": "log10"},
        {"column": "x3", "transform": "quantile", "feature_group": "first"},
        {"column": "x4", "if_null": "median"},
    ]
    values["data"]["categories"] = [{"column": "kind", "if_null": "a"}]
    values["calibration"] = {"probabilities": "temperature"}
    config = folder / "rich.yaml"
    config.write_text(yaml.safe_dump(values))
    build_experiment(load_experiment(config))
    own = {name: values[name] for name in ("data", "tasks", "cache", "calibration")}
    return Scene(frame, own, make_run)


def rows_of(run: TrainedRun, frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return a program's inputs of a frame, by its sidecar's rules alone."""

    def codes(values: list[str], column: str, missing: str | None = None) -> np.ndarray:
        found = [missing if each is None else str(each) for each in frame[column].to_list()]
        return np.array([values.index(each) for each in found], dtype=np.int64)

    strings = [codes(list(run.strings[c.name]), c.column) for c in run.data.strings]
    categories = [
        codes(list(values), column, config.if_null)
        for (column, values), config in zip(run.layout.categories, run.data.categories, strict=True)
    ]
    numbers = [frame[c.column].cast(pl.Float32).to_numpy() for c in run.data.numeric]
    nothing = np.zeros((len(frame), 0), dtype=np.int64)
    return {
        "numeric": np.stack(numbers, 1),
        "string_id": np.stack(strings, 1) if strings else nothing,
        "category": np.stack(categories, 1) if categories else nothing,
    }


def expected_of(model: RewardModel, frame: pl.DataFrame, names: list[str]) -> np.ndarray:
    return model.predict(frame).select(names).to_numpy().astype(np.float32)


def predictor(folder: Path, kind: str) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Return what runs the program in a folder."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        return lambda rows: session.run(None, rows)[0]
    module = torch.export.load(folder / "model.pt2").module()
    return lambda rows: module(*(torch.from_numpy(rows[name]) for name in INPUTS)).numpy()


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param(form, kind, marks=() if is_first else pytest.mark.slow)
        for kind in ("onnx", "torch")
        for is_first, form in zip((True, *(False,) * (len(MODELS) - 1)), MODELS, strict=True)
    ],
)
def test_a_program_predicts_what_the_run_predicts(
    scene: Scene, tmp_path: Path, form: str, kind: Any
) -> None:
    run = load_run(scene.run(tmp_path / "run", model=MODELS[form]))
    assert run.temperature(run.tasks[3]) != 1
    write_program(run, kind, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    names = [each["name"] for each in about["outputs"]["predictions"]["columns"]]
    assert names[:4] == [f"predicted_{name}" for name in ("outcome", "ratio", "skewed", "good")]
    predict, model = predictor(tmp_path / "out", kind), RewardModel(run)
    for num_rows in NUM_ROWS:
        frame = scene.frame.head(num_rows)
        found = predict(rows_of(run, frame))
        assert found.shape == (num_rows, len(names))
        if num_rows:
            np.testing.assert_allclose(
                found, expected_of(model, frame, names), rtol=1e-4, atol=1e-5
            )
            assert num_rows < 9 or found.std(0).min() > 1e-3, "rows differ in every column"


@pytest.mark.slow
def test_the_sidecar_says_how_to_call_it(scene: Scene, tmp_path: Path) -> None:
    run = load_run(scene.run(tmp_path / "run"))
    write_program(run, "onnx", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["opset"] == ONNX_OPSET
    opsets = {
        each.domain: each.version
        for each in onnx.load(tmp_path / "out" / "model.onnx").opset_import
    }
    assert opsets[""] == ONNX_OPSET
    inputs = about["inputs"]
    numbers = {each["column"]: each for each in inputs["numeric"]["columns"]}
    assert list(numbers) == ["x0", "x1", "x2", "x3", "x4"]
    assert numbers["x1"]["missing_stands_for"] is None
    assert numbers["x4"]["missing_stands_for"] == run.scaling.fill[run.scaling.columns.index("x4")]
    assert inputs["string_id"]["columns"][0]["strings"] == list(run.strings["polymer"])
    assert inputs["category"]["columns"][0]["values"] == ["a", "b", "c"]
    outputs = about["outputs"]["predictions"]["columns"]
    assert outputs[0] == {"name": "predicted_outcome", "column": "outcome", "unit": "mm"}
    example, kinds = about["example"], {"numeric": np.float32}
    rows = {name: np.array(example[name], dtype=kinds.get(name, np.int64)) for name in INPUTS}
    found = predictor(tmp_path / "out", "onnx")(rows)
    np.testing.assert_allclose(found, np.array(example["predictions"]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_is_not_known_is_predicted_as_nan(scene: Scene, tmp_path: Path) -> None:
    run = load_run(scene.run(tmp_path / "run"))
    write_program(run, "onnx", tmp_path / "out")
    predict = predictor(tmp_path / "out", "onnx")
    rows = rows_of(run, scene.frame.head(8))
    whole = predict(rows)
    rows["string_id"][0, 0] = -1
    rows["string_id"][1, 1] = 99
    rows["category"][2, 0] = 3
    rows["numeric"][3, 1] = np.nan  # nothing stands for a missing x1
    rows["numeric"][4, 4] = np.nan  # the median stands for a missing x4
    rows["numeric"][6, 3] = np.nan  # nor for x3, whose transform has bounds
    rows["numeric"][7, 2] = -1  # it has no logarithm
    found = predict(rows)
    assert np.isnan(found[[0, 1, 2, 3, 6, 7]]).all()
    assert np.isfinite(found[4]).all()
    assert (found[4] != whole[4]).any()
    np.testing.assert_array_equal(found[5], whole[5])


@pytest.mark.slow
def test_trees_are_refused_or_left_out_as_asked(scene: Scene, tmp_path: Path) -> None:
    blend = {"boosting": True, "parts": 3, "most_trees": 10, "least_rows": 5}
    folder = scene.run(tmp_path / "run", blend=blend)
    run = load_run(folder)
    assert run.blend is not None
    with pytest.raises(RunError, match=r"a blend with boosted trees \(.*--without-trees"):
        write_program(run, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_program(run, "torch", tmp_path / "out", with_trees=False)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["without_trees"] is True
    alone = load_run(folder, with_blend=False, with_calibration=False)
    names = [each["name"] for each in about["outputs"]["predictions"]["columns"]]
    frame = scene.frame.head(40)
    found = predictor(tmp_path / "out", "torch")(rows_of(run, frame))
    expected = expected_of(RewardModel(alone), frame, names)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_table_of_numbers_alone_has_a_program(scene: Scene, tmp_path: Path) -> None:
    tiny_frame().write_parquet(tmp_path / "table.parquet")
    data = {"path": str(tmp_path / "table.parquet"), "group": "patient", "strings": []}
    data |= {"numeric": [{"column": "x0"}, {"column": "x1"}], "categories": [], "row_weight": None}
    data |= {"report_by": [], "stratum": None}
    cache = {"path": str(tmp_path / "cache.zarr")}
    changes = {"data": data, "cache": cache, "tasks": TASKS[:1], "split": {"stratify_by": None}}
    values = merged(tiny_config(tmp_path, tmp_path / "no encoder"), changes)
    values["encoder"] = {"mode": "none"}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(values))
    build_experiment(load_experiment(tmp_path / "plain.yaml"))
    run = load_run(scene.make(tmp_path / "made", **changes, encoder={"mode": "none"}))
    frame = tiny_frame().head(30)
    for kind in ("onnx", "torch"):
        write_program(run, kind, tmp_path / kind)
        found = predictor(tmp_path / kind, kind)(rows_of(run, frame))
        expected = expected_of(RewardModel(run), frame, ["predicted_outcome"])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_program_holds_nothing_that_only_strings_need(scene: Scene, tmp_path: Path) -> None:
    run = load_run(scene.run(tmp_path / "run", model={"numeric": "ple"}))
    before = {name: value.clone() for name, value in run.model.network.state_dict().items()}
    program = RawProgram(run)
    assert not [name for name in program.state_dict() if "adapter" in name or "categories" in name]
    assert isinstance(program.network.numeric_embedding, PiecewiseLinear)
    after = run.model.network.state_dict()
    assert before.keys() == after.keys(), "the run's own network is as it was"


def test_what_onnx_needs_is_named(scene: Scene, tmp_path: Path, monkeypatch) -> None:
    run = load_run(scene.run(tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript: pip install 'embedcache-fusionnet\[export"):
        write_program(run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
