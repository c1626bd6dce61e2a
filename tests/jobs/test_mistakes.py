"""Ordinary mistakes, through the commands: one message that names what was given, exit code 2, no
traceback, and nothing half-written.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from fusionnet.commands import (
    build_cache,
    evaluate_model,
    inspect_cache,
    make_encoder,
    predict,
    train,
    verify_cache,
)

Call = Callable[..., tuple[int, str, str]]
MAINS = {
    "build": build_cache.main,
    "train": train.main,
    "evaluate": evaluate_model.main,
    "predict": predict.main,
    "inspect": inspect_cache.main,
    "verify": verify_cache.main,
    "make-encoder": make_encoder.main,
}
T5 = {"model_type": "t5", "d_model": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 269}
LONG = "x" * 300
WHEEL = ("make-encoder", "--from", "rxnmapper", "--wheel", "tiny.yaml")


@pytest.fixture(scope="module")
def project(
    tiny_experiment: Path, tiny_encoder_folder: Path, made_run: Path, tmp_path_factory: Any
) -> Path:
    """A folder with a table, a config, a cache, an encoder and a run, and with what is none."""
    place = tmp_path_factory.mktemp("mistakes")
    shutil.copyfile(tiny_experiment.with_name("table.parquet"), place / "table.parquet")
    shutil.copytree(tiny_experiment.with_name("cache.zarr"), place / "cache.zarr")
    shutil.copytree(tiny_encoder_folder, place / "encoder")
    shutil.copytree(made_run, place / "run")
    config = yaml.safe_load(tiny_experiment.read_text())
    config["data"]["path"], config["cache"]["path"] = "table.parquet", "cache.zarr"
    config["encoder"]["source"], config["run"]["dir"] = "encoder", "run"
    (place / "tiny.yaml").write_text(yaml.safe_dump(config))
    (place / "empty.yaml").write_text("")
    (place / "list.yaml").write_text("- a\n- b\n")
    (place / "latin1.yaml").write_bytes("run: {note: größe}\n".encode("latin-1"))
    (place / "self.yaml").write_text("extends: self.yaml\n")
    (place / "tab.yaml").write_text("data:\n\tpath: x\n")
    (place / "notes").mkdir()
    (place / "notes" / "notes.txt").write_text("mine")
    (place / "empty").mkdir()
    (place / "linked").symlink_to("run")
    (place / "dangling").symlink_to("nowhere")
    (place / "table.txt").write_text("smiles,x\n")
    (place / "empty.csv").write_text("")
    (place / "head.csv").write_text("smiles,other,kind,x0,x1,x2\n")
    (place / "junk.parquet").write_text("no parquet")
    shutil.copytree(tiny_encoder_folder, place / "t5")
    (place / "t5" / "config.json").write_text(json.dumps(T5))
    rows = pl.read_parquet(place / "table.parquet")
    nested = rows.with_columns(refs=pl.lit(["a"], pl.List(pl.String)), blob=pl.lit(b"\x00"))
    nested.write_parquet(place / "nested.parquet")
    rows.with_columns(predicted_outcome=1.0).write_parquet(place / "predicted.parquet")
    return place


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


BUILD, TRAIN = ("build", "--config", "tiny.yaml"), ("train", "--config", "tiny.yaml")
EVALUATE, PREDICT = ("evaluate", "--run", "run"), ("predict", "--run", "run")
ELSEWHERE = settings("cache.path=other.zarr")
ROWS = ("--input", "table.parquet", "--output")
# a command line, and what must be said
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    # configs
    (("build", "--config", "nowhere.yaml"), "there is no config file nowhere.yaml"),
    (("build", "--config", "empty.yaml"), "empty.yaml must hold a mapping with the keys data,"),
    (("build", "--config", "list.yaml"), "list.yaml must hold a mapping with the keys data,"),
    (("build", "--config", "latin1.yaml"), "latin1.yaml is not UTF-8: byte 0xf6 in line 1"),
    (("build", "--config", "self.yaml"), "extend each other in a circle (self.yaml extends self"),
    (("build", "--config", "tab.yaml"), "tab.yaml is not valid YAML: "),
    (("build", "--config", "notes"), "notes is a folder, not a config file"),
    (("build", "--config", "table.parquet"), "table.parquet is not UTF-8"),
    ((*BUILD, "--set", "nothing"), "--set nothing: expected KEY=VALUE"),
    ((*BUILD, *settings("cache.path=a\0b")), "unacceptable character #x0000"),
    ((*BUILD, *settings('cache.path="a\\0b"')), "has a NUL character"),
    ((*BUILD, *settings("data.strings.9.column=x")), "its items are 0 to 1"),
    # tables
    ((*BUILD, *settings("data.path=nowhere.csv")), "no table nowhere.csv, seen from the folder"),
    (
        (*BUILD, *settings("data.path=notes")),
        "no Parquet file in the folder notes, which data.path",
    ),
    ((*BUILD, *ELSEWHERE, *settings("data.path=junk.parquet")), "junk.parquet cannot be read"),
    ((*BUILD, *ELSEWHERE, *settings("data.path=empty.csv")), "empty.csv cannot be read: empty CSV"),
    (
        (*BUILD, *ELSEWHERE, *settings("data.path=tiny.yaml")),
        "tiny.yaml: expected a file that ends",
    ),
    # encoders
    ((*BUILD, *ELSEWHERE, *settings("encoder.source=t5")), "it is encoder and decoder"),
    ((*BUILD, *ELSEWHERE, *settings("encoder.source=notes")), "notes has no config.json"),
    (
        (*BUILD, *ELSEWHERE, *settings("encoder.source=tiny.yaml")),
        "tiny.yaml is a file, not a model",
    ),
    (
        (*BUILD, *ELSEWHERE, *settings("encoder.source=no/such/place")),
        "no encoder folder no/such/pl",
    ),
    # caches
    ((*BUILD, *settings("cache.path=")), "cache.path: Input should be text"),
    ((*BUILD, *settings("cache.path=notes")), "notes exists and is not a cache of this project"),
    ((*BUILD, "--overwrite", *settings("cache.path=notes")), "notes exists and is not a cache of"),
    ((*BUILD, *settings("cache.path=tiny.yaml")), "tiny.yaml exists and is not a cache of this"),
    ((*BUILD, *settings("cache.path=tiny.yaml/c")), "a file is where a folder is to be: choose"),
    ((*BUILD, *settings(f"cache.path={LONG}")), "cache.path: has a name of more than 200 bytes"),
    ((*BUILD, *settings("data.numeric=[]")), "was built from something else"),
    (
        (*BUILD, "--append", "--overwrite"),
        "argument --overwrite: not allowed with argument --append",
    ),
    (("inspect", "nowhere.zarr"), "there is no cache at nowhere.zarr; build one with"),
    (("inspect", "notes"), "notes is no cache; build one with"),
    (("verify", "tiny.yaml"), "tiny.yaml is a file, and a cache is a folder"),
    # trainings
    (
        TRAIN,
        "run holds an earlier run, 'tiny'; continue it with --resume, delete it with --overwri",
    ),
    (
        (*TRAIN, *settings("run.dir=linked")),
        "linked holds an earlier run, 'tiny'; continue it with",
    ),
    ((*TRAIN, *settings("run.dir=dangling")), "dangling is a link to nowhere, which is not there"),
    ((*TRAIN, *settings("run.dir=notes")), "notes holds no run, but notes.txt"),
    ((*TRAIN, "--overwrite", *settings("run.dir=notes")), "holds no run, but notes.txt"),
    ((*TRAIN, "--overwrite", *settings("run.dir=.")), "nothing was touched: choose another folder"),
    ((*TRAIN, *settings("run.dir=tiny.yaml")), "run.dir tiny.yaml is a file, not a folder"),
    ((*TRAIN, *settings("run.dir=tiny.yaml/x")), "is below tiny.yaml, which is a file"),
    ((*TRAIN, *settings("run.name=a/b")), "run.name: String should match pattern"),
    ((*TRAIN, "--resume", *settings("run.name=b")), "give --set run.name=tiny, or choose another"),
    ((*TRAIN, "--resume", "--overwrite"), "argument --overwrite: not allowed with argument --res"),
    (
        (*TRAIN, *settings("cache.path=nowhere.zarr")),
        "embedcache build --config tiny.yaml --set cache.path=nowhere.zarr",
    ),
    (
        (*TRAIN, *settings("data.group=kind", "run.dir=new")),
        "--config tiny.yaml --set data.group=kind --set run.dir=new --overwrite",
    ),
    # evaluations
    (("evaluate", "--run", "nowhere"), "nowhere is not a run folder: it has no run_files.jsonl"),
    (("evaluate", "--run", "tiny.yaml"), "tiny.yaml is not a run folder"),
    (("evaluate", "--run", LONG), "File name too long"),
    ((*EVALUATE, "--out", "tiny.yaml"), "tiny.yaml is no folder; name another folder with --out"),
    ((*EVALUATE, "--cache", "nowhere.zarr"), "there is no cache at nowhere.zarr"),
    ((*EVALUATE, "--oracle", "nowhere.parquet"), "there is no oracle file nowhere.parquet"),
    ((*EVALUATE, "--oracle", "junk.parquet"), "the oracle junk.parquet cannot be read"),
    ((*EVALUATE, "--split", "validaton"), "argument --split: invalid choice: 'validaton'"),
    (
        (*EVALUATE, "--device", "gpu"),
        "device 'gpu' cannot be used on this machine: expected cpu, cuda, cuda:1",
    ),
    # predictions
    (("predict", "--run", "no", *ROWS, "o.csv"), "no is not a run folder"),
    ((*PREDICT, "--input", "no.csv", "--output", "o.csv"), "no table no.csv, seen from the folder"),
    ((*PREDICT, "--input", "notes", "--output", "o.csv"), "in the folder notes; --input must name"),
    ((*PREDICT, "--input", "tiny.yaml", "--output", "o.csv"), "tiny.yaml: expected a file that"),
    ((*PREDICT, "--input", "junk.parquet", "--output", "o.csv"), "junk.parquet cannot be read"),
    ((*PREDICT, "--input", "nested.parquet", "--output", "o.csv"), "refs (List(String)), blob (Bi"),
    (
        (*PREDICT, "--input", "predicted.parquet", "--output", "o.csv"),
        "already has the columns pred",
    ),
    ((*PREDICT, *ROWS, "notes"), "notes ends in none of .parquet, .csv, .tsv, "),
    ((*PREDICT, *ROWS, "table.parquet"), "table.parquet is the input itself"),
    ((*PREDICT, *ROWS, "tiny.yaml/o.csv"), "tiny.yaml is no folder; give another name"),
    # encoders to write
    (("make-encoder", "--out", "notes"), "notes holds files that are not a stand-in encoder"),
    (("make-encoder", "--out", "tiny.yaml", "--size", "tiny"), "a file is where a folder is to be"),
    (("make-encoder", "--out", "e", "--from-pickle", "notes"), "notes has no config.json"),
    (("make-encoder", "--out", "e", "--from-pickle", "encoder"), "encoder has no pickled weights"),
    (("make-encoder", "--out", "e", "--from", "polybert"), "the hub is not reachable for a model"),
    ((*WHEEL, "--out", "notes"), "notes holds files already; choose another folder with --out"),
    ((*WHEEL, "--out", "e"), "tiny.yaml is not rxnmapper==0.4.3 as it was published"),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=[" ".join(words)[:90] for words, _ in MISTAKES]
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    call: Call,
    words: tuple[str, ...],
    message: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project)
    before = files_of(project)
    code, out, err = call(MAINS[words[0]], *words[1:])
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    assert files_of(project) == before


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of every file but locks, which builds leave."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.suffix != ".lock":
                found[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns)
    return found
