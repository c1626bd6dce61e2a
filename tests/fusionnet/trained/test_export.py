"""Exports work with the tools that they are for: PEFT on the plain Hugging Face model, safetensors,
AutoTokenizer; and are whole or not there.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from embedcache.cache.reader import open_cache
from embedcache.errors import RunError
from fusionnet.assemble import build_model
from fusionnet.model.forward import forward_rows
from fusionnet.rows.tensors import load_rows
from fusionnet.runfolder.listing import foreign_files
from fusionnet.trained import export
from fusionnet.trained.card import metadata, model_card
from fusionnet.trained.export import export_run
from fusionnet.trained.run import load_run


@pytest.fixture(scope="module")
def exported(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(made_run, tmp_path_factory.mktemp("exported") / "run")
    export_run(folder)
    return folder


# PEFT 0.21 asks transformers 5 by the old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_adapter_gives_the_same_vectors_in_peft(
    exported: Path, tiny_encoder_folder: Path
) -> None:
    run = load_run(exported)
    tokens = open_cache(run.config["cache"]["path"]).strings("polymer").tokens
    ids, mask = tokens.padded()
    base = AutoModel.from_pretrained(tiny_encoder_folder).eval()
    with torch.no_grad():
        plain = base(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0]
        adapted = peft.PeftModel.from_pretrained(base, exported / "adapter").eval()
        theirs = adapted(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0]
    torch.testing.assert_close(theirs, run.vectors["polymer"], rtol=1e-4, atol=1e-5)
    assert (theirs - plain).abs().max() > 0.01


def test_the_network_loads_from_safetensors(exported: Path) -> None:
    run = load_run(exported)
    weights = load_file(exported / "network.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    fresh = build_model(run.recipe, run.layout, run.scaling, live=False).eval()
    assert not torch.equal(fresh.network.projection.weight, run.model.network.projection.weight)
    fresh.load_state_dict(weights)  # strict: nothing is missing, nothing is left over
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    with safe_open(exported / "network.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "epoch": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["joint", "modality", "mlp"])
def test_every_form_of_the_network_goes_from_config_to_checkpoint_to_export_and_back(
    fusion: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", model={"fusion": fusion})
    export_run(folder)
    run = load_run(folder)
    assert run.recipe.model.fusion == fusion
    fresh = build_model(run.recipe, run.layout, run.scaling, live=False).eval()
    fresh.load_state_dict(load_file(folder / "network.safetensors"))
    rows = load_rows(open_cache(run.config["cache"]["path"]), "test")
    vectors = list(run.vectors.values())
    with torch.no_grad():
        wanted = fresh.outputs(vectors, rows.inputs)
    torch.testing.assert_close(
        forward_rows(run.model, vectors, rows, 50), wanted, rtol=1e-4, atol=1e-4
    )
    assert wanted.std(0).min() > 0.01
    groups = [
        name
        for name, _ in run.model.network.parameter_table()
        if name.startswith("numeric encoder")
    ]
    assert groups == (
        ["numeric encoder first", "numeric encoder numeric"]
        if fusion == "modality"
        else ["numeric encoder"]
    )


def test_the_tokenizer_gives_the_published_ids(exported: Path) -> None:
    assert AutoTokenizer.from_pretrained(exported / "tokenizer")("[*]CC[*]")["input_ids"] == [
        265,
        264,
        5,
        33,
        33,
        5,
        266,
    ]


def test_files_can_be_read_by_others_and_nothing_is_left_over(exported: Path) -> None:
    written = [
        exported / "network.safetensors",
        *(exported / "adapter").iterdir(),
        exported / "README.md",
    ]
    assert all(file.stat().st_mode & 0o044 for file in written)
    assert not [
        path.name for path in exported.rglob("*") if path.suffix in (".partial", ".old", ".draft")
    ]


def test_what_is_exported_is_the_runs_own_and_replaces_nothing_else(
    exported: Path, tmp_path: Path
) -> None:
    assert foreign_files(exported) == []
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"adapter/notes\.txt, which the run did not write"):
        export_run(folder)
    assert (folder / "adapter" / "notes.txt").read_text() == "mine"


def test_the_card_says_what_a_user_must_know(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for part in (
        "stand-in",
        "outcome",
        "kind | one of | a, b, c",
        "x1 |  | 0 to 100",
        "RewardModel.load",
        "420 rows",
        "`group` by `patient`",
        "epoch 2 of 2",
    ):
        assert part in card
    assert "| good | f1 | undefined |" in card
    assert "  \n" not in card
    assert "\n\n\n" not in card
    assert "| outcome | mae | 0.5 |" in card  # of the exported epoch, not of the first


def test_the_card_says_what_was_not_trained_and_what_the_note_says(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    tasks = [
        {"name": "ef", "column": "outcome", "unit": "mm"},
        {"name": "opt", "column": "good", "kind": "binary"},
        {"name": "aux", "column": "gappy"},
    ]
    run = load_run(
        make_run(tmp_path / "run", tasks=tasks, run={"note": "All of this is synthetic."})
    )
    card = model_card(
        replace(run, layout=run.layout.model_copy(update={"absent_targets": ("safety",)}))
    )
    for part in (
        "outcome [mm]",
        "Not trained, since the table has no labels for them: safety",
        "**All of this is synthetic.**",
        "Predictions of good: the probability of a positive label; above 0.",
    ):
        assert part in card


def test_the_hub_can_read_the_card(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")  # a file: nothing is asked of the hub
    assert card.data.license is None
    assert card.data.to_dict()["library_name"] == "fusionnet"
    assert card.data.base_model is None  # a folder of this machine is no hub id
    assert card.data.tags == ["tabular-regression", "tabular-classification", "lora"]
    assert card.data.metrics[:3] == ["mae", "rmse", "r2"]
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["outcome MAE"] == 0.5
    assert "good F1" not in found  # undefined
    run = load_run(exported)
    hub = run.layout.strings[0].encoder.model_copy(update={"source": "kuelumbus/polyBERT"})
    spec = run.layout.strings[0].model_copy(update={"encoder": hub})
    published = replace(run, layout=run.layout.model_copy(update={"strings": (spec,)}))
    assert metadata(published).base_model == ["kuelumbus/polyBERT"]


def test_a_frozen_run_has_no_adapter(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", encoder={"mode": "frozen"})
    export_run(folder)
    assert (folder / "network.safetensors").is_file()
    assert (folder / "tokenizer").is_dir()
    assert not list(folder.glob("adapter*"))


def test_each_encoder_has_an_adapter_of_its_own(
    make_run: Callable[..., Path], tiny_experiment: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    # Two configs of one folder are two encoders with weights of their own; the cache's vectors are
    # those of either.
    own = {"source": str(tiny_encoder_folder), "pooling": "cls", "lora": {"r": 4}}
    strings = [
        {"name": "polymer", "column": "smiles"},
        {"name": "partner", "column": "other", "encoder": own},
    ]
    data = {"path": str(tiny_experiment.parent / "table.parquet"), "strings": strings}
    folder = make_run(tmp_path / "run", data=data)
    export_run(folder)
    shapes = {
        name: next(
            iter(load_file(folder / f"adapter_{name}" / "adapter_model.safetensors").values())
        ).shape
        for name in ("polymer", "partner")
    }
    assert {min(shape) for shape in shapes.values()} == {16, 4}
    assert {path.name for path in folder.glob("tokenizer*")} == {
        "tokenizer_polymer",
        "tokenizer_partner",
    }


def test_a_failed_export_leaves_the_last_one(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    def fail(encoder: object, target: Path) -> None:
        target.mkdir()
        (target / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(export, "save_adapter", fail)
    with pytest.raises(OSError, match="no space left"):
        export_run(folder)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before
    monkeypatch.undo()
    export_run(folder)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.suffix == ".partial"]
