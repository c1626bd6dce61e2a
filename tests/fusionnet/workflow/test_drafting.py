"""A config that is guessed from a table is read back as it was meant, and builds a cache of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from embedcache.build.report import BuildReport
from fusionnet.experiment import load_experiment
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.drafting import MOST_TUNED, as_yaml, draft_config
from fusionnet.workflow.schema import config_schema
from fusionnet.workflow.tokens import Tokens

NUM = 60
POLYMERS = ["*CC*", "*CCO*", "*CC(*)C", "[*]CC([*])c1ccccc1"]


def made(name: str, folder: Path) -> Path:
    """Write one of the tables that people have, and return its path."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "smiles": POLYMERS * (NUM // 4),
            "x": rng.normal(size=NUM).round(4),
            "solvent": ["water", "THF", "DMF"] * (NUM // 3),
            "y": rng.normal(size=NUM).round(4),
        }
    )
    file = folder / f"{name}.csv"
    if name == "pandas index":
        frame.sample(frac=1, random_state=0).to_csv(file)
    elif name == "NA strings":
        frame.mask(rng.random(frame.shape) < 0.1).to_csv(file, index=False, na_rep="NA")
    elif name == "decimal commas":
        frame.to_csv(file, index=False, sep=";", decimal=",")
    elif name == "truths":
        frame.assign(dried=frame.x > 0, wet=frame.x > 1).to_csv(file, index=False)
    elif name == "dates":
        days = pd.date_range("2024-01-01", periods=NUM)
        frame.assign(day=days).to_csv(file, index=False)
    elif name == "names twice":
        frame.to_csv(file, index=False, header=["smiles", "x", "x", "y"])
    elif name == "odd columns":
        odd = {"all null": None, "constant": 3, "id": [7 * row for row in range(NUM)], "": "a"}
        frame.assign(**odd).to_csv(file, index=False)
    elif name == "odd names":
        frame.columns = pd.Index(["smiles: a", "x #1", "it's [b, {c}]", "y ü"])
        frame.to_csv(file, index=False)
    elif name == "faults":
        frame = frame.astype(object)
        frame.loc[3, "x"], frame.loc[5, "smiles"], frame.loc[7, "y"] = "<0.1", "CC(", "inf"
        frame.to_csv(file, index=False)
    elif name == "typed":
        file = folder / "typed.parquet"
        typed = pl.DataFrame({name: list(frame[name]) for name in frame.columns})
        categories = pl.col("solvent").cast(pl.Categorical)
        lists = pl.Series("l", [[1, 2]] * NUM)
        typed.with_columns(
            categories, lists, pl.lit("2024-01-01").str.to_date().alias("t")
        ).write_parquet(file)
    elif name == "groups":
        frame.assign(patient=[f"P{row // 6}" for row in range(NUM)]).to_csv(file, index=False)
    elif name == "no strings":
        frame.drop(columns="smiles").to_csv(file, index=False)
    else:
        assert name == "own split"
        frame.assign(split=["train", "train", "validation", "test"] * 15).to_csv(file, index=False)
    return file


def built(
    table: Path,
    folder: Path,
    encoder: Path,
    tokens: Tokens | None = None,
    changes: Sequence[str] = (),
) -> BuildReport:
    """Return the report of building the cache of a table by the config that is guessed of it."""
    config = folder / "drafted.yaml"
    draft = draft_config(table, tokens=tokens)
    config.write_text(as_yaml(draft), encoding="utf-8")
    overrides = [f"cache.path={folder / 'cache.zarr'}"]
    overrides += [f"encoder.source={encoder}"] if draft.guess.num_distinct else []
    overrides += changes
    experiment = load_experiment(config, overrides)
    assert max(map(len, config.read_text(encoding="utf-8").splitlines())) <= 140
    report = build_experiment(experiment)
    assert {spec.name: spec.num_strings for spec in report.strings} == draft.guess.num_distinct
    assert report.num_rows == draft.guess.num_rows
    return report


