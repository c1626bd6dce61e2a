"""Is it any good? The model beside what costs a hundredth of it, on patients and on strings that
training never saw.

Every seed splits the patients (or strings) anew, draws new initial weights and another order of
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

from benchmarks.harness.cells import Column, Table, counts, mean_and_sd, named
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell, with_kept
from benchmarks.harness.setting import SMALL_NETWORK, make_setting
from benchmarks.harness.stamp import stamp
from benchmarks.harness.stepper import world
from benchmarks.quality_fit import cached, fit, score, target_index
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.split import SPLITS
from fusionnet.config.model import ModelConfig
from fusionnet.evaluation.baselines import BASELINES
from fusionnet.experiment import Experiment
from fusionnet.train.sizing import settled_precision
from jobs.cohort.generate import cohort_frames

SHOWN = (("delta_EF_pct", "mae"), ("delta_EF_pct", "r2"), ("is_optimal", "auroc"))
KEYS = [f"{column} {metric}" for column, metric in SHOWN]
COLUMNS = list(dict.fromkeys(column for column, _ in SHOWN))
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
HOW = (
    "Test rows; mean and standard deviation over seeds, each of which splits patients or strings"
    " anew. Brackets: mean difference to the first line, seed by seed. The cohort is synthetic and"
    " the encoder a stand-in with random weights: what real polyBERT adds is not in these numbers."
)


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
    options = parser("quality", __doc__ or "")
    only = "run one split; the other stays as the file has it"
    options.add_argument("--only", choices=STRATEGIES, help=only)
    arguments = options.parse_args(words)
    size = QUICK if arguments.quick else FULL
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "encoder": size.encoder,
        "epochs": size.epochs,
        "seeds": size.seeds,
        "precision": settled_precision("auto", world()),
    }
    output = output_path("quality", arguments)
    fresh: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        make_setting(Path(name), size.encoder, size.rows_per_patient)
        oracle = pl.concat(list(cohort_frames(60, size.rows_per_patient, 0, False)))
        for split, overrides in STRATEGIES.items():
            if arguments.only in (None, split):
                fresh[split] = study(Path(name), size, split, overrides, oracle)
    splits = with_kept(output, "splits", fresh, STRATEGIES)
    publish(output, {**found, "splits": splits}, report)


def variants() -> dict[str, tuple[str, ...]]:
    """Return the models by name, as overrides of the reference.

    Every kind of fusion that the config knows takes part.
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
            tell(f"now fitting, {split}, seed {seed}: {name}")
            started = time.perf_counter()
            found = fit(cached(folder, [*common, *changes]))
            seconds = time.perf_counter() - started
            models.setdefault(name, []).append({**found, "seconds": seconds})
        experiment = cached(folder, [*common])
        cache = open_cache(experiment.cache.path)
        num_rows = np.bincount(cache.rows().split, minlength=len(SPLITS)).tolist()
        rows.append(dict(zip(SPLITS, num_rows, strict=True)))
        for name, scores in _baselines(cache, experiment, seed).items():
            models.setdefault(name, []).append(scores)
        best = {column: oracle[column].cast(pl.Float64).to_numpy() for column in COLUMNS}
        models.setdefault(ORACLE, []).append(score(cache, experiment, best))
    return {"rows": rows, "models": {name: _gathered(results) for name, results in models.items()}}


def _baselines(cache: Cache, experiment: Experiment, seed: int) -> dict[str, dict[str, Any]]:
    """Return the test metrics and seconds of what costs less."""
    found: dict[str, dict[str, Any]] = {}
    for name, baseline in BASELINES.items():
        started = time.perf_counter()
        predictions = {
            column: baseline(cache, target_index(cache, column), seed)[:, 0] for column in COLUMNS
        }
        scores = score(cache, experiment, predictions)
        found[name] = {**scores, "seconds": time.perf_counter() - started}
    return found


def _gathered(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shown metrics, each with its values over seeds."""
    found: dict[str, Any] = {}
    for (column, metric), key in zip(SHOWN, KEYS, strict=True):
        found[key] = [result[column][metric] for result in results]
    if "seconds" in results[0]:
        found["seconds"] = [result["seconds"] for result in results]
    return found


def mean_sd(values: list[float | None]) -> tuple[float, float] | None:
    """Return mean and standard deviation over seeds; None where no seed has a value.

    The standard deviation of a single value is 0.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0


def report(found: dict[str, Any]) -> Report:
    """Return one table per split, and the error of every model.

    The noise-free outcome's error is a line that no model can cross.
    """
    blocks: list[str | Table] = []
    panels = []
    for split, result in found["splits"].items():
        models = result["models"]
        columns = [Column("model", "name")]
        columns += [
            Column(
                key, lambda row, key=key, plain=models[REFERENCE]: (row[key], plain[key]), _beside
            )
            for key in KEYS
        ]
        columns.append(Column("seconds", lambda row: row.get("seconds"), _mean_seconds))
        blocks += [f"## {split}", f"{counts(result['rows'][0])} in the first seed."]
        blocks.append(Table(columns, named(models)))
        panels.append(_panel(split, models))
    precision = f", {found['precision']}" if "precision" in found else ""
    return Report(
        f"Quality on the reference cohort, scaled down: {found['seeds']} seeds, {found['epochs']}"
        f" epochs, encoder of {found['encoder']} size{precision}",
        (HOW,),
        blocks,
        panels,
    )


def _panel(split: str, models: dict[str, Any]) -> Panel:
    """Return the error of every model on a split."""
    errors = {name: mean_sd(model["delta_EF_pct mae"]) or (0, 0) for name, model in models.items()}
    best = errors.pop(ORACLE)[0]
    unit = (
        "mean absolute error of the change in ejection fraction, %\n(lines: standard deviation over"
        " seeds)"
    )
    bars = {name: (mean, mean - sd, mean + sd) for name, (mean, sd) in errors.items()}
    return Panel(split, unit, bars, {ORACLE.split(":")[0]: best}, ours=list(variants()))


def _beside(both: tuple[list[float | None], list[float | None]]) -> str:
    """Return a model's metric, and in brackets its mean difference to the reference's."""
    values, reference = both
    found = mean_sd(values)
    if found is None:
        return "undefined"
    differences = [
        own - other
        for own, other in zip(values, reference, strict=True)
        if own is not None and other is not None
    ]
    differs = bool(differences) and values != reference
    return mean_and_sd(found) + (f" ({np.mean(differences):+.3f})" if differs else "")


def _mean_seconds(seconds: list[float] | None) -> str:
    return "" if seconds is None else f"{np.mean(seconds):,.0f}"
