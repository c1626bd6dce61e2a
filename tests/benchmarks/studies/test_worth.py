"""A study that goes on where it was broken off, and compares errors of the same seeds."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.studies import worth, worth_models
from embedcache.config.columns import StringColumn
from embedcache.guess.roles import Named
from fusionnet.experiment import load_experiment
from fusionnet.workflow.drafting import ROWS_FOR_BINS, as_yaml, draft_config


def cell(mae: float) -> dict[str, Any]:
    return {"mae": mae, "r2": 0.5, "seconds": 1.0, "commit": "abc", "encoder": "tiny"}


def test_an_error_is_compared_on_its_own_seeds() -> None:
    models = {
        "ours": {"0": cell(1.0)},
        "a": {"0": cell(2.0), "1": cell(0.1)},
        "b": {"1": cell(0.1)},  # has no seed 0
    }
    (text, table) = worth.report({"cells": {"egc": models}}).blocks
    shares = {row["name"]: table.columns[4].value(row) for row in table.rows}
    assert text == "## egc"
    assert shares["ours"] == pytest.approx(0.5)
    assert shares["a"] == pytest.approx(1.0)


def test_a_model_that_reads_no_vectors_names_no_encoder() -> None:
    models = {name: {"0": cell(1.0)} for name in ("ours", "a", "no language model", "and members")}
    (_, table) = worth.report({"cells": {"egc": models}}).blocks
    named = {row["name"]: row["encoder"] for row in table.rows}
    assert named == {"ours": "tiny", "a": "-", "no language model": "-", "and members": "tiny"}


def test_cells_of_another_process_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "worth.json"

    def cells(name: str, seed: int, arguments: Any, done: Any) -> Any:
        other = {"cells": {"egc": {"a": {"0": cell(2.0)}}}}
        output.write_text(json.dumps(other))  # meanwhile
        yield "ours", cell(1.0)

    monkeypatch.setattr(worth, "_cells", cells)
    words = ["--encoder", "tiny", "--only", "egc", "--seeds", "0", "--json", str(output)]
    worth.main(words)
    assert json.loads(output.read_text())["error"] == {"egc": {"a": [2.0], "ours": [1.0]}}


def test_each_ablation_trains_something_else(tmp_path: Path) -> None:
    """An ablation of a part that is no default would be the network without any."""
    table, config = tmp_path / "table.csv", tmp_path / "table.yaml"
    lines = [f"[*]{i % 9 * 'C'}O[*],{i}.5,{i}.25" for i in range(ROWS_FOR_BINS)]
    table.write_text("\n".join(["smiles,dose,y", *lines]))
    config.write_text(as_yaml(draft_config(table, Named(targets=("y",)))))
    settings = {
        name: load_experiment(config, worth_models.overrides(config, changes)).model_dump_json()
        for name, changes in {"ours": (), **worth_models.ABLATIONS}.items()
    }
    assert len(set(settings.values())) == len(settings)


def test_rows_that_the_encoder_cannot_read_are_left_out_for_all_models(
    tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.parquet"
    long = f"[Cu]{'C' * 2000}[Cu]"
    smiles = ["[Cu]CC[Cu]", long, None, "[Cu]CO[Cu]"]
    pl.DataFrame({"smiles": smiles, "y": [0.0, 1.0, 2.0, 3.0]}).write_parquet(table)
    column = StringColumn(name="smiles", column="smiles", replace={"[Cu]": "[*]"})
    worth_models.leave_out_unreadable(table, [column], tiny_encoder_folder)
    assert pl.read_parquet(table)["y"].to_list() == [0.0, 2.0, 3.0]
