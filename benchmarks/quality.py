"""Is it any good? The model beside what costs a hundredth of it, on patients and on strings that
training never saw.

Every seed deals the patients (or strings) anew, draws new initial weights and another order of
rows, so the spread over seeds is that of a reader who repeats the whole study. The cohort is scaled
down and the network with it; the encoder is a stand-in with random weights. What is compared is
therefore the software and the questions one should ask of it: does it beat a mean per string, does
the string say more than its name, does LoRA add to frozen vectors.
"""

import tempfile
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from benchmarks.harness.publish import (
    Panel,
    draw_bars,
    heading,
    output_path,
    parser,
    publish,
    table,
    tell,
    with_kept,
)
from benchmarks.harness.setting import SMALL_NETWORK, experiment_of, make_setting, recipe_of, world
from benchmarks.harness.stamp import stamp
from embedcache.build.decide import Existing, build_cache
from embedcache.cache.reader import Cache, open_cache
from embedcache.config import SPLITS
from fusionnet.config import ModelConfig
from fusionnet.evaluation.baselines import BASELINES
from fusionnet.experiment import Experiment
from fusionnet.metrics import task_metrics
from fusionnet.model.forward import forward_rows, to_units
from fusionnet.rows.tensors import load_rows
from fusionnet.train.loop import RunFiles, Trainer, make_trainer, run_epoch
from fusionnet.train.resume import Position
from fusionnet.train.sizing import settled_precision
from jobs.cohort.generate import cohort_frames

SHOWN = (("delta_EF_pct", "mae"), ("delta_EF_pct", "r2"), ("is_optimal", "auroc"))
STRATEGIES = {
    "patients left out": (),
    "strings left out": (
        "split.strategy=leave_strings_out",
        "split.folds=7",
        "split.train_folds=5",
        "split.validation_folds=1",
    ),
}
TRAINING = ("train.batch_rows=384", "optim.warmup_epochs=2", "optim.lr_encoder=0.0002")
REFERENCE = "LoRA, CLS, joint fusion"
ORACLE = "noise-free outcome: the best that can be reached"


@dataclass(frozen=True)
class Size:
    """How large a study is."""

    encoder: str
    rows_per_patient: int
    epochs: int
    seeds: int
    network: tuple[str, ...]


# 300 steps
FULL = Size(
    "middle", 180, 15, 3, ("model.fusion_width=256", "model.num_layers=2", "model.feedforward=1024")
)
QUICK = Size("tiny", 24, 2, 1, (*SMALL_NETWORK, "train.batch_rows=128"))


def main(words: list[str]) -> None:
    """Run all models on all splits and write benchmarks/results/quality.json, .md and .png."""
    options = parser("quality", __doc__)
    options.add_argument(
        "--only", choices=STRATEGIES, help="run one split; the other stays as the file has it"
    )
    arguments = options.parse_args(words)
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "encoder": size.encoder,
        "epochs": size.epochs,
        "seeds": size.seeds,
    }
    found["precision"] = settled_precision("auto", world())
    output = output_path("quality", arguments)
    fresh: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        make_setting(Path(name), size.encoder, size.rows_per_patient)
        oracle = pl.concat(list(cohort_frames(60, size.rows_per_patient, 0, False)))
        for split, overrides in STRATEGIES.items():
            if arguments.only in (None, split):
                fresh[split] = study(Path(name), size, split, overrides, oracle)
    publish(
        output,
        {**found, "splits": with_kept(output, "splits", fresh, STRATEGIES)},
        as_markdown,
        draw,
    )


