"""`pretrain_encoder`: the same weights, interrupted or not; a folder that builds read."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from deaths import run_until

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.standin import is_standin
from embedcache.encoder.tokenizer import load_tokenizer
from fusionnet.commands import cli
from fusionnet.commands.command import run_job
from fusionnet.pretrain import loop
from fusionnet.pretrain.folder import CHECKPOINT, CORPUS, remove_work
from fusionnet.pretrain.prepared import Wanted
from fusionnet.pretrain.run import pretrain_encoder
from fusionnet.pretrain.settings import Settings

STRINGS = [f"[*]CC([*]){'C' * i}O{'C' * j}N" for i in range(1, 8) for j in range(1, 8)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join([*STRINGS, "", "*CC(*)COCN"]) + "\n")
    return file


def trained(corpus: Path, out: Path, *, objective: str = "mlm", **how: Any) -> dict[str, Any]:
    wanted = Wanted((corpus,), objective != "mlm", 0.1, 100, seed=0, skip_invalid=False)
    length = {} if "minutes" in how else {"epochs": 3}
    given = {name: how.pop(name) for name in ("lr", "minutes", "seed", "size") if name in how}
    plain = {"objective": objective, "size": "tiny", "batch_tokens": 50}
    settings = Settings(**{**plain, **length, **given})
    return pretrain_encoder(out, wanted, settings, tell=lambda _: None, **how)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_what_is_written_is_an_encoder_that_says_what_it_is(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = trained(corpus, tmp_path / "encoder", objective="both")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "encoder"]
    assert facts["corpus"]["num_strings"] == len(STRINGS)  # one comes twice, in two spellings
    assert facts["corpus"]["num_ranked"] == len(STRINGS)
    first, last = facts["evaluations"][0], facts["evaluations"][-1]
    assert last["perplexity"] < first["perplexity"]
    assert last["done"] == 1
    assert len(facts["evaluations"]) == 20
    assert last["tokens"] == 3 * (facts["corpus"]["num_tokens"] - _held_out_tokens(facts, corpus))
    assert not is_standin(tmp_path / "encoder")
    assert json.loads((tmp_path / "encoder" / "pretraining.json").read_text()) == facts
    card = (tmp_path / "encoder" / "README.md").read_text()
    for words in (facts["corpus"]["digest"], f"{last['perplexity']:.3f}", "not its published"):
        assert words in card
    config = EncoderConfig(source=str(tmp_path / "encoder"), tokenizer="polybert")
    encoder = load_encoder(config)
    assert encoder.width == facts["width"]
    assert load_tokenizer(config)("[*]CC[*]")["input_ids"] == [265, 264, 5, 33, 33, 5, 266]
    monkeypatch.chdir(tmp_path)
    table = {"smiles": STRINGS[:10] * 3, "y": [0.5 * row for row in range(30)]}
    pl.DataFrame(table).write_csv("table.csv")
    assert run(monkeypatch, "init", "table.csv", "--target", "y", "--encoder", "encoder") == 0
    monkeypatch.setattr("sys.argv", ["embedcache", "build", "--config", "table.yaml"])
    with pytest.raises(SystemExit) as stopped:
        run_job(cli.embedcache)
    assert stopped.value.code == 0


def _held_out_tokens(facts: dict[str, Any], corpus: Path) -> int:
    tokenizer = load_tokenizer(EncoderConfig(source=str(corpus.parent / "encoder")))
    lengths = torch.tensor([len(ids) for ids in tokenizer(sorted(STRINGS))["input_ids"]])
    order = torch.randperm(len(STRINGS), generator=torch.Generator().manual_seed(0))
    return int(lengths[order[: facts["corpus"]["num_held_out"]]].sum())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["fusionnet", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_job(cli.fusionnet)
    return stopped.value.code


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 7, 19])
def test_interrupted_and_resumed_is_uninterrupted_bit_by_bit(
    when: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(corpus, tmp_path / "whole")
    num_saved = 0
    save = loop.save_checkpoint

    def dying(path: Path, content: dict[str, Any]) -> None:
        nonlocal num_saved
        num_saved += 1
        if num_saved > when:
            raise KeyboardInterrupt
        save(path, content)

    monkeypatch.setattr(loop, "save_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        trained(corpus, tmp_path / "parts")
    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert not (tmp_path / "parts").exists()
    torch.manual_seed(99)
    torch.rand(7)
    resumed = trained(corpus, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    kept = ("step", "epochs", "tokens", "lr", "perplexity", "accuracy")
    for one, other in zip(whole["evaluations"], resumed["evaluations"], strict=True):
        assert {key: one[key] for key in kept} == {key: other[key] for key in kept}


@pytest.mark.slow
def test_killed_at_any_file_it_goes_on_to_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    trained(corpus, tmp_path / "whole")
    for number in (0, 3, 11, 40, 90, 10_000):
        out = tmp_path / f"out{number}"
        died = run_until(lambda out=out: trained(corpus, out) and None, number)
        assert died == (number < 10_000)
        if died:
            assert not out.exists() or weights(out) == weights(tmp_path / "whole")
            trained(corpus, out, resume=True)
        assert weights(out) == weights(tmp_path / "whole")
        assert not out.with_name(f"{out.name}.pretraining").exists()


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_time_is_kept(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "encoder"
    flags = ("--corpus", corpus, "--out", out, "--size", "tiny", "--objective", "mlm")
    flags = (*flags, "--minutes", 0.1, "--processes", 1, "--held-out", 0.1)
    take = loop._take_step

    def told(trainer: loop.Trainer, ids: torch.Tensor, step: int) -> None:
        take(trainer, ids, step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_take_step", told)
    assert run(monkeypatch, "pretrain-encoder", *flags) == 143
    assert "holds all up to step 5" in capsys.readouterr().err
    assert run(monkeypatch, "pretrain-encoder", *flags) == 2  # not without saying how
    assert "--resume" in capsys.readouterr().err
    assert run(monkeypatch, "pretrain-encoder", *flags, "--resume", "--seed", 1) == 2
    assert "other settings" in capsys.readouterr().err
    monkeypatch.setattr(loop, "_take_step", take)
    assert run(monkeypatch, "pretrain-encoder", *flags, "--resume") == 0
    last = json.loads((out / "pretraining.json").read_text())["evaluations"][-1]
    assert last["done"] == 1
    assert 6 <= last["seconds"] < 12
    assert last["lr"] < 1e-9  # the cosine ended with the time


def test_it_goes_on_from_an_encoder(
    corpus: Path, tmp_path: Path, tiny_encoder_folder: Path
) -> None:
    source = str(tiny_encoder_folder)
    facts = trained(corpus, tmp_path / "more", source=source, lr=1e-12)
    assert facts["first_weights"] == source
    before, after = (
        load_encoder(EncoderConfig(source=each)).state_dict()
        for each in (source, str(tmp_path / "more"))
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.allclose(after[name], value, atol=1e-6), name


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_by_name(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("*CC*\n*CCO*\n")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")

    def refusal(*arguments: object) -> str:
        plain = ("--corpus", corpus, "--out", tmp_path / "out", "--processes", 1, "--epochs", 1)
        assert run(monkeypatch, "pretrain-encoder", *plain, *arguments) == 2
        return capsys.readouterr().err

    assert "too few to pre-train on" in refusal("--corpus", few)
    assert "there is no file" in refusal("--corpus", tmp_path / "none.txt")
    assert "holds files of something else" in refusal("--out", mine)
    assert "is a file" in refusal("--out", few)
    assert "epochs" in refusal("--epochs", 0)
    assert "--held-out" in refusal("--held-out", 0.9)
    assert "nowhere" in refusal("--from", tmp_path / "nowhere")
    assert (mine / "thesis.tex").read_text() == "all of it"
    assert not (tmp_path / "out").exists()


def test_what_a_user_has_beside_the_checkpoint_stays(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "a.pretraining", tmp_path / "b.pretraining"
    for work in (mine, theirs):
        work.mkdir()
        (work / CHECKPOINT).write_bytes(b"x")
        (work / CORPUS).write_bytes(b"x")
    (theirs / "notes.txt").write_text("mine")
    for work in (mine, theirs):
        remove_work(work)
    assert not mine.exists()
    assert [file.name for file in theirs.iterdir()] == ["notes.txt"]
