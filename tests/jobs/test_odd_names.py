"""Columns, values and units may be called anything: build, evaluate and predict take the names as
they are, and write no file where a name would have it.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from fusionnet.commands import evaluate_model, predict
from fusionnet.experiment import load_experiment
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.predicting import MARKS

Call = Callable[..., tuple[int, str, str]]

SCRIPT, TEX, LONG = "<script>alert(1)</script>", "$5^$", "n" * 10_000
NAMES = {
    "smiles": "../../smiles",
    "other": SCRIPT,
    "kind": TEX,
    "x0": "a\0b",
    "x1": LONG,
    "x2": 'e\u0301\n"quoted", \x1b[2J',
    "patient": "dose mg/kg",
    "real": "..",
    "outcome": "$0-$5 \\frac{",
    "good": "\x1b[2J",
    "gappy": "",
}
VALUES = dict(zip("abc", ("../../a", SCRIPT, "c\0\n"), strict=True))
FACETS = {
    "dose_mg_kg": [TEX, "$0-$5"],
    "Dose mg/kg": [SCRIPT, LONG],
    ".hidden": [LONG, ""],
    f"{LONG}n": ["a\0b", "\x1b[2J"],
}


def renamed(value: Any) -> Any:
    """Return a config with the columns' odd names."""
    if isinstance(value, dict):
        odd = {key: renamed(each) for key, each in value.items()}
        columns = ("column", "group", "stratum", "stratify_by")
        return odd | {key: NAMES[value[key]] for key in columns if isinstance(value.get(key), str)}
    return [renamed(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def folder(tiny_experiment: Path, make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, its cache and a run, and nothing beside."""
    place = tmp_path_factory.mktemp("odd") / "inner"
    place.mkdir()
    table = pl.read_parquet(tiny_experiment.parent / "table.parquet").with_columns(
        pl.col("kind").replace(VALUES)
    )
    facets = [
        pl.Series(name, [values[row % 7 % 2] for row in range(len(table))])
        for name, values in FACETS.items()
    ]
    table.rename(NAMES).with_columns(facets).write_parquet(place / "table.parquet")
    config = yaml.safe_load(tiny_experiment.read_text())
    data = renamed(config["data"]) | {"path": str(place / "table.parquet")}
    data["report_by"] = ["..", "dose mg/kg", *FACETS]
    tasks = [{**task, "unit": TEX} for task in renamed(config["tasks"])]
    changes = {
        "data": data,
        "split": renamed(config["split"]),
        "tasks": tasks,
        "cache": {"path": str(place / "cache.zarr")},
    }
    (place / "odd.yaml").write_text(
        yaml.safe_dump({**changes, "extends": str(tiny_experiment)}), encoding="utf-8"
    )
    experiment = load_experiment(place / "odd.yaml")
    build_experiment(experiment)
    make_run(place / "run", **changes)
    return place


@pytest.mark.slow
def test_a_run_of_odd_names_is_evaluated(call: Call, folder: Path) -> None:
    code, said, err = call(evaluate_model.main, "--run", folder / "run", "--no-baselines")
    assert code == 0, err
    assert "\x1b" not in said
    assert "\0" not in said
    run = folder / "run"
    assert {path.parent for path in run.rglob("*.png")} == {run / "plots"}
    assert len(list((run / "plots").iterdir())) == 3 + 6 + 1 + 2 + 2
    # targets, facets, thresholds, strings, epochs
    assert {path.name for path in folder.iterdir()} == {
        *("table.parquet", "odd.yaml", "cache.zarr", "cache.zarr.lock", "run", "run.yaml")
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert (
        page.count("<script") == page.count("</script>") == 4
    )  # of the part that is live, and of tables
    assert "&lt;script&gt;" in page
    assert f"<td>{LONG}</td>" in page


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_rows_of_odd_names_are_predicted(
    call: Call,
    name: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    table, target = folder / "table.parquet", tmp_path / name
    words = ("--run", folder / "run", "--input", table, "--output", target)
    code, said, err = call(predict.main, *words)
    assert code == 0, err
    assert "\x1b" not in said
    if name == "out.csv":
        with target.open(encoding="utf-8", newline="") as stream:
            head, *rows = csv.reader(stream)
        first = [row[head.index(SCRIPT)] for row in rows]
    else:
        written = pl.read_parquet(target)
        head, first = written.columns, written[SCRIPT].to_list()
    added = [f"predicted_{NAMES[column]}" for column in ("outcome", "good", "gappy")]
    assert head == [*pl.read_parquet_schema(table), *added, *MARKS]
    assert first == pl.read_parquet(table)[SCRIPT].to_list()
    assert list(tmp_path.iterdir()) == [target]
