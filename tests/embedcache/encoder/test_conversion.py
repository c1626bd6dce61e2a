"""Pickled weights become the same encoder as safetensors, and nothing in a pickle is ever run."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.conversion import convert_encoder
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.pickled import tensors_of
from embedcache.errors import EncoderError


@pytest.fixture
def folder(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """An encoder's folder without weights; a test adds pickled ones."""
    copy = shutil.copytree(tiny_encoder_folder, tmp_path / "pickled")
    (copy / "model.safetensors").unlink()
    return copy


class Runs:
    """What a pickle can hold: a call of any function."""

    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.slow
def test_the_converted_encoder_is_the_same(
    folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    weights = load_file(tiny_encoder_folder / "model.safetensors")
    first = dict(list(weights.items())[:9])
    rest = {name: value for name, value in weights.items() if name not in first}
    norm = "encoder.layer.1.output.LayerNorm"
    rest[f"{norm}.weight"] = rest["encoder.layer.1.attention.output.LayerNorm.weight"]  # both 1
    rest["embeddings.position_ids"] = torch.arange(512).unsqueeze(0)  # as transformers 4 kept them
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(rest, folder / "pytorch_model-00002-of-00002.bin")
    source = EncoderConfig(source=str(folder))
    with pytest.raises(EncoderError, match=r"make-encoder --from-pickle \S+pickled --out encoder"):
        load_encoder(source)
    convert_encoder(source, tmp_path / "encoder")
    found = load_encoder(EncoderConfig(source=str(tmp_path / "encoder"))).state_dict()
    wanted = load_encoder(EncoderConfig(source=str(tiny_encoder_folder))).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert encoding_key(EncoderConfig(source=str(tmp_path / "encoder")))
    with pytest.raises(EncoderError, match="holds files already"):
        convert_encoder(source, tmp_path / "encoder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Runs()}, "it asks for posix.system; it was not converted, and nothing of it was"),
        (torch.nn.Linear(2, 2), "it asks for torch.nn.modules.linear.Linear"),
        ({"a": 3}, "holds int under 'a', expected a tensor"),
        ([torch.zeros(2)], "holds list, expected tensors by their names"),
        (b"no pickle", "it is damaged, or no pickle"),
        (b"PK\x03\x04 cut", "weights.bin is damaged"),
        (b"", "weights.bin is damaged: EOFError"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_not_run(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(EncoderError, match=re.escape(message)):
        tensors_of(file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_a_refused_conversion_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    source = EncoderConfig(source=str(folder))
    for content, message in [
        ({"a": Runs()}, r"pytorch_model\.bin is no pickle of tensors alone"),
        ({"other.weight": torch.zeros(99)}, r"pickled/config\.json: .* weights can be for"),
    ]:
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(EncoderError, match=message):
            convert_encoder(source, tmp_path / "encoder")
        assert [path.name for path in tmp_path.iterdir()] == ["pickled"]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(EncoderError, match="no pickled weights"):
        convert_encoder(source, tmp_path / "encoder")
