"""What a run that goes on leaves open in its config: it is as it was when the run was begun."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedcache.schema import Config, ConfigT
from fusionnet.config.model import ModelConfig
from fusionnet.experiment import Experiment, load_experiment

_FITTED = ("epochs", "batch_rows")  # of `train`, beside the patience of its early stopping


def as_begun(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with what it leaves open settled as the folder's run has it.

    These are the precision where it is `auto`, and what is made to fit the train rows where it is
    unset. A run that goes on elsewhere goes on in the same numbers.
    """
    file = folder / f"{experiment.run.name}_config.yaml"
    if not file.is_file():
        return experiment
    begun = load_experiment(file)
    train = _filled(experiment.train, begun.train, _FITTED)
    stopping = _filled(train.early_stopping, begun.train.early_stopping, ("patience",))
    changed: dict[str, Any] = {"early_stopping": stopping}
    if train.precision == "auto":
        changed["precision"] = begun.train.precision
    model = _filled(experiment.model, begun.model, ModelConfig.model_fields)
    return experiment.model_copy(update={"train": train.model_copy(update=changed), "model": model})


def _filled(section: ConfigT, begun: Config, keys: Iterable[str]) -> ConfigT:
    """Return a section with those of the keys that are unset taken from another."""
    unset = [key for key in keys if getattr(section, key) is None]
    return section.model_copy(update={key: getattr(begun, key) for key in unset})
