"""Train a model from a cache: `deepspeed jobs/train.py --config C`, or torchrun, or srun, or plain
python for one process (see configs/launch/).
"""

import jobs  # noqa: F401  # isort: skip  (before torch; a script does not import its package by itself)
import shutil
import time
from pathlib import Path
from typing import Any

from embedcache.errors import RunError
from fusionnet.assemble import Recipe, count_trainable, observed_tasks
from fusionnet.config import PrecisionName
from fusionnet.export import export_run
from fusionnet.precision import multiplies_bf16
from fusionnet.train.engine import World
from fusionnet.train.loop import RunFiles, Trainer, make_trainer, train_run
from fusionnet.train.runlog import peak_rss_bytes
from jobs.command import config_parser, run_job
from jobs.experiment import Experiment, experiment_of, load_experiment, open_checked_cache


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
        print(_summary(trainer, asked))
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


def _summary(trainer: Trainer, asked: PrecisionName) -> str:
    """Return what is about to be trained, in a screen; `asked` is the config's precision."""
    layout, plan, train = trainer.cache.layout, trainer.plan, trainer.recipe.train
    device = trainer.world.device
    precision = f"{train.precision} (auto)" if asked == "auto" else train.precision
    lines = [
        f"cache      {trainer.cache.path}: {layout.num_rows:,} rows, "
        + ", ".join(f"{spec.num_strings:,} distinct {spec.name}" for spec in layout.strings)
    ]
    for spec in layout.strings:
        if spec.standin:
            lines.append(
                f"encoder    {spec.encoder.source} ({spec.name}) is a STAND-IN without published"
                " weights: results show the software, not the chemistry"
            )
    if layout.absent_targets:
        lines.append(
            f"tasks      not in the table, hence not trained: {', '.join(layout.absent_targets)}"
        )
    lines += [
        (
            f"training   {plan.num_rows:,} rows, {train.epochs} epochs x {plan.steps_per_epoch}"
            f" steps of up to {plan.batch_rows:,} rows, {trainer.world.size} rank(s) x"
            f" {plan.num_micro_batches} micro-batches, {precision}, mode {trainer.recipe.mode},"
            f" ZeRO stage {train.zero_stage_of(trainer.world.size)}"
        ),
        f"rows       {trainer.train_rows.order}",
    ]
    if train.precision == "bf16" and not multiplies_bf16(device):
        lines.append(
            f"NOTE       this {device.type.upper()} has no instructions for bf16 and emulates it:"
            " train.precision=auto or fp32 is faster here"
        )
    lines.append(f"{'component':34} {'parameters':>12} {'trainable':>12} {'specification':>14}")
    for component, parameters, trainable, specified in trainer.model.parameter_table():
        lines.append(f"{component:34} {parameters:>12,} {trainable:>12,} {specified or '-':>14}")
    lines.append(
        f"{'total':34} {sum(p.numel() for p in trainer.model.parameters()):>12,}"
        f" {count_trainable(trainer.model):>12,} {'~88M / ~2.3M':>14}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_job(main)
