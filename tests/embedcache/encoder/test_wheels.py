"""An encoder inside a wheel becomes a folder as any other, and another wheel is not even opened."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder import wheels
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.smiles import SPECIAL, SPLIT, smiles_tokenizer
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.wheels import WheelEncoder, fetch_wheel, write_wheel_encoder
from embedcache.errors import EncoderError, TokenizerError

TOKENS = ["c", "C", "(", ")", "O", "1", "2", "=", "N", ".", "n", "Cl", "Br", "S", "*", "[nH]", "#"]
TOKENS += ["[Si]", "%10", "/", "-", "[N+]", "I", "B"]
VOCABULARY = ["[PAD]", "[unused1]", *(token for token in SPECIAL.values() if token != "[PAD]")]
VOCABULARY += TOKENS
NAME = "tinychem"


def write_wheel(file: Path) -> BertModel:
    """Write a wheel with an encoder as old programs of transformers left it, and return that."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": len(VOCABULARY), "max_position_embeddings": 40}
    model = BertModel(BertConfig(**sizes, initializer_range=0.3)).eval()
    weights = {f"bert.{key}": value for key, value in model.state_dict().items()}
    torch.save(weights | {"cls.predictions.bias": torch.zeros(3)}, file.with_name("weights"))
    about = f"{NAME}-0.1.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tinychem/m/config.json", json.dumps({**sizes, "hidden_act": "gelu"}))
        archive.writestr("tinychem/m/vocab.txt", "\n".join(VOCABULARY) + "\n")
        archive.write(file.with_name("weights"), "tinychem/m/pytorch_model.bin")
        archive.writestr("tinychem/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{about}/WHEEL", tag)
        archive.writestr(f"{about}/LICENSE", "Do as you like.\n")
        archive.writestr(f"{about}/RECORD", "")
    file.with_name("weights").unlink()
    return model


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return folder / f"{NAME}-0.1-py3-none-any.whl"


def described(wheel: Path) -> WheelEncoder:
    return WheelEncoder(
        package=NAME,
        version="0.1",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        folder="tinychem/m",
        licence=f"{NAME}-0.1.dist-info/LICENSE",
        model_type="bert",
        paper="Nobody 2026",
    )


@pytest.mark.slow
def test_the_folder_is_the_encoder_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    model = write_wheel(wheel)
    folder = tmp_path / "encoder"
    write_wheel_encoder(described(wheel), folder, wheel)
    names = {"LICENSE", "README.md", "config.json", "model.safetensors"}
    assert {file.name for file in folder.iterdir()} == names | {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "LICENSE").read_text() == "Do as you like.\n"
    assert described(wheel).sha256 in (folder / "README.md").read_text()
    config = EncoderConfig(source=str(folder), tokenizer="any")
    encoder, tokenizer = load_encoder(config), load_tokenizer(config)
    texts = ["[*]CC([*])c1ccc(Cl)cc1", "[*]O[Si](C)(C)[*]", "[*]CC[*]"]
    found = tokenize(tokenizer, texts, encoder.max_length, encoder.num_ids)
    assert not found.unknown
    for number, text in enumerate(texts):
        pieces = ["[CLS]", *re.findall(SPLIT, text.replace("[*]", "*")), "[SEP]"]
        ids = torch.tensor([[VOCABULARY.index(piece) for piece in pieces]])
        assert found.tokens.take(torch.tensor([number])).values.tolist() == ids[0].tolist()
        with torch.no_grad():
            wanted = model(input_ids=ids).last_hidden_state.mean(1)
        torch.testing.assert_close(encoder(found.tokens)[number : number + 1], wanted)


def test_another_wheel_is_refused_and_not_opened(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheel)
    wanted = described(wheel)
    changed = bytearray(wheel.read_bytes())
    changed[len(changed) // 2] ^= 1
    wheel.write_bytes(changed)
    monkeypatch.setattr(wheels.zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(EncoderError, match=rf"tinychem==0\.1 as .* expected {wanted.sha256}"):
        write_wheel_encoder(wanted, tmp_path / "encoder", wheel)
    with pytest.raises(EncoderError, match="there is no file"):
        write_wheel_encoder(wanted, tmp_path / "encoder", tmp_path / "none.whl")
    assert not (tmp_path / "encoder").exists()


def test_what_is_there_is_left_alone_and_nothing_is_fetched(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheel)
    monkeypatch.setattr(wheels, "fetch_wheel", lambda *_: pytest.fail("it was fetched"))
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine").touch()
    with pytest.raises(EncoderError, match="encoder holds files already; choose another"):
        write_wheel_encoder(described(wheel), tmp_path / "encoder")


@pytest.fixture
def own_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip know of no other index than the wheel's folder."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("own_index")
def test_pip_fetches_it_and_imports_nothing(wheel: Path, tmp_path: Path) -> None:
    write_wheel(wheel)
    found = fetch_wheel(described(wheel), tmp_path / "fetched")
    assert found.name == wheel.name
    assert found.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("own_index")
def test_what_pip_does_not_find_is_said_with_what_to_do(wheel: Path, tmp_path: Path) -> None:
    write_wheel(wheel)
    other = described(wheel)._replace(version="0.2")
    words = r"tinychem==0\.2 cannot be fetched: .*satisfies.*; fetch it elsewhere, .* --wheel FILE"
    with pytest.raises(EncoderError, match=words):
        write_wheel_encoder(other, tmp_path / "encoder")


SAID = {
    "print('/usr/bin/python: No module named pip', file=sys.stderr)": r"has no pip \(python -m",
    "print('WARNING: after connection broken by X', file=sys.stderr)": "index does not answer",
    "pass": "pip gave no reason",
    "time.sleep(9)": "pip took more than 1 s",
}


@pytest.mark.parametrize("does", SAID)
def test_each_way_in_which_pip_fails_is_told_apart(
    does: str, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheel)
    program = tmp_path / "python"
    program.write_text(f"#!{wheels.sys.executable} -S\nimport sys, time\n{does}\nsys.exit(1)\n")
    program.chmod(0o755)
    monkeypatch.setattr(wheels.sys, "executable", str(program))
    with pytest.raises(EncoderError, match=rf"{SAID[does]}.* pip download --no-deps tinychem==0"):
        fetch_wheel(described(wheel), tmp_path / "fetched", limit_s=1.0)


@given(pieces=st.lists(st.sampled_from([*TOKENS, "[*]"]), min_size=1, max_size=30))
def test_it_splits_as_the_authors_do(pieces: list[str]) -> None:
    text = "".join(pieces)
    wanted = re.findall(SPLIT, text.replace("[*]", "*"))
    known = [each if each in VOCABULARY else "[UNK]" for each in wanted]  # Cl of C and l
    assert smiles_tokenizer(VOCABULARY).tokenize(text) == known


def test_what_the_expression_does_not_know_is_unknown_and_said() -> None:
    found = tokenize(smiles_tokenizer(VOCABULARY), ["[*]CQC[*]", "[*]C[Zr]C[*]"], 40, 31)
    assert found.unknown == {"[*]CQC[*]": ["Q"], "[*]C[Zr]C[*]": ["[Zr]"]}


def test_a_vocabulary_that_is_none_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"vocabulary of 2 tokens lacks \[PAD\], \[UNK\]"):
        smiles_tokenizer(["C", "O"])
    with pytest.raises(TokenizerError, match="repeats a token"):
        smiles_tokenizer([*VOCABULARY, "C"])
