"""A self-contained HTML page of one evaluated run: what the numbers are, what they are to be
measured against, and where they fail.

Plots (`plots`) are inlined, so that the page can be mailed; values are shown to the digits that
matter; every table says what its rows are.
"""

import base64
import json
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2
import yaml

from embedcache.files import write_atomically
from fusionnet.config import Task
from fusionnet.evaluation.evaluate import Evaluation, output_name
from fusionnet.evaluation.plots import draw_plots
from fusionnet.metrics import BINARY_METRICS, REGRESSION_METRICS, reaches
from fusionnet.trained.run import TrainedRun

NONE = "\N{EN DASH}"
MOST_TABLE_ROWS = 60
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "f1": "F1",
    "recall": "recall",
    "precision": "precision",
}
ERRORS = ("mae", "rmse")  # in the target's unit; less is better
SHOWN = {"regression": ("mae", "r2"), "binary": ("auroc", "f1")}  # where there is room for two


def write_report(run: TrainedRun, evaluation: Evaluation) -> Path:
    """Write plots/*.png and report.html into the run folder and return the page's path; other
    splits than test get names of their own.
    """
    records = _all_records(run)
    plots = draw_plots(
        run, evaluation, records, run.folder / output_name("plots", evaluation.split)
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    template = environment.from_string(
        resources.files("fusionnet.evaluation")
        .joinpath("report.html.j2")
        .read_text(encoding="utf-8")
    )
    primary = primary_tasks(run)
    page = template.render(
        run=run,
        evaluation=evaluation,
        records=records,
        titles=TITLES,
        facts=_facts(run, evaluation),
        goals=_goal_lines(run, evaluation),
        regressions=[
            _target_line(run, evaluation, task, REGRESSION_METRICS)
            for task in run.tasks
            if task.kind == "regression"
        ],
        binaries=[
            _target_line(run, evaluation, task, BINARY_METRICS)
            for task in run.tasks
            if task.kind == "binary"
        ],
        plots=[
            (plot.title, plot.remark, base64.b64encode(plot.path.read_bytes()).decode())
            for plot in plots
        ],
        history=[
            (f"{task.column} {TITLES[metric]}", f"{task.name}_{metric}")
            for task in primary
            for metric in SHOWN[task.kind]
        ],
        group_heads=[(task, TITLES[metric]) for task in primary for metric in SHOWN[task.kind]],
        groups=[
            _group_table(run, evaluation, column, table) for column, table in evaluation.by.items()
        ],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )
    path = run.folder / f"{output_name('report', evaluation.split)}.html"
    write_atomically(path, page.encode())
    return path


def _all_records(run: TrainedRun) -> list[dict[str, Any]]:
    """Return the records of all epochs: the log's, if it goes on where the checkpoint's end, as it
    does after the best epoch.
    """
    log = run.folder / "training_log.json"
    records = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else []
    return records if records[: len(run.records)] == run.records else run.records


def primary_tasks(run: TrainedRun) -> list[Task]:
    """Return the tasks of the largest weight."""
    heaviest = max(task.weight for task in run.tasks)
    return [task for task in run.tasks if task.weight == heaviest]


def number(value: float | None) -> str:
    """Return a number to about four significant digits, a dash for none."""
    if value is None:
        return NONE
    size = abs(value)
    return (
        f"{value:,.1f}"
        if size >= 100
        else f"{value:.2f}"
        if size >= 10
        else f"{value:.3f}"
        if size >= 0.1
        else f"{value:.4f}"
    )


def _facts(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return what was evaluated, as (what, text)."""
    layout, train = run.layout, run.recipe.train
    groups = f" of {evaluation.num_groups:,} {run.data.group}" if evaluation.num_groups else ""
    split = run.config["split"]["strategy"]
    encoders = {
        spec.encoder.source: f"{spec.encoder.source}, {spec.pooling} pooling"
        for spec in layout.strings
    }
    return [
        (
            "rows",
            (
                f"{len(evaluation.targets):,} {evaluation.split} rows{groups}, out of"
                f" {layout.num_rows:,} in {run.data.title}"
            ),
        ),
        (
            "split",
            f"{split}"
            + (f": no {run.data.group} is in more than one split" if split == "group" else ""),
        ),
        (
            "strings",
            ", ".join(f"{spec.num_strings:,} distinct {spec.column}" for spec in layout.strings),
        ),
        ("encoder", f"{', '.join(encoders.values())}; trained in mode {run.recipe.mode}"),
        (
            "checkpoint",
            (
                f"{run.moment}: epoch {run.epoch} of {train.epochs}, {train.precision} training,"
                " fp32 evaluation"
            ),
        ),
    ]


def _goal_lines(run: TrainedRun, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one entry per goal: what, value, goal, verdict, the oracle's value and whether even
    the oracle misses the goal.
    """
    lines = []
    for task in run.tasks:
        for metric, goal, reached in evaluation.verdicts(run, task.column):
            best = (evaluation.oracle or {}).get(task.column, {}).get(metric)
            unit = f" {task.unit}" if task.unit and metric in ERRORS else ""
            lines.append(
                {
                    "what": f"{task.column} {TITLES[metric]}",
                    "unit": unit,
                    "value": evaluation.metrics[task.column][metric],
                    "sign": "<" if metric in ERRORS else ">",
                    "goal": goal,
                    "reached": reached,
                    "oracle": best,
                    "out_of_reach": reaches(metric, best, goal) is False,
                }
            )
    return lines


def _target_line(
    run: TrainedRun, evaluation: Evaluation, task: Task, metrics: tuple[str, ...]
) -> dict[str, Any]:
    """Return one target's metrics beside the oracle's."""
    place = run.tasks.index(task)
    oracle = (evaluation.oracle or {}).get(task.column, {})
    return {
        "task": task,
        "labels": int((evaluation.targets[:, place] == evaluation.targets[:, place]).sum()),
        "pairs": [
            (evaluation.metrics[task.column][metric], oracle.get(metric)) for metric in metrics
        ],
        "share": evaluation.oracle_share(task.column),
    }


def _group_table(
    run: TrainedRun, evaluation: Evaluation, column: str, table: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the break-down by one column: (value, rows, groups, metrics) per value, and mean and
    spread over values.
    """
    metrics = [(task.column, metric) for task in primary_tasks(run) for metric in SHOWN[task.kind]]
    lines = [
        (
            value,
            entry["rows"],
            entry.get("groups"),
            [entry[target][metric] for target, metric in metrics],
        )
        for value, entry in table.items()
    ]
    columns = [
        [line[3][place] for line in lines if line[3][place] is not None]
        for place in range(len(metrics))
    ]
    return {
        "column": column,
        "lines": lines[:MOST_TABLE_ROWS],
        "num_values": len(lines),
        "mean": [fmean(values) if values else None for values in columns],
        "spread": [stdev(values) if len(values) > 1 else None for values in columns],
        "has_groups": evaluation.num_groups > 0 and column != run.data.group,
    }
