"""Slips in a config, and settings that a table cannot meet."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import yaml

from benchmarks.injection.scene import CONFIG
from benchmarks.mistakes.kinds import (
    TO_BUILD,
    Bring,
    Command,
    Differences,
    Expected,
    Mistake,
    build,
    refused,
    said,
)

WITH_TABLE = (*TO_BUILD, "table.parquet")
WITH_CACHE = (*WITH_TABLE, "cache.zarr")


def _config(lines: str) -> Bring:
    """Return what writes a config that extends the clean one by these lines."""
    return lambda folder, clean: (folder / "mine.yaml").write_text(f"extends: {CONFIG}\n{lines}\n")


def _train(*words: str) -> tuple[Command, ...]:
    return (("train", "--config", "mine.yaml", "--set", "run.dir=mine", *words),)


def _train_with(*settings: str) -> tuple[Command, ...]:
    words = (word for each in ("run.dir=mine", *settings) for word in ("--set", each))
    return (("train", "--config", CONFIG, *words),)


def _resolved(check: Callable[[dict[str, object]], object], wanted: object) -> Differences:
    """Return what compares a value of the config that the run resolved."""

    def differences(folder: Path, finished: Path) -> list[str]:
        (file,) = (folder / "mine").glob("*_config.yaml")
        found = check(yaml.safe_load(file.read_text()))
        return [] if found == wanted else [f"{found!r} instead of {wanted!r}"]

    return differences


def _learned(folder: Path, finished: Path) -> list[str]:
    """Return whether a training had a loss, and another one in its last epoch."""
    found = json.loads((folder / "mine" / "training_log.json").read_text())
    losses = [record["train_loss"] for record in found]
    return [] if losses[0] > 0 and losses[0] != losses[-1] else [f"losses {losses}"]


def _slip(name: str, source: str, lines: str, expected: Expected) -> Mistake:
    """Return a slip in a config that a build reads."""
    return Mistake(
        name, source, expected, _config(lines), build(config="mine.yaml"), brings=WITH_TABLE
    )


def _elsewhere(folder: Path, clean: pl.DataFrame) -> None:
    (folder / "project").mkdir()
    for name in ("columns.yaml", CONFIG, "table.parquet"):
        (folder / name).rename(folder / "project" / name)


MISTAKES = (
    _slip(
        "a misspelled key",
        "haddocking/haddock3#83",
        "train: {epoch: 3}",
        refused("train.epoch", "unknown key", "did you mean 'epochs'"),
    ),
    Mistake(
        "1e-4, which YAML 1.1 takes for text",
        "h2oai/h2o-llmstudio#699",
        said("epoch", differences=_resolved(lambda config: config["optim"]["lr"], 1e-4)),
        _config("optim: {lr: 1e-4}\ntrain: {epochs: 1}"),
        _train(),
        brings=WITH_CACHE,
    ),
    _slip(
        "no, which YAML 1.1 takes for false",
        "ggml-org/llama.cpp#12114",
        "data: {categories: [{column: kind, values: [yes, no]}]}",
        refused("data.categories.0.values.1", "quote"),
    ),
    _slip(
        "1:30, which YAML 1.1 takes for 90",
        "yaml/pyyaml#395",
        "train: {epochs: 1:30}",
        refused("train.epochs", "integer", "'1:30'"),
    ),
    _slip(
        "a tab before a key",
        "moraes/config#1",
        "train:\n\tepochs: 3",
        refused("mine.yaml", "line 3", "tab"),
    ),
    _slip(
        "backslashes of a Windows path",
        "elastic/beats#1495",
        'data: {path: "C:\\my data\\table.csv"}',
        refused("mine.yaml", "line 2", "backslash", "'...'"),
    ),
    Mistake(
        "a config that is used from another folder",
        "hydra-ecosystem/hydra#922",
        refused("no table table.parquet", "seen from the folder"),
        _elsewhere,
        build(config=f"project/{CONFIG}"),
        brings=WITH_TABLE,
    ),
    _slip(
        "a learning rate of 0",
        "deepspeedai/DeepSpeed#5779",
        "optim: {lr: 0}",
        refused("optim.lr", "greater than"),
    ),
    _slip(
        "more folds than groups",
        "scikit-learn/scikit-learn#33085",
        "split: {folds: 30}",
        refused("6 groups", "split.folds = 30"),
    ),
    Mistake(
        "classes learned as numbers, for want of a word on their kind",
        "ersilia-os/zaira-chem#39",
        said("target column 'good' has only 0 and 1: is it of kind: binary?"),
        commands=build("--set", "tasks.1.kind=regression", "--set", "split.stratify_by=null"),
        brings=WITH_TABLE,
    ),
    Mistake(
        "a batch that is larger than the table",
        "dreamquark-ai/tabnet#537",
        said("epoch", differences=_learned),
        commands=_train_with("train.batch_rows=4096", "train.epochs=2"),
        brings=WITH_CACHE,
    ),
    Mistake(
        "one row in the last batch",
        "pytorch/pytorch#7716",
        said("epoch", differences=_learned),
        commands=_train_with("train.batch_rows=33", "train.epochs=2"),
        brings=WITH_CACHE,
    ),
)
