"""An encoder of the hub, from a small hub of this test's own: what it lacks, what it is not asked
twice, and what is said where it does not answer.
"""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder import hub
from embedcache.encoder.conversion import convert_encoder, fetch_encoder
from embedcache.encoder.loading import encoder_entries, load_encoder
from embedcache.encoder.smiles import SPECIAL, smiles_tokenizer
from embedcache.errors import EncoderError, TokenizerError

COMMIT = "a" * 40
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "spm.model")


class SmallHub(ThreadingHTTPServer):
    """Serves the files of folders as models, and keeps what it was asked for."""

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.asked = models, list[str]()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, as far as a download asks."""

    server: SmallHub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        steps = self.path.split("?")[0].strip("/").split("/")
        asks_about = steps[:2] == ["api", "models"]
        name = "/".join(steps[2:4] if asks_about else steps[:2])
        folder = self.server.models.get(name)
        if folder is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not asks_about:
            content = (folder / steps[-1]).read_bytes()
            tag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        elif steps[4:5] == ["revision"] and steps[5] not in ("main", COMMIT):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif steps[4:5] == ["tree"]:
            self.answer(200, json.dumps([tree_entry(file) for file in folder.iterdir()]).encode())
        else:
            names = [{"rfilename": file.name} for file in folder.iterdir()]
            found = {"id": name, "sha": COMMIT, "siblings": names}
            self.answer(200, json.dumps(found).encode())

    do_HEAD = do_GET

    def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Print nothing."""


def tree_entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    digest = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": file.name, "size": len(content), "oid": digest}


def pickled(encoder: Path, folder: Path) -> Path:
    """Write an encoder as older models of the hub are."""
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((encoder / name).read_bytes())
    torch.save(load_file(encoder / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def served(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallHub]:
    models = {
        "me/whole": tiny_encoder_folder,
        "me/pickled": pickled(tiny_encoder_folder, tmp_path / "pickled"),
        "me/smiles": pickled(tiny_encoder_folder, tmp_path / "smiles"),
    }
    (tmp_path / "smiles" / "spm.model").unlink()
    smiles_tokenizer([*SPECIAL.values(), "C", "*"]).save_pretrained(tmp_path / "smiles")
    with SmallHub(models) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        hub.hub_model.cache_clear()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
    hub.hub_model.cache_clear()


def source(name: str, revision: str | None = None) -> EncoderConfig:
    return EncoderConfig(source=name, revision=revision)


def test_a_model_of_the_hub_is_the_one_that_its_folder_is(
    served: SmallHub, tiny_encoder_folder: Path
) -> None:
    wanted = encoder_entries(source(str(tiny_encoder_folder)))
    assert encoder_entries(source("me/whole")) == wanted
    load_encoder(source("me/whole"))
    about = [path for path in served.asked if path == "/api/models/me/whole"]
    assert len(about) == 1
    assert encoder_entries(source("me/whole", COMMIT)) == wanted


def test_what_the_hub_has_not_is_named(served: SmallHub) -> None:
    with pytest.raises(EncoderError, match=r"no folder me/other, nor a model of this name on the"):
        load_encoder(source("me/other"))
    with pytest.raises(EncoderError, match=r"me/whole has no revision 'v1'; correct encoder\.rev"):
        load_encoder(source("me/whole", "v1"))
    words = rf"pickle alone .*--from-pickle me/pickled --revision {COMMIT} --out encoder"
    with pytest.raises(EncoderError, match=words):
        load_encoder(source("me/pickled", COMMIT))


@pytest.mark.slow
def test_a_pickled_model_of_the_hub_is_converted(
    served: SmallHub, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    convert_encoder(source("me/pickled"), tmp_path / "converted")
    wanted = load_file(tiny_encoder_folder / "model.safetensors")
    found = load_file(tmp_path / "converted" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["me/whole", "me/pickled"])
def test_a_model_is_fetched_into_a_folder_of_its_own(
    name: str, served: SmallHub, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fetched"
    assert fetch_encoder(source(name, COMMIT), folder) == COMMIT
    served.shutdown()
    wanted, found = (load_encoder(source(str(each))) for each in (tiny_encoder_folder, folder))
    state = found.state_dict()
    assert all(torch.equal(state[key], value) for key, value in wanted.state_dict().items())
    digests = [encoder_entries(source(str(each))) for each in (tiny_encoder_folder, folder)]
    assert digests[0]["tokenizer"] == digests[1]["tokenizer"]
    with pytest.raises(EncoderError, match="holds files already"):
        fetch_encoder(source(name), folder)


@pytest.mark.slow
def test_a_model_whose_tokenizer_gives_other_ids_than_published_is_not_written(
    served: SmallHub, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=r"of me/smiles does not give polyBERT's published"):
        fetch_encoder(source("me/smiles"), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_hub_that_does_not_answer_is_asked_once_and_its_cache_is_used(
    served: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = encoder_entries(source("me/whole"))
    monkeypatch.setattr(hub, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        hub.hub_model.cache_clear()
        started = time.monotonic()
        assert encoder_entries(source("me/whole")) == wanted
        message = r"no folder me/other, and the hub is not reachable .*timed out.*hf download me/ot"
        with pytest.raises(EncoderError, match=message):
            load_encoder(source("me/other"))
        assert time.monotonic() - started < 5  # 23 s for each file where huggingface_hub asks again


def test_offline_is_said_so(served: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"not reachable .* \(HF_HUB_OFFLINE is set\)"):
        load_encoder(source("me/whole"))