def variants() -> dict[str, tuple[str, ...]]:
    """Return the models by name, as overrides of the reference; every kind of fusion that the
    config knows takes part.
    """
    kinds = typing.get_args(ModelConfig.model_fields["fusion"].annotation)
    return {
        REFERENCE: (),
        "frozen, CLS, joint fusion": ("encoder.mode=frozen",),
        "LoRA, mean, joint fusion": ("encoder.pooling=mean",),
        **{
            f"LoRA, CLS, {kind} fusion": (f"model.fusion={kind}",)
            for kind in kinds
            if kind != "joint"
        },
        "LoRA, CLS, joint fusion, no feature noise": ("model.feature_noise={}",),
        "LoRA, CLS, joint fusion, linear skip": ("model.linear_skip=true",),
        "LoRA, CLS, modality fusion, linear skip, no feature noise": (
            "model.fusion=modality",
            "model.linear_skip=true",
            "model.feature_noise={}",
        ),
    }


def study(
    folder: Path, size: Size, split: str, overrides: tuple[str, ...], oracle: pl.DataFrame
) -> dict[str, Any]:
    """Return each model's metrics on the test rows, one per seed."""
    models: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, int]] = []
    for seed in range(size.seeds):
        common = (
            *TRAINING,
            *size.network,
            f"train.epochs={size.epochs}",
            f"train.seed={seed}",
            f"split.seed={seed}",
            f"split.rotation={seed}",
            *overrides,
        )
        for name, changes in variants().items():
            started = time.perf_counter()
            experiment = _cached(folder, [*common, *changes])
            models.setdefault(name, []).append(
                {**fit(experiment), "seconds": time.perf_counter() - started}
            )
            tell(f"{split}, seed {seed}: {name}")
        cache = open_cache(_cached(folder, [*common]).cache.path)
        rows.append(
            dict(zip(SPLITS, np.bincount(cache.rows().split, minlength=3).tolist(), strict=True))
        )
        for name, baseline in BASELINES.items():
            started = time.perf_counter()
            predictions = {
                column: baseline(cache, _target(cache, column), seed)
                for column in dict.fromkeys(column for column, _ in SHOWN)
            }
            models.setdefault(name, []).append(
                {**_score(cache, experiment, predictions), "seconds": time.perf_counter() - started}
            )
        best = {
            column: oracle[column].cast(pl.Float64).to_numpy()
            for column in dict.fromkeys(column for column, _ in SHOWN)
        }
        models.setdefault(ORACLE, []).append(_score(cache, experiment, best))
    return {"rows": rows, "models": {name: _gathered(results) for name, results in models.items()}}


def _cached(folder: Path, overrides: list[str]) -> Experiment:
    """Return the experiment with its cache built."""
    mode = "frozen" if "encoder.mode=frozen" in overrides else "per_step"
    experiment = experiment_of(folder, mode, "auto", overrides)
    build_cache(
        experiment.data,
        experiment.targets,
        experiment.split,
        experiment.encoder,
        experiment.cache,
        existing=Existing.OVERWRITE,
    )
    return experiment


def fit(experiment: Experiment) -> dict[str, dict[str, float | None]]:
    """Train a model and return its test metrics at the epoch of the lowest validation loss."""
    cache = open_cache(experiment.cache.path)
    trainer = make_trainer(recipe_of(experiment, cache), experiment.optim, cache, world())
    # nothing is written: checkpoints inside an epoch are off
    files = RunFiles(Path(experiment.run.dir), experiment.run.name, {}, {})
    best, predictions = float("inf"), None
    for epoch in range(experiment.train.epochs):
        record = run_epoch(trainer, Position(epoch), files)
        if record["val_loss"] < best or predictions is None:
            best, predictions = record["val_loss"], _predict(trainer, cache)
    test = load_rows(cache, "test")
    return task_metrics(trainer.recipe.tasks, test.targets.numpy().astype(np.float64), predictions)


def _predict(trainer: Trainer, cache: Cache) -> Float[np.ndarray, "N T"]:
    """Return the test rows' predictions in raw units."""
    rows = load_rows(cache, "test", world().device)
    with trainer.model.autocast():
        tables = [source.vectors_of_all_strings() for source in trainer.sources]
    outputs = forward_rows(trainer.model, tables, rows, trainer.recipe.train.eval_batch_rows)
    return to_units(outputs, trainer.recipe.tasks, cache.scaling).cpu().numpy().astype(np.float64)


