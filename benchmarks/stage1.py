"""The full-size Stage 1 run as tables: epochs, test metrics beside goals and the oracle, real
beside synthetic patients, time and memory.

Reads what a finished and evaluated run folder holds (training_log.json, metrics.json) and, for what
the same run would take naively, the throughput benchmark of the same precision.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.publish import COLORS, Panel, axes_pair, draw_panel, publish, save, tell
from benchmarks.harness.stamp import RESULTS, stamp
from embedcache.cache.reader import Cache, open_cache
from embedcache.config import SPLITS
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks stage1", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        help="a run folder that jobs.evaluate_model has evaluated with --oracle",
    )
    parser.add_argument(
        "--trained-at", required=True, metavar="COMMIT", help="the commit that trained it"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="the run's cache, to fit the baselines to the same train rows (minutes)",
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "stage1.json")
    arguments = parser.parse_args(words)
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
        found["baselines"] = baselines(open_cache(arguments.cache), list(metrics["goals"]))
    throughput = arguments.json.with_name(f"throughput_{config['train']['precision']}.json")
    if throughput.is_file() and not found["changed"]:  # measured with the specified network
        found["stage1_hours"] = json.loads(throughput.read_text())["stage1_hours"]
    publish(arguments.json, found, as_markdown, draw)


def changes(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in which a run's training differs from configs/stage1.yaml: name and the
    run's value. A precision that was settled does not.
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
        for place, target in enumerate(cache.layout.targets):
            if target.column in columns:
                metrics = binary_metrics if target.kind == "binary" else regression_metrics
                found.setdefault(name, {})[target.column] = metrics(
                    rows.targets[test, place], baseline(cache, place, 0)[test]
                )
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


def as_markdown(found: dict[str, Any]) -> str:
    """Return the run as tables."""
    metrics, train = found["metrics"], found["train"]
    changed = "".join(
        " --set " + shlex.quote(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        for name, value in found["changed"].items()
    )
    lines = [
        "# Stage 1 at full size on the reference cohort",
        "",
        (
            f"`deepspeed --num_accelerators 1 jobs/train.py --config configs/stage1.yaml{changed}`,"
            f" then `jobs.evaluate_model --oracle`; trained at {found['trained_at']},"
            f" {found['date']}."
        ),
        (
            f"{found['hardware']['processor']}, {found['hardware']['cores']} cores, torch"
            f" {found['versions']['torch']}, {train['precision']}, mode {found['mode']}, lr"
            f" {found['optim']['lr']:g} (LoRA {found['optim']['lr_encoder']:g}),"
            f" {train['batch_rows']:,} rows per step."
        ),
        f"{found['metrics']['note']} The encoder is a stand-in with random weights.",
        "",
        (
            f"Training with validation: **{found['seconds'] / 60:.1f} min**, peak memory"
            f" {found['peak_rss_bytes'] / 2**30:.2f} GiB."
        ),
    ]
    if "stage1_hours" in found:
        padded, longest = (found["stage1_hours"][mode] for mode in ("naive_128", "naive_longest"))
        lines.append(
            f"The same steps with per-row encoding, extended from measured ones: {padded:,.0f} h"
            f" padded to 128 tokens, {longest:,.0f} h to the longest."
        )
    lines += [
        "",
        "## Epochs (validation patients)",
        "",
        "| " + " | ".join(EPOCH_COLUMNS) + " |",
        "|" + "---|" * len(EPOCH_COLUMNS),
    ]
    lines += [
        "| " + " | ".join(_cell(record[key]) for key in EPOCH_COLUMNS) + " |"
        for record in found["epochs"]
    ]
    lines += [
        "",
        (
            f"## Test: {metrics['num_rows']:,} rows of {metrics['num_groups']} patients that"
            f" training never saw, epoch {metrics['epoch']}"
        ),
        "",
    ]
    lines += [
        "| target | metric | value | goal | | noise-free oracle |",
        "|---|---|---|---|---|---|",
    ]
    for target, values in metrics["test"].items():
        for name, value in values.items():
            goal = metrics["goals"].get(target, {}).get(name)
            verdict = (
                ("", "")
                if goal is None
                else (f"{goal['goal']:g}", "pass" if goal["reached"] else "**FAIL**")
            )
            lines.append(
                f"| {target} | {name} | {_exact(value)} | {verdict[0]} | {verdict[1]} |"
                f" {_exact(metrics['oracle'][target][name])} |"
            )
    if "baselines" in found:
        lines += _beside_baselines(found["baselines"], metrics["test"])
    share = metrics["oracle_share"]["delta_EF_pct"]["r2"]
    said = "not defined" if share is None else f"{share:.1%} of the oracle's"
    lines += ["", f"R2 of delta_EF_pct is {said}.", "", "## Real and synthetic patients", ""]
    lines += [
        "| patients | rows | delta_EF_pct MAE | R2 | oracle's MAE | is_optimal AUROC |",
        "|---|---|---|---|---|---|",
    ]
    for real, entry in metrics["by"]["is_real"].items():
        ef, name = entry["delta_EF_pct"], "labelled real" if real == "true" else "synthetic"
        lines.append(
            f"| {name} ({entry['groups']}) | {entry['rows']:,} | {_cell(ef['mae'])} |"
            f" {_cell(ef['r2'])} | {_cell(entry['oracle']['delta_EF_pct']['mae'])} |"
            f" {_cell(entry['is_optimal']['auroc'])} |"
        )
    return "\n".join(lines) + "\n"


def _beside_baselines(found: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Return the run beside its baselines, fitted to the same train rows; trees are chosen by
    validation rows.
    """
    shown = [
        (column, metric)
        for column in next(iter(found.values()))
        for metric in ("mae", "r2", "auroc", "f1")
        if metric in ours[column]
    ]
    cells = {"**this run**": ours, **found}
    lines = [
        "",
        "## Beside what costs less, on the same rows",
        "",
        "| model | " + " | ".join(" ".join(each) for each in shown) + " |",
        "|---" * (1 + len(shown)) + "|",
    ]
    return lines + [
        f"| {name} | "
        + " | ".join(_cell(values[column][metric]) for column, metric in shown)
        + " |"
        for name, values in cells.items()
    ]


