"""Where the records of a run's epochs go beside training_log.json: callbacks that write.

They are told of an epoch once its checkpoint is on disk, and again of epochs that a kill may have
kept from them: each takes the later word for the same epoch. Two go through their own libraries,
which are extras, offline: Weights & Biases into `wandb/` of the run folder (`wandb sync` uploads
it), MLflow into `mlflow.db` there. Who wants a server says so in the libraries' own environment
variables. A resumed run goes on in the same tracked run, under the id that the run folder has.
"""

import csv
import importlib
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from embedcache.errors import ConfigError, RunError
from embedcache.files import write_atomically
from embedcache.system import naming
from fusionnet.config.train import TrackerName
from fusionnet.runfolder.listing import list_files
from fusionnet.train.callbacks import Callback, Record
from fusionnet.train.events import append_events, next_file

CSV = "training_log.csv"
_MOST_PARAMS = 100  # that MLflow takes at once
PROJECT = "fusionnet"  # of Weights & Biases, and the experiment of MLflow, unless theirs is set
_MODULES: dict[TrackerName, tuple[str, ...]] = {
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


class Tracked(NamedTuple):
    """What a tracker is told of a run when it begins."""

    folder: Path
    name: str
    run_id: str
    config: dict[str, Any]


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError where a tracker's library is not installed."""
    for name in names:
        missing = [module for module in _MODULES.get(name, ()) if find_spec(module) is None]
        if missing:
            raise ConfigError(
                f"train.trackers names {name}, which needs {', '.join(missing)}; install it with:"
                f" pip install 'embedcache-fusionnet[{name}]', or take it out of the list"
            )


def open_trackers(names: Sequence[TrackerName], run: Tracked) -> list[Callback]:
    """Return the trackers of a run that begins, or goes on; what they write is listed."""
    return [_TRACKERS[name](run) for name in dict.fromkeys(names)]


class TensorBoard(Callback):
    """One file of events for each start of the run."""

    def __init__(self, run: Tracked) -> None:
        events = next_file(run.folder)
        list_files(run.folder, run.run_id, [events])
        self._file = run.folder / events

    def on_epoch_end(self, record: Record) -> None:
        """Add an epoch's numbers."""
        with naming(self._file):
            append_events(self._file, record)


class CsvLog(Callback):
    """One line per epoch, one column per number."""

    def __init__(self, run: Tracked) -> None:
        list_files(run.folder, run.run_id, [CSV])
        self._file = run.folder / CSV

    def on_epoch_end(self, record: Record) -> None:
        """Write the file again, with this epoch in the place of it and of all later ones."""
        lines: list[dict[str, Any]] = []
        if self._file.is_file():
            with self._file.open(encoding="utf-8", newline="") as stream:
                lines = [line for line in csv.DictReader(stream) if _precedes(line, record)]
        lines.append(numbers_of(record))
        columns = list(dict.fromkeys(key for line in lines for key in line))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(self._file, text.getvalue().encode())


class WeightsAndBiases(Callback):
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise."""

    def __init__(self, run: Tracked) -> None:
        """Raise RunError for what the library refuses."""
        self._library = importlib.import_module("wandb")
        list_files(run.folder, run.run_id, ["wandb/"])
        settings = self._library.Settings(silent=True, console="off", disable_git=True)
        try:
            self._run = self._library.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run.run_id,
                name=run.name,
                config=run.config,
                dir=str(run.folder.absolute()),
                mode=os.environ.get("WANDB_MODE", "offline"),
                resume="allow",
                settings=settings,
            )
        except self._library.Error as error:
            raise RunError(
                f"Weights & Biases refuses the run: {error}; set WANDB_MODE=offline, or take wandb"
                " out of train.trackers, and go on with --resume"
            ) from None

    def on_epoch_end(self, record: Record) -> None:
        """Log an epoch's numbers, the epoch being the step."""
        self._run.log(numbers_of(record), step=record["epoch"])

    def on_train_end(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow(Callback):
    """A run of MLflow, in a database of the run folder unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, run: Tracked) -> None:
        """Raise RunError for what the library refuses."""
        list_files(run.folder, run.run_id, ["mlflow.db", "mlflow/"])
        own = f"sqlite:///{(run.folder / 'mlflow.db').absolute()}"
        library = importlib.import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
        self._entities = importlib.import_module("mlflow.entities")
        try:
            self._client = library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
            self._id = self._found(run) or self._created(run)
        except library.MlflowException as error:
            raise RunError(
                f"MLflow refuses the run: {error!s:.400}; mend MLFLOW_TRACKING_URI, or take mlflow"
                " out of train.trackers, and go on with --resume"
            ) from None

    def _experiment(self, run: Tracked) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(
            self._client.create_experiment(
                name, artifact_location=str(run.folder.absolute() / "mlflow")
            )
        )

    def _found(self, run: Tracked) -> str | None:
        """Return the id of the tracked run that this one goes on in, set to run again."""
        same = f"tags.run_id = '{run.run_id}'"
        runs = self._client.search_runs([self._experiment(run)], filter_string=same)
        if not runs:
            return None
        self._client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)

    def _created(self, run: Tracked) -> str:
        made = self._client.create_run(
            self._experiment(run), tags={"run_id": run.run_id}, run_name=run.name
        )
        make = self._entities.Param
        params = [make(key, str(value)[:500]) for key, value in _flat(run.config)]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[start : start + _MOST_PARAMS])
        return str(made.info.run_id)

    def on_epoch_end(self, record: Record) -> None:
        """Log an epoch's numbers, the epoch being the step."""
        now_ms, make = int(1000 * time.time()), self._entities.Metric
        metrics = [
            make(key, float(value), now_ms, record["epoch"])
            for key, value in numbers_of(record).items()
            if not isinstance(value, str)
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def on_train_end(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._id)


_TRACKERS: dict[TrackerName, Callable[[Tracked], Callback]] = {
    "tensorboard": TensorBoard,
    "csv": CsvLog,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def numbers_of(record: Record) -> dict[str, Any]:
    """Return the numbers of a record by name, learning rates by their group, and why it stopped."""
    return {key: value for key, value in _flat(record) if value is not None}


def _flat(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return nested values by dotted key."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{path}{key}.")
        else:
            pairs.append((f"{path}{key}", value))
    return pairs


def _precedes(line: dict[str, Any], record: Record) -> bool:
    epoch = line.get("epoch") or ""
    return epoch.isdecimal() and int(epoch) < record["epoch"]
