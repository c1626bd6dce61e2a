"""The full-size Stage 1 run as tables: epochs, test metrics beside goals and the oracle, real
beside synthetic patients, time and memory.

Reads what a finished and evaluated run folder holds (training_log.json, metrics.json) and, for what
the same run would take naively, the throughput benchmark of the same precision.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.cells import Column, Table, gib, named, number
from benchmarks.harness.pictures import COLORS, Panel
from benchmarks.harness.publish import Report, publish, tell
from benchmarks.harness.stamp import RESULTS, stamp
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.split import SPLITS
from embedcache.errors import UserError
from fusionnet.evaluation.baselines import BASELINES
from fusionnet.experiment import load_experiment
from fusionnet.metrics import binary_metrics, regression_metrics

SPECIFIED = Path(__file__).resolve().parents[1] / "configs" / "stage1.yaml"
EPOCH_COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "ef_mae",
    "ef_r2",
    "opt_auroc",
    "opt_f1",
    "seconds",
    "rows_per_s",
)


def main(words: list[str]) -> None:
    """Write benchmarks/results/stage1.json, .md and .png."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks stage1", description=" ".join((__doc__ or "").split())
    )
    run = "a run folder that jobs.evaluate_model has evaluated with --oracle"
    options.add_argument("--run", type=Path, required=True, help=run)
    commit = "the commit that trained it"
    options.add_argument("--trained-at", required=True, metavar="COMMIT", help=commit)
    cache = "the run's cache, to fit the baselines to the same train rows (minutes)"
    options.add_argument("--cache", type=Path, help=cache)
    options.add_argument("--json", type=Path, default=RESULTS / "stage1.json")
    arguments = options.parse_args(words)
    config, records, metrics = (
        _read(arguments.run, name)
        for name in ("*_config.yaml", "training_log.json", "metrics.json")
    )
    found = {
        **stamp(),
        "trained_at": arguments.trained_at,
        "train": config["train"],
        "optim": config["optim"],
        "changed": changes(config),
        "mode": metrics["mode"],
        "seconds": sum(record["seconds"] for record in records),
        "peak_rss_bytes": max(record["peak_rss_bytes"] for record in records),
        "epochs": [{key: record[key] for key in EPOCH_COLUMNS} for record in records],
        "metrics": metrics,
    }
    if arguments.cache is not None:
        tell("now fitting the baselines")
        found["baselines"] = baselines(open_cache(arguments.cache), list(metrics["goals"]))
    throughput = arguments.json.with_name(f"throughput_{config['train']['precision']}.json")
    if throughput.is_file() and not found["changed"]:  # measured with the specified network
        found["stage1_hours"] = json.loads(throughput.read_text())["stage1_hours"]
    publish(arguments.json, found, report)


