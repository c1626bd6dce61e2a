"""What the package's README shows is so: its Python blocks run in order and print what it says, its
commands, keys and files exist.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import embedcache
from embedcache.config.encoder import EncoderConfig
from fusionnet.commands.cli import EMBEDCACHE

README = Path(embedcache.__file__ or "").with_name("README.md")
TEXT = README.read_text(encoding="utf-8")


class Block(NamedTuple):
    """One fenced block: its language and its lines."""

    language: str
    content: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)]


class Engine:
    """Stands for a DeepSpeed engine, which gets the losses and steps by itself."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass


@pytest.fixture
def lone_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment that torchrun gives to a single process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("lone_rank")
def test_python_blocks_run_in_order_and_print_what_is_shown(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("xarray", "pandas"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").symlink_to(tiny_encoder_folder)
    names: dict[str, Any] = {"engine": Engine()}
    num_shown = 0
    for block, following in pairwise([*BLOCKS, Block("", "")]):
        if block.language != "python":
            continue
        printed = StringIO()
        with redirect_stdout(printed):
            exec(block.content, names)
        assert ("print(" in block.content) == (following.language == "text"), block.content
        if following.language == "text":
            assert printed.getvalue() == following.content
            num_shown += 1
    assert num_shown >= 5


def test_commands_keys_and_files_exist() -> None:
    commands = set(re.findall(r"`embedcache ([a-z-]+)", TEXT))
    assert len(commands) >= 4
    assert commands <= set(EMBEDCACHE)
    linked = set(re.findall(r"\]\((\.\./[^)#]+)", TEXT))
    files = linked | set(re.findall(r"(?<![\w/])[a-z]+/[a-z_/]+\.py\b", TEXT))
    assert len(files) >= 10
    assert [file for file in sorted(files) if not (README.parent / file).exists()] == []
    keys = set(re.findall(r"`encoder\.([a-z_]+)", TEXT))
    assert keys >= {"mode", "memory_budget_gib"}
    assert keys <= set(EncoderConfig.model_fields)
