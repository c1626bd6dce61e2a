"""The setting of a benchmark: a table, an encoder and a cache in a folder, and their experiment.

Everything goes the way that training goes: `load_experiment`, `build_experiment`, `make_trainer`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
import yaml
from transformers import DebertaV2Config, DebertaV2Model

from embedcache.encoder.standin import write_standin
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.workflow.building import build_experiment
from jobs.cohort.generate import cohort_frames

CONFIGS = Path(__file__).parents[2] / "configs"
PADDED = 128  # tokens, as the specification pads
# prefix mode adapts this layer and those above it
PREFIX_LAYERS = {"polybert": 9, "middle": 3, "tiny": 1}
MIDDLE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 256,
}
FRAGMENTS = (
    *("C", "O", "N", "S", "C(C)", "C(F)", "C(=O)", "C(O)"),
    *("c1ccc(cc1)", "C(C)(C)", "[Si](C)(C)", "C(Cl)"),
)
DROPOUT_OFF = (
    "model.dropout=0.0",
    "model.feature_noise={}",
    "encoder.lora.dropout=0.0",
    *(f"tasks.{task}.head_dropout=0.0" for task in range(7)),
)
SMALL_NETWORK = (
    "model.adapter_hidden=32",
    "model.adapter_width=32",
    "model.fusion_width=64",
    "model.num_layers=1",
    "model.feedforward=128",
)


def make_setting(
    folder: Path,
    size: str,
    rows_per_patient: int,
    strings: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> None:
    """Write cohort, stand-in encoder and cache into a folder.

    `strings` take the place of the cohort's 21, each row the next one in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cohort = pl.concat(list(cohort_frames(60, rows_per_patient, 0, True)))
    if strings:
        assert len(strings) <= len(cohort)
        cohort = cohort.with_columns(
            polymer_SMILES=pl.Series(strings).gather(np.arange(len(cohort)) % len(strings))
        )
    cohort.write_parquet(folder / "cohort.parquet")
    write_encoder(folder / "encoder", size)
    (folder / "setting.yaml").write_text(yaml.safe_dump({"prefix_layer": PREFIX_LAYERS[size]}))
    made = experiment_of(folder, "prefix", "fp32", overrides)
    build_experiment(made)


def write_encoder(folder: Path, size: str) -> None:
    """Write a stand-in; `middle` is the tiny one's folder with a model of a size between."""
    write_standin(folder, "polybert" if size == "polybert" else "tiny")
    if size == "middle":
        torch.manual_seed(0)
        config = DebertaV2Config.from_pretrained(folder)
        DebertaV2Model(DebertaV2Config(**{**config.to_dict(), **MIDDLE})).save_pretrained(folder)


def made_strings(
    num: int, seed: int = 0, fragments: tuple[int, int] = (6, 20), most_characters: int = PADDED - 4
) -> list[str]:
    """Return distinct PSMILES: chains of common fragments between two endpoints.

    `fragments` are the least and the largest number of them; a token is a character or more.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < num:
        length = int(generator.integers(fragments[0], fragments[1] + 1))
        string = "[*]" + "".join(generator.choice(FRAGMENTS, length)) + "[*]"
        if len(string) <= most_characters:
            found[string] = None
    return list(found)


def experiment_of(
    folder: Path, encoding: str, precision: str, overrides: Sequence[str] = ()
) -> Experiment:
    """Return Stage 1's experiment on a setting's files."""
    layer = prefix_layer(folder) if encoding == "prefix" else 0
    chosen = {
        "data.path": folder / "cohort.parquet",
        "encoder.source": folder / "encoder",
        "cache.path": folder / "cache.zarr",
        "encoder.mode": encoding,
        "encoder.lora.first_layer": layer,
        "train.precision": precision,
    }
    settings = [f"{key}={value}" for key, value in chosen.items()]
    return load_experiment(CONFIGS / "stage1.yaml", [*settings, *overrides])


def prefix_layer(folder: Path) -> int:
    """Return the first layer that prefix mode adapts in a setting."""
    return yaml.safe_load((folder / "setting.yaml").read_text())["prefix_layer"]
