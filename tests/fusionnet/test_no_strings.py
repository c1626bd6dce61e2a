"""Tables without string columns, or with nothing else: built, trained, proven and read as others.

No encoder is looked for where no column is to be encoded: the config's names none that is there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from forks import Forks
from provable import Training
from shared_fixtures import tiny_config, tiny_frame

from embedcache.build.decide import Existing, build_cache
from embedcache.cache.reader import open_cache
from embedcache.errors import ConfigError
from fusionnet import RewardModel
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.report import write_report
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.rows.tensors import load_rows
from fusionnet.trained.run import load_run
from fusionnet.workflow.inspecting import as_text

KINDS = ("strings", "numeric", "categories")
LEFT_OUT = {
    "numbers and categories": ("strings",),
    "numbers": ("strings", "categories"),
    "categories": ("strings", "numeric"),
    "strings": ("numeric", "categories"),
}
Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def make_config(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder: Path) -> Maker:
    """Write the tiny experiment's config without some kinds of columns."""

    def make(*left_out: str, **model: str) -> Path:
        folder = tmp_path_factory.mktemp("some")
        tiny_frame().write_parquet(folder / "table.parquet")
        encoder = folder / "nowhere" if "strings" in left_out else tiny_encoder_folder
        config: dict[str, Any] = tiny_config(folder, encoder)
        for kind in left_out:
            del config["data"][kind]
        config["model"] |= model
        config["reward"] = {"terms": [{"task": "ef", "weight": 1.0}]}
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    return make


def built(config: Path, existing: Existing = Existing.KEEP) -> Experiment:
    experiment = load_experiment(config)
    parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
    build_cache(*parts, experiment.cache, existing)
    return experiment


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["joint", "modality"])
@pytest.mark.parametrize("columns", LEFT_OUT)
def test_training_is_proven_and_rows_at_speed_are_the_networks_own(
    columns: str, fusion: str, make_config: Maker, tmp_path: Path
) -> None:
    config = make_config(*LEFT_OUT[columns], fusion=fusion)
    experiment = built(config)
    assert open_cache(experiment.cache.path).layout.strings == () or columns == "strings"
    training = Training(config, tmp_path, static=fusion == "modality")
    assert training.prove().passed
    training.reset()
    training.epoch()

    rows = load_rows(open_cache(experiment.cache.path), "test")
    network, tables = training.model.eval().network, []
    if columns == "strings":
        tables = [source.vectors_of_all_strings() for source in training.sources]
    evaluate = RowEvaluator(network, torch.float32)
    with torch.no_grad():
        fast = evaluate(evaluate.tables(tables), rows.inputs)
        assert torch.allclose(fast, network(tables, rows.inputs), atol=1e-5)


def test_a_table_without_strings_grows_as_others_do(make_config: Maker, tmp_path: Path) -> None:
    config = make_config("strings")
    frame = tiny_frame(300)
    files = [str(tmp_path / name) for name in ("first.parquet", "second.parquet")]
    frame[:200].write_parquet(files[0])
    frame[200:].write_parquet(files[1])
    values = yaml.safe_load(config.read_text())
    for path, existing in ((files[:1], Existing.KEEP), (files, Existing.APPEND)):
        values["data"]["path"] = path
        config.write_text(yaml.safe_dump(values))
        grown = open_cache(built(config, existing).cache.path)
    values["cache"]["path"] = str(tmp_path / "at_once.zarr")
    config.write_text(yaml.safe_dump(values))
    at_once = open_cache(built(config).cache.path)
    assert grown.layout == at_once.layout
    assert grown.scaling == at_once.scaling
    assert (grown.rows().numeric == at_once.rows().numeric).all()


@pytest.mark.dist
def test_a_run_without_strings_is_trained_and_read(
    make_config: Maker, forks: Forks, repository: Path
) -> None:
    config = make_config("strings")
    experiment = built(config)
    job = repository / "jobs" / "train.py"
    first = forks.run(job, "--config", config, "--set", "train.prove=1")
    assert "no strings" in first.out
    assert "mode" not in first.out
    assert "saving" not in first.out
    run, cache = load_run(experiment.run.dir), open_cache(experiment.cache.path)
    assert run.certificate.startswith("proven")
    assert not [*run.folder.glob("adapter*"), *run.folder.glob("tokenizer*")]
    card = (run.folder / "README.md").read_text()
    assert "no strings" in card
    assert "LoRA" not in card
    assert "string" not in as_text(cache)

    found = evaluate_run(run, cache, "test", progress=False)
    assert list(found.baselines) == ["mean of the train rows", "boosting"]
    page = write_report(run, found, run.records, run.folder).read_text()
    assert "string" not in page.split("<h2>Configuration</h2>")[0]
    assert json.loads(json.dumps(found.to_json(run)))["mode"] is None

    frame = pl.read_parquet(experiment.data.files[0]).drop("smiles", "other")
    model = RewardModel(run)
    predicted = model.predict(frame)
    assert predicted.height == frame.height
    assert predicted["known"].all()
    assert model.predict(frame[:0]).height == 0
    vectors, inputs = model.inputs(frame)
    assert vectors == []
    inputs.numeric.requires_grad_()
    model.differentiable(vectors, inputs).sum().backward()
    assert inputs.numeric.grad is not None
    assert inputs.numeric.grad.abs().sum() > 0


def test_a_table_of_nothing_is_refused(make_config: Maker) -> None:
    with pytest.raises(ConfigError, match="at least one column in strings, numeric or categories"):
        load_experiment(make_config(*KINDS))


def test_strings_cannot_be_left_out_where_there_are_none(make_config: Maker) -> None:
    experiment = load_experiment(make_config("strings"), ["split.strategy=leave_strings_out"])
    parts = (experiment.data, experiment.targets, experiment.split, experiment.encoder)
    with pytest.raises(ConfigError, match="needs a string column in data"):
        build_cache(*parts, experiment.cache)
