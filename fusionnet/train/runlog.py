"""What a run leaves to read: training_log.json, what trackers write, a table of its epochs."""

import json
import re
import resource
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embedcache.files import write_atomically
from embedcache.text import aligned, number
from fusionnet.config.tasks import Task
from fusionnet.metrics import main_metrics
from fusionnet.train.callbacks import Callback, Record

LOG = "training_log.json"
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
    """The records of a run, one per epoch: training_log.json, trackers, a table on the screen.

    A record goes to the trackers before the JSON file, which is rewritten atomically: what is in
    the JSON file is in all of them.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Task],
        open_trackers: Callable[[str], Sequence[Callback]],
        verbose: bool = True,
    ) -> None:
        """`open_trackers` returns the trackers of the run of an id, when its first epoch ends."""
        self._folder, self._open_trackers, self._verbose = folder, open_trackers, verbose
        shown = [f"{task.name}_{metric}" for task, metric in main_metrics(tasks)]
        self._columns = ("epoch", "train_loss", "val_loss", *shown, "seconds", "rows_per_s")
        self._widths = [max(_NARROWEST, len(key)) for key in self._columns]
        self._records: list[Record] = []
        self._trackers: Sequence[Callback] | None = None  # of this start

    def catch_up(self, run_id: str, records: list[Record]) -> None:
        """Write those of a resumed run's epochs that a kill kept back."""
        path = self._folder / LOG
        logged = read_records(path)
        pairs = zip(logged, records, strict=False)
        num_same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        self._records = records[:num_same]
        for record in records[num_same:]:
            self.append(run_id, record)
        if len(logged) > len(records):
            write_json(path, records)

    def append(self, run_id: str, record: Record) -> None:
        """Add one epoch."""
        if self._trackers is None:
            self._trackers = self._open_trackers(run_id)
        for tracker in self._trackers:
            tracker.on_epoch_end(record)
        self._records = [*self._records, record]
        write_json(self._folder / LOG, self._records)

    def end(self) -> None:
        """Tell the trackers that all is trained."""
        for tracker in self._trackers or ():
            tracker.on_train_end()

    def show_all(self, records: list[Record]) -> None:
        """Begin the table on the screen, with these epochs in it."""
        if self._verbose:
            head = aligned(self._columns, self._widths)
            print("\n".join([head, *map(self._line, records)]))

    def show(self, record: Record) -> None:
        """Add an epoch to the table, above the bar of the one that runs meanwhile."""
        if self._verbose:
            tqdm.write(self._line(record))
            sys.stdout.flush()

    def _line(self, record: Record) -> str:
        return aligned([number(record.get(key)) for key in self._columns], self._widths)


def read_records(path: Path) -> list[Record]:
    """Return the records that a log file holds; none where it is absent or damaged.

    The checkpoints have them all, so the file can be written again.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return records if isinstance(records, list) else []


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    text = json.dumps(value, indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())
