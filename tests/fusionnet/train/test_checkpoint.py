"""Checkpoints are written atomically, linked under second names, and loaded without running
code.
"""

import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from forks import Forks, wait_until

from embedcache.errors import RunError
from fusionnet.train.checkpoint import link_checkpoint, load_checkpoint, save_checkpoint


def test_round_trip_and_second_name(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "weights": {"a": torch.arange(5.0)},
        "metrics": {"ef_mae": None, "ef_r2": 0.5},
        "names": ["x", "y"],
    }
    save_checkpoint(tmp_path / "last.pt", content)
    link_checkpoint(tmp_path / "last.pt", tmp_path / "best.pt")
    save_checkpoint(tmp_path / "last.pt", {**content, "epoch": 4})
    # a later `last` does not write through the link
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 3
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 4
    torch.testing.assert_close(
        load_checkpoint(tmp_path / "best.pt")["weights"]["a"], torch.arange(5.0)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]


class Bomb:
    """Runs a command when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format_version": 1, "bomb": Bomb()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(RunError):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no checkpoint .*: its run has not come that far"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "whole.pt", {"weights": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:700])
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save({"state": 1}, tmp_path / "foreign.pt")
    with pytest.raises(RunError, match="another version"):
        load_checkpoint(tmp_path / "foreign.pt")


WRITER = """
import sys, torch
from pathlib import Path
from fusionnet.train.checkpoint import save_checkpoint
print("ready", flush=True)
for number in range(10**6):
    weights = torch.full((2_000_000,), float(number))
    save_checkpoint(Path(sys.argv[1]), {"number": number, "weights": weights})
"""


@pytest.mark.dist
def test_a_kill_while_writing_leaves_a_whole_checkpoint(forks: Forks, tmp_path: Path) -> None:
    path, script = tmp_path / "last.pt", tmp_path / "writer.py"
    script.write_text(WRITER)
    for delay in (0.05, 0.11, 0.23):
        writer = forks.start(script, path)
        wait_until(lambda writer=writer: "ready" in writer.out.read_text(), writer)
        wait_until(path.exists, writer)
        time.sleep(delay)
        writer.kill()
        content = load_checkpoint(path)
        assert (content["weights"] == content["number"]).all()


def test_a_flipped_byte_is_found_before_anything_is_resumed_or_predicted(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    save_checkpoint(path, {"weights": torch.arange(100_000.0)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="bytes changed"):
        load_checkpoint(path)
