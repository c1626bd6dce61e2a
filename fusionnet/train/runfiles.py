"""Where a run writes while it trains: checkpoints and the log, in order, beside the next steps.

A checkpoint of Stage 1 is 148 MB with Adam's moments and 49 MB without; an epoch on a GPU takes
less time than writing the two. So files are written by a thread, in the order in which training
came to them, and training is one of them ahead at most. A kill leaves what the thread had finished:
the log never knows of an epoch whose checkpoint is not there.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from embedcache.files import write_atomically
from fusionnet.runfolder.listing import begin_listing, clean_up, list_files, new_id
from fusionnet.train.callbacks import Callback, Record
from fusionnet.train.checkpoint import (
    link_checkpoint,
    load_checkpoint,
    save_checkpoint,
    without_moments,
)
from fusionnet.train.monitor import best_epoch
from fusionnet.train.proof.record import ProofFile, proof_path
from fusionnet.train.runlog import LOG, RunLog
from fusionnet.train.trackers import Tracked, open_trackers
from fusionnet.yamlfile import to_yaml

MOMENTS = ("last", "step", "best", "final")


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
    """The files of a run in training, and what its checkpoints carry for those who read them.

    Nothing is written, and what an earlier run left is not touched, before `begin` or `go_on`.
    """

    def __init__(
        self, folder: Path, name: str, config: dict[str, Any], shareable: dict[str, Any]
    ) -> None:
        self.folder, self.name, self.config, self.shareable = folder, name, config, shareable
        self.run_id = new_id()
        self.proofs: ProofFile | None = None
        self._writer = BackgroundWriter()

    def checkpoint(self, moment: str) -> Path:
        """Return the checkpoint file of a moment: last, step, best or final."""
        return self.folder / f"{self.name}_{moment}.pt"

    def tracked_by(self, run_id: str) -> list[Callback]:
        """Return the trackers of the run of this id, as its config names them."""
        run = Tracked(self.folder, self.name, run_id, self.config)
        return open_trackers(self.config["train"]["trackers"], run)

    def begin(self) -> None:
        """Make the folder this run's own, deleting the files of the run that it replaces, if any.

        Called when the run's first step is done: a run that cannot start leaves the old one whole.
        """
        begin_listing(self.folder, self.name, self.run_id)
        self._write_config()
        if self.proofs is not None:
            self.proofs.open()

    def go_on(self, run_id: str, records: list[Record], step: int, log: RunLog) -> None:
        """Take up a run's folder again, and put in order what a kill left unfinished.

        `records` are those of the epochs behind it, `step` the steps of the present one.
        """
        self.run_id = run_id
        clean_up(self.folder)
        self._write_config()
        monitor = self.config["train"]["monitor"]
        if records and best_epoch(records, monitor) == len(records):
            self._write_best(len(records))
        if step == 0:
            self.checkpoint("step").unlink(missing_ok=True)
        log.catch_up(run_id, records)

    def _write_best(self, epoch: int) -> None:
        """Write the best checkpoint from the last one, if that is of this epoch.

        A kill may have come between the two; whether it did would take as long to find out.
        """
        last = self.checkpoint("last")
        if last.is_file() and (content := load_checkpoint(last))["epoch"] == epoch:
            save_checkpoint(self.checkpoint("best"), without_moments(content))

    def _write_config(self) -> None:
        """List what the training itself writes, and write the resolved config."""
        config = f"{self.name}_config.yaml"
        moments = [self.checkpoint(moment).name for moment in MOMENTS]
        proofs = proof_path(self.folder, self.name).name
        list_files(self.folder, self.run_id, [config, *moments, LOG, proofs])
        write_atomically(self.folder / config, to_yaml(self.config).encode())

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
                save_checkpoint(self.checkpoint("best"), without_moments(content))
            self.checkpoint("step").unlink(missing_ok=True)
            log.append(self.run_id, record)
            log.show(record)

        self._writer.submit(work)

    def publish_end(self) -> None:
        """Write the last epoch's checkpoint as the final one; all others have been written.

        Where it is the best one too, one file has both names.
        """
        content = load_checkpoint(self.checkpoint("last"))
        if best_epoch(content["records"], self.config["train"]["monitor"]) == content["epoch"]:
            link_checkpoint(self.checkpoint("best"), self.checkpoint("final"))
        else:
            save_checkpoint(self.checkpoint("final"), without_moments(content))

    def wait(self) -> None:
        """Wait until all that was published is on disk; raise what that raised."""
        self._writer.wait()

    def __enter__(self) -> "RunFiles":
        """Begin to train."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait until everything is written; raise what that raised, unless training has raised."""
        self._writer.wait(quietly=error is not None)
