"""A trained run read back: predictions from raw units equal those from the cache, new strings go
through the trained encoder, damage is refused.
"""

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from embedcache.cache.reader import Cache, open_cache
from embedcache.encoder.standin import write_standin
from embedcache.errors import ConfigError, EncoderError, RunError
from fusionnet import RewardModel
from fusionnet.assemble import build_model, make_sources
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.experiment import load_experiment
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.recipe import Recipe
from fusionnet.rows.tensors import load_rows
from fusionnet.runfolder.listing import LIST
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.trained import encoder, vectors
from fusionnet.trained.encoder import trained_encoder
from fusionnet.trained.run import load_run
from fusionnet.trained.vectors import vectors_of_all_strings
from fusionnet.workflow.building import build_experiment

NEW = ["[*]CC([*])C(N)=O", "[*]OCC[*]"]
RunMaker = Callable[..., Path]
FLOATS = pl.selectors.float()  # predictions, without what is said of them


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


@pytest.fixture(scope="module")
def wider_cache(
    tiny_experiment: Path, frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """A cache of the same table in which some rows have strings that the runs have never seen."""
    folder = tmp_path_factory.mktemp("wider")
    place = pl.int_range(pl.len())
    strings = (
        pl.when(place % 5 == 0)
        .then(pl.lit(NEW[0]))
        .when(place % 5 == 1)
        .then(pl.lit(NEW[1]))
        .otherwise("smiles")
    )
    frame.with_columns(smiles=strings).write_parquet(folder / "table.parquet")
    experiment = load_experiment(
        tiny_experiment,
        [f"data.path={folder / 'table.parquet'}", f"cache.path={folder / 'cache.zarr'}"],
    )
    build_experiment(experiment)
    return open_cache(experiment.cache.path)


@pytest.fixture
def copy(made_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_run, tmp_path / "copy")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the run's YAML file as a user would."""
    file = folder / "tiny_config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))


def test_predictions_from_raw_units_equal_those_from_the_cache(
    made_run: Path, tiny_experiment: Path, frame: pl.DataFrame
) -> None:
    trained, cache = load_run(made_run), open_cache(tiny_experiment.parent / "cache.zarr")
    rows = load_rows(cache, "test")
    tables = [
        vectors_of_all_strings(trained, spec.name, cache.strings(spec.name).text)
        for spec in cache.layout.strings
    ]
    wanted = to_units(
        forward_rows(trained.model, tables, rows, 1000), trained.tasks, trained.scaling
    ).numpy()
    model = RewardModel(trained)
    found = model.predict(frame[rows.row.tolist()]).select(FLOATS).to_numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.std(0).min() > 0.01
    backwards = model.predict(frame[rows.row.tolist()[::-1]].lazy()).select(FLOATS).to_numpy()
    np.testing.assert_allclose(backwards[::-1], found, rtol=1e-4, atol=1e-5)


def test_a_model_standardises_by_what_the_cache_holds_also_when_read_back(
    made_run: Path, tiny_experiment: Path
) -> None:
    trained, scaling = load_run(made_run), open_cache(tiny_experiment.parent / "cache.zarr").scaling
    assert set(trained.model.network.adapters) == set(scaling.vectors)
    for name, adapter in trained.model.network.adapters.items():
        torch.testing.assert_close(
            adapter.mean, torch.tensor(scaling.vectors[name].mean), rtol=0, atol=0
        )
        torch.testing.assert_close(1 / adapter.inverse_std, torch.tensor(scaling.vectors[name].std))
        assert adapter.mean.abs().max() > 0


@pytest.mark.dist
def test_what_training_wrote_is_read_back_to_its_own_numbers(
    tiny_run: Path, made_run: Path, tiny_experiment: Path
) -> None:
    trained, made = (load_checkpoint(folder / "tiny_best.pt") for folder in (tiny_run, made_run))
    # so that the other tests, which use the made run, speak of real ones
    assert trained.keys() == made.keys()
    assert trained["model_state_dict"].keys() == made["model_state_dict"].keys()
    assert trained["records"][0].keys() == made["records"][0].keys()
    read = load_run(tiny_run)
    found = evaluate_run(
        read, open_cache(tiny_experiment.parent / "cache.zarr"), "validation", progress=False
    ).metrics
    for task in read.tasks:
        for metric, value in found[task.column].items():
            recorded = read.record[f"{task.name}_{metric}"]
            assert (value is None) == (recorded is None), f"{task.name} {metric}"
            assert value is None or value == pytest.approx(recorded, rel=1e-5), (
                f"{task.name} {metric}"
            )


@pytest.mark.parametrize("mode", ["per_step", "frozen"])
def test_a_new_string_gets_the_vector_that_a_cache_with_it_would_give(
    mode: str, make_run: RunMaker, wider_cache: Cache, tmp_path: Path
) -> None:
    trained = load_run(make_run(tmp_path / "run", encoder={"mode": mode}))
    recipe = Recipe(
        trained.tasks,
        trained.recipe.encoders,
        trained.recipe.model,
        trained.recipe.loss,
        trained.recipe.train,
    )
    model = build_model(recipe, wider_cache.layout, trained.scaling)
    model.load_state(trained.encoder_state)
    texts = wider_cache.strings("polymer").text
    wanted = make_sources(model, recipe, wider_cache)[0].vectors_of_all_strings()
    assert sum(text in trained.strings["polymer"] for text in texts) >= 5
    assert set(NEW) <= set(texts)
    found = vectors_of_all_strings(trained, "polymer", texts)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # no two strings share a vector
    assert (found.unsqueeze(0) - found.unsqueeze(1)).abs().amax(2).fill_diagonal_(1).min() > 1e-3


def test_lora_is_part_of_new_vectors(made_run: Path, make_run: RunMaker, tmp_path: Path) -> None:
    frozen = load_run(make_run(tmp_path / "frozen", encoder={"mode": "frozen"}))
    assert (
        vectors_of_all_strings(load_run(made_run), "polymer", NEW)
        - vectors_of_all_strings(frozen, "polymer", NEW)
    ).abs().max() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_known_string_encoded_anew_gets_its_known_vector(
    precision: str, make_run: RunMaker, tmp_path: Path
) -> None:
    trained = load_run(make_run(tmp_path / "run", train={"precision": precision}))
    texts = list(trained.strings["polymer"])
    forgetful = replace(
        trained,
        strings={**trained.strings, "polymer": {}},
        vectors={**trained.vectors, "polymer": trained.vectors["polymer"][:0]},
    )
    torch.testing.assert_close(
        vectors_of_all_strings(forgetful, "polymer", texts),
        vectors_of_all_strings(trained, "polymer", texts),
        rtol=1e-5,
        atol=1e-5,
    )


def test_new_strings_are_encoded_once(made_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    plain = encoder.encode_all
    monkeypatch.setattr(
        encoder,
        "encode_all",
        lambda model, tokens, **given: (
            encoded.append(tokens.num_strings) or plain(model, tokens, **given)
        ),
    )
    loaded: list[str] = []
    load = encoder.load_encoder
    monkeypatch.setattr(
        encoder, "load_encoder", lambda config: loaded.append(config.source) or load(config)
    )
    trained = load_run(made_run)
    known = next(iter(trained.strings["polymer"]))
    first = vectors_of_all_strings(trained, "polymer", [NEW[0], known, NEW[0]])
    again = vectors_of_all_strings(trained, "polymer", [known, NEW[0], NEW[1]])
    beside = vectors_of_all_strings(trained, "partner", NEW)  # another column of the same encoder
    assert encoded == [1, 1]
    torch.testing.assert_close(beside, again[1:], rtol=0, atol=0)
    assert len(loaded) == 1
    torch.testing.assert_close(first[[1, 0]], again[:2], rtol=0, atol=0)
    torch.testing.assert_close(first[0], first[2], rtol=0, atol=0)
    monkeypatch.setattr(vectors, "MOST_REMEMBERED", 1)
    vectors_of_all_strings(trained, "polymer", NEW)
    assert list(trained.memory.vectors["polymer"]) == NEW[1:]


def test_known_strings_need_no_encoder_and_new_ones_say_where_it_should_be(
    copy: Path, frame: pl.DataFrame, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    edit(copy, lambda config: config["encoder"].update(source=str(tmp_path / "gone")))
    assert RewardModel.load(copy).predict(frame.head(5)).height == 5
    with pytest.raises(
        EncoderError,
        match=(
            r"(?s)1 'polymer' strings are new.*\[\*\]OCC\[\*\].*set encoder.source in"
            r" .*tiny_config.yaml"
        ),
    ) as error:
        RewardModel.load(copy).predict(frame.head(5).with_columns(smiles=pl.lit(NEW[1])))
    assert str(tmp_path / "gone") in str(error.value)
    shutil.copytree(tiny_encoder_folder, tmp_path / "moved")
    edit(copy, lambda config: config["encoder"].update(source=str(tmp_path / "moved")))
    assert (
        RewardModel.load(copy).predict(frame.head(5).with_columns(smiles=pl.lit(NEW[1]))).height
        == 5
    )


def test_another_encoder_is_refused(copy: Path, tmp_path: Path) -> None:
    write_standin(tmp_path / "other", "tiny", seed=1)
    edit(copy, lambda config: config["encoder"].update(source=str(tmp_path / "other")))
    with pytest.raises(EncoderError, match=r"is not the encoder that run .* was trained with"):
        trained_encoder(load_run(copy), "polymer")


def test_the_reward_and_the_goals_may_be_edited_and_the_model_may_not(
    copy: Path, made_run: Path, frame: pl.DataFrame
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["fusion_width"] = 8
        config["tasks"][0].update(head=[3], goals={"mae": 0.5})
        config["reward"] = {"terms": [{"task": "ef", "weight": 2.0}]}
        config["run"]["note"] = "made up"

    edit(copy, change)
    trained = load_run(copy)
    assert (trained.tasks[0].goals, trained.reward.terms[0].weight, trained.note) == (
        {"mae": 0.5},
        2.0,
        "made up",
    )
    assert RewardModel(trained).predict(frame).equals(RewardModel.load(made_run).predict(frame))


def test_loading_leaves_the_random_state_alone(made_run: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    trained_encoder(load_run(made_run), "polymer")
    torch.testing.assert_close(torch.rand(4), wanted, rtol=0, atol=0)


def test_precision_is_the_callers_choice(made_run: Path, frame: pl.DataFrame) -> None:
    exact, rounded = (
        RewardModel.load(made_run, precision=precision).predict(frame).select(FLOATS).to_numpy()
        for precision in ("fp32", "bf16")
    )
    spread = exact.std(0)
    assert (np.abs(exact - rounded).max(0) < 0.2 * spread).all()
    assert (np.abs(exact - rounded).max(0) > 1e-4 * spread).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_a_flipped_bit_is_refused(share: float, copy: Path) -> None:
    file = copy / "tiny_best.pt"
    content = bytearray(file.read_bytes())
    # a bit of one of its records: what lies between them is padding
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    entry = entries[int(share * len(entries))]
    name, extra = struct.unpack("<HH", content[entry.header_offset + 26 : entry.header_offset + 30])
    content[entry.header_offset + 30 + name + extra + int(share * entry.file_size)] ^= 4
    file.write_bytes(bytes(content))
    with pytest.raises(RunError, match="not a readable checkpoint: its bytes changed"):
        load_run(copy)


@pytest.mark.slow
def test_a_flipped_bit_in_the_archives_own_bytes_is_refused_or_harmless(copy: Path) -> None:
    file = copy / "tiny_best.pt"
    content, whole = file.read_bytes(), load_run(copy)
    refused = 0
    # the directory of the archive; some of its bytes (dates, padding) mean nothing
    for place in range(len(content) - 1, len(content) - 4000, -67):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = load_run(copy)
        except RunError:
            refused += 1
            continue
        assert all(
            torch.equal(found.model.state_dict()[name], value)
            for name, value in whole.model.state_dict().items()
        )
        assert found.config == whole.config
    assert refused > 20


@pytest.mark.parametrize(("key", "value"), [("transform", "log10"), ("kind", "binary")])
def test_a_task_of_another_kind_or_transform_than_its_statistics_is_refused(
    copy: Path, key: str, value: str
) -> None:
    content = load_checkpoint(copy / "tiny_best.pt")
    content["config"]["tasks"][2] |= {key: value, "loss": None}
    save_checkpoint(copy / "tiny_best.pt", content)
    with pytest.raises(RunError, match="not the checkpoint of a whole run: its config has tasks"):
        load_run(copy)


def test_cut_foreign_and_partial_checkpoints_are_refused(copy: Path) -> None:
    whole = load_checkpoint(copy / "tiny_best.pt")
    state = whole["model_state_dict"]
    name = "network.projection.weight"
    worse = [{**whole["records"][1], "val_loss": 99.0}]
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {key: value for key, value in whole.items() if key not in ("vectors", "layout")},
            "lacks layout, vectors",
        ),
        (
            {
                **whole,
                "model_state_dict": {key: value for key, value in state.items() if key != name},
            },
            f"{name} is missing",
        ),
        (
            {**whole, "model_state_dict": {**state, name: state[name][:3]}},
            rf"{name} is \[3, .*\], expected \[32, ",
        ),
        (
            {**whole, "model_state_dict": {**state, "network.extra": state[name]}},
            "network.extra is not part of this model",
        ),
        ({**whole, "layout": "{}"}, "does not say what its columns are"),
        ({**whole, "records": whole["records"][:1] + worse}, "which is not its best one"),
        ({**whole, "epoch": 0, "step": 3, "records": []}, "which is not its best one"),
    ]
    for content, message in cases:
        save_checkpoint(copy / "tiny_best.pt", content)
        with pytest.raises(RunError, match=message):
            load_run(copy)
    lora = next(key for key in state if "lora_B" in key)
    save_checkpoint(
        copy / "tiny_best.pt",
        {**whole, "model_state_dict": {key: value for key, value in state.items() if key != lora}},
    )
    with pytest.raises(RunError, match=r"lora_B.* is missing"):
        vectors_of_all_strings(load_run(copy), "polymer", NEW)
    (copy / "tiny_best.pt").write_bytes((copy / "tiny_last.pt").read_bytes()[:2000])
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_run(copy)


class Bomb:
    """Makes a file when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_loading_runs_no_code(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    torch.save({**load_checkpoint(copy / "tiny_best.pt"), "bomb": Bomb()}, copy / "tiny_best.pt")
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_run(copy)
    (copy / "tiny_config.yaml").write_text(
        "a: !!python/object/apply:os.system ['touch exploded']\n"
    )
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_run(copy)
    assert not (copy / "exploded").exists()


def test_folders_that_are_not_runs(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path / "none")
    (copy / "other_config.yaml").write_text("{}")  # a file that somebody added
    assert load_run(copy).name == "tiny"
    (copy / "tiny_best.pt").unlink()
    with pytest.raises(RunError, match="no checkpoint"):
        load_run(copy)
    assert load_run(copy, "final").epoch == 2
    (copy / "tiny_config.yaml").write_text("- 1")
    with pytest.raises(RunError, match="must hold a mapping"):
        load_run(copy, "final")
    (copy / "tiny_config.yaml").unlink()
    with pytest.raises(RunError, match="lacks tiny_config"):
        load_run(copy, "final")
    (copy / LIST).unlink()
    with pytest.raises(RunError, match="not a run folder: it has no run_files"):
        load_run(copy, "final")


def test_a_checkpoint_that_was_copied_from_another_run_is_refused(
    copy: Path, make_run: RunMaker, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", seed=8)
    for moment in ("best", "final", "last"):
        shutil.copy(other / f"tiny_{moment}.pt", copy)
        with pytest.raises(RunError, match=f"tiny_{moment}.pt is a checkpoint of another run"):
            RewardModel.load(copy, moment=moment)
    # a copy of the whole folder is the same run
    assert load_run(shutil.copytree(other, tmp_path / "whole")).run_id == load_run(other).run_id


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "cuda:-1", "cpu:x", "", "gpu"])
def test_a_device_that_does_not_compute_is_refused(made_run: Path, device: str) -> None:
    with pytest.raises(RunError, match=rf"device '{device}' cannot be used on this machine"):
        load_run(made_run, device=device)


WITHOUT_DEEPSPEED = """
import sys
sys.modules["deepspeed"] = None
import polars as pl
from fusionnet import RewardModel
print(RewardModel.load(sys.argv[1]).predict(pl.read_parquet(sys.argv[2])).height)
import fusionnet.evaluation.evaluate, fusionnet.evaluation.report, jobs.predict, jobs.evaluate_model
"""


@pytest.mark.dist
def test_a_run_loads_where_deepspeed_is_not_installed(
    made_run: Path, tiny_experiment: Path
) -> None:
    command = [
        sys.executable,
        "-c",
        WITHOUT_DEEPSPEED,
        str(made_run),
        str(tiny_experiment.parent / "table.parquet"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "420"), done.stderr
