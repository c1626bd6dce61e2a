"""What is trained and where it is written, of a run and of what is trained beside it."""

from pathlib import Path
from typing import Any

from embedcache.build.report import rows_of_split
from embedcache.cache.reader import Cache
from fusionnet.experiment import Experiment
from fusionnet.recipe import Recipe, observed_tasks
from fusionnet.train.fitting import fitted_model, fitted_train
from fusionnet.train.monitor import check_monitor
from fusionnet.train.runfiles import RunFiles
from fusionnet.train.trainer import Trainer


def recipe_of(experiment: Experiment, cache: Cache) -> Recipe:
    """Return what the experiment's model is made of, for the targets that the cache has.

    What the config leaves unset fits its train rows. Raises ConfigError where `train.monitor` is
    of a target that the cache has not.
    """
    num_rows = rows_of_split(cache, "train")
    tasks, train = observed_tasks(experiment.tasks, cache.layout), experiment.train
    check_monitor(train, tasks)
    return Recipe(
        tasks,
        tuple(column.encoder or experiment.encoder for column in experiment.data.strings),
        fitted_model(experiment.model, num_rows),
        experiment.loss,
        fitted_train(train, num_rows),
    )


def files_of(trainer: Trainer, experiment: Experiment, folder: Path) -> RunFiles:
    """Return where a trainer writes, and what its checkpoints carry for those who read them."""
    cache = trainer.cache
    shareable: dict[str, Any] = {
        "layout": cache.layout.model_dump_json(),
        "scaling": cache.scaling.to_json(),
        "strings": {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings},
        "identity": dict(cache.identity.entries),
        "saving": trainer.saving,
    }
    return RunFiles(folder, experiment.run.name, experiment.model_dump(mode="json"), shareable)