@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("pandas index", NUM),
        ("NA strings", NUM),
        ("decimal commas", NUM),
        ("truths", NUM),
        ("dates", NUM),
        ("names twice", NUM),
        ("odd columns", NUM),
        ("odd names", NUM),
        ("faults", NUM - 3),
        ("typed", NUM),
        ("groups", NUM),
        ("own split", NUM),
        ("no strings", NUM),
    ],
)
def test_a_guessed_config_builds_as_it_stands(
    tmp_path: Path, tiny_encoder_folder: Path, name: str, num_rows: int
) -> None:
    report = built(made(name, tmp_path), tmp_path, tiny_encoder_folder)
    assert report.num_rows == num_rows
    assert len(report.targets) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "table", ["transpolymer/Egc.csv", "polymer_electrolyte/clean_train_data.csv"]
)
def test_public_tables_are_guessed_and_built(
    tmp_path: Path, shared_data: Path, tiny_encoder_folder: Path, table: str
) -> None:
    tokens = Tokens(str(tiny_encoder_folder))
    counts = ["data.strings.0.features=[morgan]"]  # RDKit's descriptors take a minute of CPU
    report = built(shared_data / table, tmp_path, tiny_encoder_folder, tokens, counts)
    assert report.num_rows > 3000


def test_the_minimal_config_works(
    tmp_path: Path, tiny_encoder_folder: Path, repository: Path
) -> None:
    table = {"smiles": POLYMERS * 5, "tg": np.arange(20.0)}
    pl.DataFrame(table).write_csv(tmp_path / "mine.csv")
    overrides = [f"data.path={tmp_path / 'mine.csv'}", f"encoder.source={tiny_encoder_folder}"]
    experiment = load_experiment(
        repository / "configs" / "minimal.yaml", [*overrides, f"cache.path={tmp_path / 'c.zarr'}"]
    )
    report = build_experiment(experiment)
    assert report.num_rows == 20


def test_what_deduplication_saves_is_counted(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    table = tmp_path / "t.csv"
    pl.DataFrame({"smiles": POLYMERS * 10, "y": np.arange(40.0) % 7}).write_csv(table)
    tokens = Tokens(str(tiny_encoder_folder))
    draft = draft_config(table, tokens=tokens)
    once, all_rows = draft.num_tokens["smiles"]
    assert all_rows == 10 * once
    assert f"4 distinct strings in 40 rows: one encoding serves 10.0 rows; {once:,}" in (
        draft.saving()
    )


@pytest.mark.parametrize(("num_strings", "mode"), [(MOST_TUNED, None), (MOST_TUNED + 1, "frozen")])
def test_many_strings_are_encoded_once(tmp_path: Path, num_strings: int, mode: str | None) -> None:
    chains = [f"*{'C' * (1 + row % num_strings)}*" for row in range(2 * num_strings)]
    rows = np.arange(len(chains))
    table = tmp_path / "chains.csv"
    pl.DataFrame({"smiles": chains, "y": np.sin(rows)}).write_csv(table)
    draft = draft_config(table)
    assert draft.values["encoder"].get("mode") == mode
    assert ("{mode: per_step}" in as_yaml(draft)) == (mode == "frozen")


def test_an_encoder_says_what_it_cannot_read(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    table = tmp_path / "t.csv"
    long = f"*{'C' * 470}*"  # short enough for polyBERT
    strings = [*POLYMERS, long] * 8
    pl.DataFrame({"smiles": strings, "y": np.arange(40.0) % 7}).write_csv(table)
    tokens = Tokens(str(tiny_encoder_folder))
    longest = tokens._longest
    assert draft_config(table).guess.num_rows == 40
    assert draft_config(table, tokens=tokens).guess.num_rows == (40 if longest > 475 else 32)


def test_the_schema_knows_every_key_and_what_it_means() -> None:
    schema = config_schema()
    json.dumps(schema)
    assert "extends" in schema["properties"]

    def keys(node: Any) -> list[tuple[str, Any]]:
        if isinstance(node, list):
            return [found for each in node for found in keys(each)]
        if not isinstance(node, dict):
            return []
        own = list(node.get("properties", {}).items())
        return own + [found for each in node.values() for found in keys(each)]

    found = dict(keys(schema))
    assert {"path", "batch_rows", "pooling", "if_null"} <= set(found)
    undescribed = [key for key, value in found.items() if not {"description", "$ref"} & set(value)]
    assert undescribed == []
