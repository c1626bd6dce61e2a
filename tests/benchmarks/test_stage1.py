"""The tables of a full-size run say in which settings it differs from the specified one."""

import json
from pathlib import Path

from benchmarks.harness.publish import markdown
from benchmarks.stage1 import changes, report
from fusionnet.experiment import load_experiment


def test_settings_that_differ_from_the_specified_run_are_named(repository: Path) -> None:
    file = repository / "configs" / "stage1.yaml"
    assert (
        changes(
            load_experiment(file, ["run.dir=elsewhere", "data.path=other.parquet"]).model_dump(
                mode="json"
            )
        )
        == {}
    )
    settled = [
        changes(load_experiment(file, [f"train.precision={precision}"]).model_dump(mode="json"))
        for precision in ("fp32", "bf16")
    ]
    assert settled == [{}, {}]  # of auto, at the start of a run
    changed = load_experiment(file, ["model.fusion=modality", "train.epochs=3"]).model_dump(
        mode="json"
    )
    assert changes(changed) == {"model.fusion": "modality", "train.epochs": 3}


def test_metrics_that_are_not_defined_are_said_to_be_so(repository: Path) -> None:
    found = json.loads((repository / "benchmarks" / "results" / "stage1.json").read_text())
    found["metrics"]["test"]["is_optimal"]["precision"] = None  # nothing was called optimal
    found["metrics"]["oracle"]["is_optimal"]["auroc"] = found["metrics"]["by"]["is_real"]["true"][
        "is_optimal"
    ]["auroc"] = None
    found["metrics"]["oracle_share"]["delta_EF_pct"]["r2"] = found["epochs"][0]["opt_f1"] = None
    text = markdown(report(found), found)
    assert "| is_optimal | precision | - | 0.7 |" in text
    assert "R2 of delta_EF_pct is not defined." in text
