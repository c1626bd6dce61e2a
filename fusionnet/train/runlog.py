"""What a run leaves to read: training_log.json, TensorBoard events, and an epoch table on the
terminal.
"""

import json
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from embedcache.files import write_atomically
from fusionnet.config import Task

Record = dict[str, Any]
_SHOWN = {"regression": ("mae", "r2"), "binary": ("auroc", "f1")}


def peak_rss_bytes() -> int:
    """Return the largest resident size that this program has had, in bytes.

    Linux: getrusage also counts what the process was before it became this program, which is its
    parent, so a small child of a large one would look large.
    """
    status = Path("/proc/self/status")
    known = (
        re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if status.is_file()
        else None
    )
    if known is not None:
        return 1024 * int(known[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunLog:
    """The records of a run, one per epoch; every append rewrites the JSON file atomically."""

    def __init__(self, folder: Path, tasks: Sequence[Task], records: list[Record]) -> None:
        """`records` are those of the epochs that a resumed run has behind it."""
        self._path = folder / "training_log.json"
        self._shown = _shown_columns(tasks)
        self.records = list(records)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=len(records) + 1)

    def append(self, record: Record) -> None:
        """Add one epoch."""
        self.records.append(record)
        write_json(self._path, self.records)
        for key, value in record.items():
            if isinstance(value, int | float) and key != "epoch":
                self._writer.add_scalar(key, value, record["epoch"])
        self._writer.flush()

    def header(self) -> str:
        """Return the head of the epoch table."""
        return "  ".join(
            f"{title:>{max(9, len(title))}}"
            for title in ("epoch", "train_loss", "val_loss", *self._shown, "seconds", "rows_per_s")
        )

    def line(self, record: Record) -> str:
        """Return one line of the epoch table."""
        keys = ("epoch", "train_loss", "val_loss", *self._shown, "seconds", "rows_per_s")
        return "  ".join(f"{_cell(record.get(key)):>{max(9, len(key))}}" for key in keys)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        self._writer.close()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _shown_columns(tasks: Sequence[Task]) -> list[str]:
    """Return the log keys of the primary tasks: those of the largest weight."""
    heaviest = max(task.weight for task in tasks)
    return [
        f"{task.name}_{metric}"
        for task in tasks
        if task.weight == heaviest
        for metric in _SHOWN[task.kind]
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
