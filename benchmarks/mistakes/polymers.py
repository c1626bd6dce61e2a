"""A table as that of the Open Polymer 2025 competition: five targets, each known of few rows, and
18 strings that are no repeat units; from the file to predictions without a condition on its rows.

Its strings are made by code, or drawn from a file of one PSMILES a line.
"""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import yaml
import zarr

from benchmarks.mistakes.kinds import Mistake, said

NUM_ROWS, NUM_STRINGS = 600, 500
TARGETS = {"Tg": 0.07, "FFV": 0.68, "Tc": 0.09, "Density": 0.08, "Rg": 0.08}  # shares of the rows
UNUSABLE = (
    *("CCO", "c1ccccc1C=C", "[H]O[H]"),  # no endpoint
    *("*CCO", "[*]CC(C)C(=O)OC"),  # one
    *("*CC(*)C*", "*c1cc(*)cc(*)c1"),  # three
    *("*CC(*)C(=O)Oc1cccc(OC(=O)C(*)C*)c1", "*C(*)C(*)*"),  # four
    *("[R]CC[R]", "[R1]CCO[R2]", "[Polymer]CC[Polymer]"),  # places to fill in
    *("*CC(*", "*C1CC*", "*CC)*", "*[Xx]C*"),  # no SMILES
    *("", " "),
)
BACKBONES = ("[*]CC([*]){}", "[*]CC([*])(C){}", "[*]OCC([*]){}", "[*]NC(=O)CC([*]){}")
BACKBONES += ("[*]CC([*])C(=O)O{}", "[*]CC([*])c1ccc({})cc1", "[*]OC(=O)CC([*]){}")
ENDS = ("", "O", "F", "Cl", "OC", "N(C)C", "C#N", "c1ccccc1", "C(F)(F)F", "c1ccncc1")
CONFIG = {
    "data": {
        "path": "train.csv",
        "on_invalid": "skip",
        "strings": [{"name": "polymer", "column": "SMILES"}],
    },
    "tasks": [{"name": name.lower(), "column": name, "head": [8]} for name in TARGETS],
    "split": {"strategy": "random"},
    "encoder": {"source": "encoder", "lora": {"r": 4}},
    "cache": {"path": "cache.zarr"},
    "model": {
        **{"adapter_hidden": 16, "adapter_width": 16, "fusion_width": 16, "num_layers": 1},
        **{"num_heads": 2, "feedforward": 24},
    },
    "train": {"epochs": 2, "batch_rows": 64, "cpu_threads": 1, "baselines": False},
    "run": {"dir": "run", "name": "polymers"},
}
BAD_TO_PREDICT = {2: "[R]CC[R]", 5: "", 9: "*CC(*"}


def made_strings(count: int) -> list[str]:
    """Return distinct repeat units: side chains of all lengths and ends on a few backbones."""
    made = (
        backbone.format("C" * length + end)
        for length in range(1, 20)
        for end in ENDS
        for backbone in BACKBONES
    )
    return [string for string, _ in zip(made, range(count), strict=False)]


def table(strings: list[str], seed: int = 0) -> pl.DataFrame:
    """Return the table: each row has one string and one label, in 18 of them unusable strings."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(sorted(set(strings)))[:NUM_STRINGS].tolist()
    smiles = [*chosen, *random.choice(chosen, NUM_ROWS - len(chosen)).tolist()]
    places = random.choice(NUM_ROWS, len(UNUSABLE), replace=False)
    for place, string in zip(places, UNUSABLE, strict=True):
        smiles[place] = string
    counts = np.round(np.array(list(TARGETS.values())) * NUM_ROWS).astype(int)
    labelled = random.permutation(np.repeat(list(TARGETS), counts)).tolist()
    values = [len(string) + random.normal() for string in smiles]
    columns = {
        name: [v if mine == name else None for v, mine in zip(values, labelled, strict=True)]
        for name in TARGETS
    }
    return pl.DataFrame({"id": range(NUM_ROWS), "SMILES": smiles, **columns})


def to_predict(strings: list[str]) -> pl.DataFrame:
    """Return rows to predict, some of them bad."""
    smiles = [BAD_TO_PREDICT.get(row, strings[row]) for row in range(12)]
    return pl.DataFrame({"id": range(12), "SMILES": smiles})


def mistake(strings: list[str]) -> Mistake:
    """Return the table as the last of the mistakes."""

    def bring(folder: Path, clean: pl.DataFrame) -> None:
        table(strings).write_csv(folder / "train.csv")
        to_predict(strings).write_csv(folder / "test.csv")
        (folder / "polymers.yaml").write_text(yaml.safe_dump(CONFIG))

    config, run = ("--config", "polymers.yaml"), ("--run", "run")
    return Mistake(
        "a table as that of Open Polymer 2025: five sparse targets, 18 unusable strings",
        "jihwanksa/open_polymer data/raw/train.csv",
        said(
            "18 left out by data.on_invalid",
            "16 strings refused in all",
            "labels in train / validation / test: density",
            "3 rows of 12",
            differences=lambda folder, finished: _wrong(folder, strings),
        ),
        bring,
        (
            ("build_cache", *config),
            ("train", *config),
            ("evaluate_model", *run),
            ("predict", *run, "--input", "test.csv", "--output", "out.csv"),
        ),
        brings=("encoder",),
        printed=True,
    )


def _wrong(folder: Path, strings: list[str]) -> list[str]:
    """Return what is not as it should be in the cache, the metrics and the predictions."""
    lines = []
    kept = table(strings).filter(~pl.col("SMILES").is_in(UNUSABLE))
    rows = zarr.open_group(folder / "cache.zarr", mode="r")["rows"]
    labels = kept.select(list(TARGETS)).cast(pl.Float32).fill_null(math.nan).to_numpy()
    if not np.array_equal(rows["targets"][:], labels, equal_nan=True):
        lines.append("the labels of the rows that are left are not the table's")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    lines += [f"no metrics of {name}" for name in TARGETS if name not in str(metrics)]
    out = pl.read_csv(folder / "out.csv")
    for name in TARGETS:
        for row, value in enumerate(out[f"predicted_{name}"]):
            if (value is None or not math.isfinite(value)) != (row in BAD_TO_PREDICT):
                lines.append(f"predicted_{name}, row {row}: {value}")
    lines += [f"row {row} has no reason" for row in BAD_TO_PREDICT if not out["reason"][row]]
    return lines
