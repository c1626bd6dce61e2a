"""Where a run writes while it trains: checkpoints and the log, in order, beside the next steps.

A checkpoint of Stage 1 is 150 MB; an epoch on a GPU takes less time than writing it. So files are
written by a thread, in the order in which training came to them, and training is one of them ahead
at most. A kill leaves what the thread had finished: the log never knows of an epoch whose
checkpoint is not there.
"""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fusionnet.train.checkpoint import link_checkpoint, save_checkpoint
from fusionnet.train.runlog import Record, RunLog


class BackgroundWriter:
    """Writes beside the training, one piece of work after another, in the order they came."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do the work when what came before is done, of which at most one piece waits.

        What it reads must not change any more. Raises what the earlier work raised.
        """
        self.wait()
        self._pending = self._thread.submit(work)

    def wait(self, quietly: bool = False) -> None:
        """Wait until all is done, and raise what it raised, unless `quietly`."""
        pending, self._pending = self._pending, None
        if pending is not None and not (pending.exception() and quietly):
            pending.result()


class RunFiles:
    """The files of a run in training, and what its checkpoints carry for those who read them."""

    def __init__(
        self, folder: Path, name: str, config: dict[str, Any], shareable: dict[str, Any]
    ) -> None:
        self.folder, self.name, self.config, self.shareable = folder, name, config, shareable
        self._writer = BackgroundWriter()

    def checkpoint(self, moment: str) -> Path:
        """Return the checkpoint file of a moment: last, step, best or final."""
        return self.folder / f"{self.name}_{moment}.pt"

    def publish_step(self, content: dict[str, Any]) -> None:
        """Write a checkpoint inside an epoch; `content` must not change any more."""
        self._writer.submit(partial(save_checkpoint, self.checkpoint("step"), content))

    def publish_epoch(
        self, content: dict[str, Any], log: RunLog, record: Record, improved: bool
    ) -> None:
        """Write an epoch's checkpoint, and only then its line of the log."""

        def work() -> None:
            save_checkpoint(self.checkpoint("last"), content)
            if improved:
                link_checkpoint(self.checkpoint("last"), self.checkpoint("best"))
            self.checkpoint("step").unlink(missing_ok=True)
            log.append(record)
            tqdm.write(log.line(record))  # above the bar of the epoch that runs meanwhile
            sys.stdout.flush()

        self._writer.submit(work)

    def publish_end(self) -> None:
        """Name the last epoch's checkpoint final; all has been written."""
        link_checkpoint(self.checkpoint("last"), self.checkpoint("final"))

    def wait(self) -> None:
        """Wait until all that was published is on disk; raise what that raised."""
        self._writer.wait()

    def __enter__(self) -> "RunFiles":
        """Begin to train."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait until everything is written; raise what that raised, unless training has raised."""
        self._writer.wait(quietly=error is not None)