def changes(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with the run's values, that configs/stage1.yaml has otherwise.

    A precision that was settled at the start of the run is no difference.
    """
    specified = load_experiment(SPECIFIED).model_dump(mode="json")
    if specified["train"]["precision"] == "auto":
        specified["train"]["precision"] = config["train"]["precision"]
    return {
        f"{section}.{key}": value
        for section in ("split", "model", "loss", "optim", "train")
        for key, value in config[section].items()
        if value != specified[section].get(key)
    }


def baselines(
    cache: Cache, columns: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the metrics on the test rows of what a network must beat, by baseline and target."""
    rows = cache.rows()
    test = rows.split == SPLITS.index("test")
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, baseline in BASELINES.items():
        for index, target in enumerate(cache.layout.targets):
            if target.column in columns:
                metrics = binary_metrics if target.kind == "binary" else regression_metrics
                predicted = baseline(cache, index, 0)[test, 0]
                true = rows.targets[test, index]
                found.setdefault(name, {})[target.column] = metrics(true, predicted)
                tell(f"{name}: {target.column}")
    return found


def _read(run: Path, pattern: str) -> Any:
    file = next(iter(run.glob(pattern)), None)
    if file is None:
        raise UserError(
            f"{run} has no {pattern}: train, then run jobs.evaluate_model with --oracle"
        )
    return (
        yaml.safe_load(file.read_text()) if file.suffix == ".yaml" else json.loads(file.read_text())
    )


def report(found: dict[str, Any]) -> Report:
    """Return the run's epochs, and its test metrics beside goals, oracle and baselines."""
    metrics, train = found["metrics"], found["train"]
    blocks: list[str | Table] = [_took(found), "## Epochs (validation patients)"]
    blocks.append(Table([Column(key, key, _exact) for key in EPOCH_COLUMNS], found["epochs"]))
    blocks += [
        f"## Test: {metrics['num_rows']:,} rows of {metrics['num_groups']} patients that training"
        f" never saw, epoch {metrics['epoch']}",
        _test_table(metrics),
    ]
    if "baselines" in found:
        blocks += ["## Beside what costs less, on the same rows", _beside_baselines(found)]
    share = metrics["oracle_share"]["delta_EF_pct"]["r2"]
    said = "not defined" if share is None else f"{share:.1%} of the oracle's"
    blocks += [f"R2 of delta_EF_pct is {said}.", "## Real and synthetic patients"]
    blocks.append(Table(PATIENT_COLUMNS, metrics["by"]["is_real"].items()))
    how = (
        f"{train['precision']}, mode {found['mode']}, lr {found['optim']['lr']:g} (LoRA"
        f" {found['optim']['lr_encoder']:g}), {train['batch_rows']:,} rows per step."
    )
    return Report(
        "Stage 1 at full size on the reference cohort",
        (how, f"{metrics['note']} The encoder is a stand-in with random weights."),
        blocks,
        (partial(_draw_epochs, found), _test_panel(found)),
        size=(11.0, 3.8),
        made=f"{_command(found)}, then `jobs.evaluate_model --oracle`; trained at"
        f" {found['trained_at']}, {found['date']}",
    )


def _command(found: dict[str, Any]) -> str:
    """Return the command that trained the run."""
    changed = "".join(
        " --set " + shlex.quote(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        for name, value in found["changed"].items()
    )
    on_gpu = found["hardware"].get("gpu") is not None
    launcher = "python -m jobs.train" if on_gpu else "deepspeed --num_accelerators 1 jobs/train.py"
    return f"`{launcher} --config configs/stage1.yaml{changed}`"


def _took(found: dict[str, Any]) -> str:
    """Return time and memory in words."""
    text = (
        f"Training with validation: **{found['seconds'] / 60:.1f} min**, peak memory"
        f" {gib(found['peak_rss_bytes'])} GiB."
    )
    if "stage1_hours" in found:
        padded, longest = (found["stage1_hours"][mode] for mode in ("naive_128", "naive_longest"))
        text += (
            "\nThe same steps with per-row encoding, extended from measured ones:"
            f" {padded:,.0f} h padded to 128 tokens, {longest:,.0f} h to the longest."
        )
    return text


def _test_table(metrics: dict[str, Any]) -> Table:
    """Return every test metric beside its goal and what the noise-free outcome reaches."""
    rows = [
        {
            "target": target,
            "metric": metric,
            "value": value,
            "goal": metrics["goals"].get(target, {}).get(metric),
            "oracle": metrics["oracle"][target][metric],
        }
        for target, values in metrics["test"].items()
        for metric, value in values.items()
    ]
    columns = (
        Column("target", "target"),
        Column("metric", "metric"),
        Column("value", "value", ".4f"),
        Column("goal", lambda row: row["goal"] and row["goal"]["goal"], _blank_or("g")),
        Column("", lambda row: row["goal"] and row["goal"]["reached"], _verdict),
        Column("noise-free oracle", "oracle", ".4f"),
    )
    return Table(columns, rows)


def _beside_baselines(found: dict[str, Any]) -> Table:
    """Return the run beside its baselines, fitted to the same train rows.

    Trees are chosen by validation rows.
    """
    ours, baselines = found["metrics"]["test"], found["baselines"]
    columns = [Column("model", "name")]
    columns += [
        Column(f"{column} {metric}", f"{column}.{metric}", _exact)
        for column in next(iter(baselines.values()))
        for metric in ("mae", "r2", "auroc", "f1")
        if metric in ours[column]
    ]
    return Table(columns, named({"**this run**": ours, **baselines}))


def _exact(value: float | None) -> str:
    """Return a metric or loss with three decimals, larger numbers whole."""
    if value is None or isinstance(value, int) or abs(value) >= 100:
        return number(value)
    return f"{value:.3f}"


def _blank_or(form: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else format(value, form)


def _verdict(reached: bool | None) -> str:
    return "" if reached is None else "pass" if reached else "**FAIL**"


def _who(row: tuple[str, dict[str, Any]]) -> str:
    real, entry = row
    return f"{'labelled real' if real == 'true' else 'synthetic'} ({entry['groups']})"


PATIENT_COLUMNS = (
    Column("patients", _who),
    Column("rows", lambda row: row[1]["rows"]),
    Column("delta_EF_pct MAE", lambda row: row[1]["delta_EF_pct"]["mae"], _exact),
    Column("R2", lambda row: row[1]["delta_EF_pct"]["r2"], _exact),
    Column("oracle's MAE", lambda row: row[1]["oracle"]["delta_EF_pct"]["mae"], _exact),
    Column("is_optimal AUROC", lambda row: row[1]["is_optimal"]["auroc"], _exact),
)


def _draw_epochs(found: dict[str, Any], axes: Any) -> None:
    """Draw the validation error of each epoch."""
    epochs, best = found["epochs"], found["metrics"]["epoch"]
    errors = [record["ef_mae"] for record in epochs]
    axes.plot([record["epoch"] for record in epochs], errors, "o-", color=COLORS["ours"])
    style = {"color": COLORS["mid"], "linewidth": 1.0, "linestyle": ":"}
    axes.axvline(best, label=f"epoch of the least loss: {best}", **style)
    unit = "mean absolute error of the change\nin ejection fraction, %"
    axes.set(xlabel="epoch", ylabel=unit, ylim=(0, None))
    axes.set_title(f"validation patients, {found['seconds'] / 60:.0f} min in all", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _test_panel(found: dict[str, Any]) -> Panel:
    """Return the test error beside its goal, the baselines and what can be reached."""
    metrics, column = found["metrics"], "delta_EF_pct"
    errors = {
        "this run": metrics["test"][column]["mae"],
        **{name: values[column]["mae"] for name, values in found.get("baselines", {}).items()},
    }
    limits = {
        "goal": metrics["goals"][column]["mae"]["goal"],
        "noise-free outcome": metrics["oracle"][column]["mae"],
    }
    unit = "mean absolute error of the change in ejection fraction, %"
    title = f"test patients, {metrics['num_rows']:,} rows"
    return Panel(title, unit, errors, limits, ours=("this run",))