def _exact(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(value: float | None) -> str:
    if value is None:  # a metric that the rows do not define
        return "-"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.3f}"
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the validation error of each epoch, and the test error beside its goal, the baselines
    and what can be reached.
    """
    metrics, column = found["metrics"], "delta_EF_pct"
    figure, (left, right) = axes_pair(11.0, 3.8, columns=2)
    left.plot(
        [record["epoch"] for record in found["epochs"]],
        [record["ef_mae"] for record in found["epochs"]],
        "o-",
        color=COLORS["ours"],
    )
    left.axvline(
        metrics["epoch"],
        color=COLORS["mid"],
        linewidth=1.0,
        linestyle=":",
        label=f"epoch of the least loss: {metrics['epoch']}",
    )
    left.set(
        xlabel="epoch",
        ylabel="mean absolute error of the change\nin ejection fraction, %",
        ylim=(0, None),
    )
    left.set_title(f"validation patients, {found['seconds'] / 60:.0f} min in all", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    errors = {
        "this run": metrics["test"][column]["mae"],
        **{name: values[column]["mae"] for name, values in found.get("baselines", {}).items()},
    }
    limits = {
        "goal": metrics["goals"][column]["mae"]["goal"],
        "noise-free outcome": metrics["oracle"][column]["mae"],
    }
    unit = "mean absolute error of the change in ejection fraction, %"
    draw_panel(
        right,
        Panel(f"test patients, {metrics['num_rows']:,} rows", unit, errors, limits),
        ours=("this run",),
    )
    save(figure, path)
