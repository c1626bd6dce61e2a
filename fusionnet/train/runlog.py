"""What a run leaves to read: training_log.json, TensorBoard events, a table of its epochs."""

import json
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from embedcache.files import write_atomically
from embedcache.system import naming
from embedcache.text import aligned, number
from fusionnet.config import Task
from fusionnet.metrics import main_metrics

Record = dict[str, Any]
_NARROWEST = 9  # characters; a number of an epoch's line fits


def peak_rss_bytes() -> int:
    """Return the largest resident size that this program has had, in bytes.

    Linux: getrusage also counts what the process was before it became this program, which is its
    parent, so a small child of a large one would look large.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        high_water = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if high_water is not None:
            return 1024 * int(high_water[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunLog:
    """The records of a run, one per epoch; every append rewrites the JSON file atomically."""

    def __init__(self, folder: Path, tasks: Sequence[Task], records: list[Record]) -> None:
        """`records` are those of the epochs that a resumed run has behind it."""
        self._path = folder / "training_log.json"
        shown = [f"{task.name}_{metric}" for task, metric in main_metrics(tasks)]
        self._columns = ("epoch", "train_loss", "val_loss", *shown, "seconds", "rows_per_s")
        self._widths = [max(_NARROWEST, len(key)) for key in self._columns]
        self.records = list(records)
        self._events = folder / "tensorboard"
        with naming(self._events):
            self._writer = SummaryWriter(str(self._events), purge_step=len(records) + 1)

    def append(self, record: Record) -> None:
        """Add one epoch."""
        self.records.append(record)
        write_json(self._path, self.records)
        with naming(self._events):
            for key, value in record.items():
                if isinstance(value, int | float) and key != "epoch":
                    self._writer.add_scalar(key, value, record["epoch"])
            self._writer.flush()

    def header(self) -> str:
        """Return the head of the epoch table."""
        return aligned(self._columns, self._widths)

    def line(self, record: Record) -> str:
        """Return one line of the epoch table."""
        return aligned([number(record.get(key)) for key in self._columns], self._widths)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        with naming(self._events):
            self._writer.close()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