def _target(cache: Cache, column: str) -> int:
    return [target.column for target in cache.layout.targets].index(column)


def _score(
    cache: Cache, experiment: Experiment, predictions: dict[str, Float[np.ndarray, " N"]]
) -> dict[str, dict[str, float | None]]:
    """Return the test metrics of predictions for the whole table, by target column."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    tasks = [
        next(task for task in experiment.tasks if task.column == column) for column in predictions
    ]
    targets = np.stack(
        [rows.targets[test, _target(cache, column)] for column in predictions], axis=1
    ).astype(np.float64)
    return task_metrics(
        tasks, targets, np.stack([values[test] for values in predictions.values()], axis=1)
    )


def _gathered(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shown metrics, each with its values over seeds."""
    found: dict[str, Any] = {
        f"{column} {metric}": [result[column][metric] for result in results]
        for column, metric in SHOWN
    }
    if "seconds" in results[0]:
        found["seconds"] = [result["seconds"] for result in results]
    return found


def mean_sd(values: list[float | None]) -> tuple[float, float] | None:
    """Return mean and standard deviation over seeds (0 where there is one), None where no seed has
    a value.
    """
    known = [value for value in values if value is not None]
    return (
        (float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0)
        if known
        else None
    )


def as_markdown(found: dict[str, Any]) -> str:
    """Return one table per split."""
    lines = heading(
        f"Quality on the reference cohort, scaled down: {found['seeds']} seeds, {found['epochs']}"
        f" epochs, encoder of {found['encoder']} size"
        + (f", {found['precision']}" if "precision" in found else ""),
        found,
        "Test rows; mean and standard deviation over seeds, each of which deals patients or strings"
        " anew. Brackets: mean difference to the first line, seed by seed. The cohort is synthetic"
        " and the encoder a stand-in with random weights: what real polyBERT adds is not in these"
        " numbers.",
    )
    for split, result in found["splits"].items():
        sizes = " / ".join(f"{count:,}" for count in result["rows"][0].values())
        lines += [
            f"## {split}",
            "",
            f"{sizes} train / validation / test rows in the first seed.",
            "",
        ]
        reference = result["models"][REFERENCE]
        cells = []
        for name, model in result["models"].items():
            seconds = f"{np.mean(model['seconds']):,.0f}" if "seconds" in model else ""
            cells.append(
                (
                    name,
                    *(
                        _cell(model[f"{column} {metric}"], reference[f"{column} {metric}"])
                        for column, metric in SHOWN
                    ),
                    seconds,
                )
            )
        lines += [
            *table(
                ("model", *(f"{column} {metric}" for column, metric in SHOWN), "seconds"), cells
            ),
            "",
        ]
    return "\n".join(lines)


def _cell(values: list[float | None], reference: list[float | None]) -> str:
    found = mean_sd(values)
    if found is None:
        return "undefined"
    differences = [
        own - other
        for own, other in zip(values, reference, strict=True)
        if own is not None and other is not None
    ]
    beside = f" ({np.mean(differences):+.3f})" if differences and values != reference else ""
    return f"{found[0]:.3f} ± {found[1]:.3f}{beside}"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the error of every model, one panel per split; the noise-free outcome's is a line that
    no model can cross.
    """
    panels = []
    for split, result in found["splits"].items():
        errors = {
            name: mean_sd(model["delta_EF_pct mae"]) or (0.0, 0.0)
            for name, model in result["models"].items()
        }
        best = errors.pop(ORACLE)[0]
        unit = (
            "mean absolute error of the change in ejection fraction, %\n(lines: standard deviation"
            " over seeds)"
        )
        panels.append(
            Panel(
                split,
                unit,
                {name: (mean, mean - sd, mean + sd) for name, (mean, sd) in errors.items()},
                {ORACLE.split(":")[0]: best},
            )
        )
    draw_bars(path, panels, ours=list(variants()))
