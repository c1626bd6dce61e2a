"""Train a model from a cache: `deepspeed jobs/train.py --config C`, or torchrun, or srun, or plain
python for one process (see configs/launch/).
"""

import shutil
import time
from pathlib import Path
from typing import Any

from embedcache.errors import RunError
from fusionnet.assemble import Recipe, observed_tasks
from fusionnet.commands.checked_cache import open_checked_cache
from fusionnet.commands.command import config_parser
from fusionnet.experiment import Experiment, experiment_of, load_experiment
from fusionnet.train.engine import World
from fusionnet.train.loop import RunFiles, Trainer, make_trainer, train_run
from fusionnet.train.runlog import peak_rss_bytes
from fusionnet.train.summary import summary
from fusionnet.trained.export import export_run


def main() -> None:
    """Check everything that can be wrong, then train, then export."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in run.dir from its last checkpoint (start it if there is none)",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in run.dir")
    parser.add_argument(
        "--summary",
        action="store_true",
        help="print the model's parameter counts beside the specification's, and stop",
    )
    parser.add_argument(
        "--local_rank",
        type=int,
        default=None,
        help="set by the deepspeed launcher; the environment is used instead",
    )
    arguments = parser.parse_args()
    experiment = experiment_of(arguments)
    folder = Path(experiment.run.dir)
    if arguments.resume:
        experiment = _in_the_runs_precision(experiment, folder)
    cache = open_checked_cache(experiment, arguments.config)
    encoders = tuple(column.encoder or experiment.encoder for column in experiment.data.strings)
    recipe = Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        encoders,
        experiment.model,
        experiment.loss,
        experiment.train,
    )
    if not arguments.summary:
        _check_folder(folder, arguments.resume, arguments.overwrite)
    world = World()
    trainer = make_trainer(recipe, experiment.optim, cache, world)
    asked, experiment = (
        experiment.train.precision,
        experiment.model_copy(update={"train": trainer.recipe.train}),
    )
    if world.is_main:
        print(summary(trainer, asked))
    if not arguments.summary:
        if world.is_main:
            _make_folder(folder, experiment, arguments.overwrite)
        world.barrier()
        _train_and_export(trainer, experiment, folder, arguments.resume)
    world.close()


def _train_and_export(trainer: Trainer, experiment: Experiment, folder: Path, resume: bool) -> None:
    """Run the epochs, then write what others read."""
    cache, name = trainer.cache, experiment.run.name
    shareable: dict[str, Any] = {
        "layout": cache.layout.model_dump_json(),
        "scaling": cache.scaling.to_json(),
        "strings": {spec.name: cache.strings(spec.name).text for spec in cache.layout.strings},
        "identity": dict(cache.identity.parts),
    }
    started = time.perf_counter()
    records = train_run(
        trainer, RunFiles(folder, name, experiment.model_dump(mode="json"), shareable), resume
    )
    if trainer.world.is_main:
        export_run(folder)
        best = min(records, key=lambda record: record["val_loss"])
        print(
            f"trained {len(records)} epochs in {time.perf_counter() - started:,.0f} s, best"
            f" validation loss {best['val_loss']:.4f} in epoch {best['epoch']}, peak memory"
            f" {peak_rss_bytes() / 2**30:.2f} GiB\nrun folder: {folder}; evaluate it with: python"
            f" -m jobs.evaluate_model --run {folder}"
        )


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise RunError(
            f"{folder} holds an earlier run; continue it with --resume, delete it with --overwrite,"
            " or choose another with --set run.dir=..."
        )


def _make_folder(folder: Path, experiment: Experiment, overwrite: bool) -> None:
    """Make the run folder and write the resolved config into it; nothing that can be refused is
    left to check.
    """
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{experiment.run.name}_config.yaml").write_text(
        experiment.to_yaml(), encoding="utf-8"
    )


def _in_the_runs_precision(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with `train.precision: auto` as the run in the folder, if there is one,
    was started: it goes on in the same numbers elsewhere.
    """
    file = folder / f"{experiment.run.name}_config.yaml"
    if experiment.train.precision != "auto" or not file.is_file():
        return experiment
    return experiment.model_copy(
        update={
            "train": experiment.train.model_copy(
                update={"precision": load_experiment(file).train.precision}
            )
        }
    )
