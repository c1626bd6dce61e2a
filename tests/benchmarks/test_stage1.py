"""The tables of a full-size run say in which settings it differs from the specified one."""

from pathlib import Path

from benchmarks.stage1 import changes
from jobs.experiment import load_experiment


def test_settings_that_differ_from_the_specified_run_are_named(repository: Path) -> None:
    file = repository / "configs" / "stage1.yaml"
    assert changes(load_experiment(file, ["run.dir=elsewhere", "data.path=other.parquet"]).model_dump(mode="json")) == {}
    settled = [changes(load_experiment(file, [f"train.precision={precision}"]).model_dump(mode="json")) for precision in ("fp32", "bf16")]
    assert settled == [{}, {}]  # of auto, at the start of a run
    changed = load_experiment(file, ["model.fusion=modality", "train.epochs=3"]).model_dump(mode="json")
    assert changes(changed) == {"model.fusion": "modality", "train.epochs": 3}
