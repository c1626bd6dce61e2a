"""An evaluation as plain text, for the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedcache.text import number, text_table, visible
from fusionnet.evaluation.bootstrap import Confidence
from fusionnet.evaluation.breakdown import Breakdown
from fusionnet.evaluation.chances import Chances
from fusionnet.evaluation.comparison_text import comparison_summary
from fusionnet.evaluation.coverage import Coverage
from fusionnet.evaluation.result import Evaluation
from fusionnet.metrics import Metrics, main_metrics, main_metrics_of, spread_metric
from fusionnet.trained.run import TrainedRun

MOST_NAMED = 12  # groups in one line
VERDICTS = {True: "pass", False: "FAIL", None: "undefined"}


def summary(run: TrainedRun, evaluation: Evaluation, records: Sequence[dict[str, Any]]) -> str:
    """Return every metric with its interval, goal, verdict and oracle, the baselines, and the
    spread by group.

    `records` are those of the epochs that the run has behind it.
    """
    lines = [
        *_heading(run, evaluation, records),
        *text_table(_metric_rows(run, evaluation), num_left=2),
        f"low, high: {what_intervals_mean(run, evaluation.confidence)}",
        *_beside(run, evaluation),
        *(coverage_in_words(column, each) for column, each in evaluation.intervals.items()),
        *_what_strings_cannot_promise(run, evaluation),
        *(chances_in_words(column, each) for column, each in evaluation.chances.items()),
    ]
    lines += [_spread(run, column, table) for column, table in evaluation.by.items()]
    if evaluation.comparison is not None:
        lines.append(comparison_summary(evaluation.comparison, main_metrics_by_column(run)))
    return "\n".join(visible(part) for line in lines for part in line.split("\n"))


def beside_rows(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, list[float | None]]]:
    """Return (name, primary tasks' main metrics) of the model, of each baseline, of the oracle."""

    def row(name: str, metrics: dict[str, Metrics]) -> tuple[str, list[float | None]]:
        main = main_metrics(run.tasks)
        return name, [metrics.get(task.column, {}).get(metric) for task, metric in main]

    rows = [row("this model", evaluation.metrics)]
    rows += [row(name, metrics) for name, metrics in evaluation.parts.items()]
    rows += [row(name, metrics) for name, metrics in evaluation.baselines.items()]
    return rows + ([] if evaluation.oracle is None else [row("oracle", evaluation.oracle)])


def ended_early(run: TrainedRun, records: Sequence[dict[str, Any]]) -> str:
    """Return what to know of a run with fewer epochs than its config says, "" for others."""
    epochs = run.recipe.train.epochs
    if len(records) >= epochs:
        return ""
    behind = f"{len(records)} of {epochs} epochs behind it"
    if "stopped" in records[-1]:
        return f"The training ended with {behind}: {records[-1]['stopped']}."
    return f"The run has {behind}: evaluate it again when its training is finished."


def without_labels(run: TrainedRun, evaluation: Evaluation) -> str:
    """Return which targets no evaluated row has a label for, "" where there are none."""
    seen = np.isfinite(evaluation.targets).any(0)
    missing = [task.column for task, is_seen in zip(run.tasks, seen, strict=True) if not is_seen]
    if not missing:
        return ""
    names = ", ".join(missing)
    return f"No {evaluation.split} row has a label for {names}: there are no metrics of it."


def _heading(
    run: TrainedRun, evaluation: Evaluation, records: Sequence[dict[str, Any]]
) -> list[str]:
    """Return what was evaluated, and what a reader must know of it."""
    groups = f" of {evaluation.num_groups:,} {run.data.group}" if evaluation.num_groups else ""
    lines = [
        f"{run.folder}: {len(evaluation.targets):,} {evaluation.split} rows{groups}, checkpoint"
        f" '{run.moment}' (epoch {run.epoch})"
    ]
    if note := ended_early(run, records):
        lines.append(f"NOTE  {note}")
    if note := without_labels(run, evaluation):
        lines.append(f"NOTE  {note}")
    if evaluation.remark:
        lines.append(f"NOTE  {evaluation.remark}.")
    if run.note:
        lines.append(f"NOTE  {run.note}")
    if run.standin:
        lines.append(
            "NOTE  The encoder is a STAND-IN without published weights: the numbers show the"
            " software, not the chemistry."
        )
    if run.layout.absent_targets:
        absent = ", ".join(run.layout.absent_targets)
        lines.append(f"not trained, since the table has no labels: {absent}")
    return lines


def _metric_rows(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return one row of cells per metric of each target, below their head.

    Columns of which no metric has a cell, as the oracle's where there is none, are left out.
    """
    heads = ("target", "metric", "value", "low", "high", "goal", "", "oracle", "share")
    rows: list[tuple[str, ...]] = [heads]
    for task in run.tasks:
        goals = {
            metric: (number(goal), VERDICTS[reached])
            for metric, goal, reached in evaluation.verdicts(run, task.column)
        }
        oracle = (evaluation.oracle or {}).get(task.column, {})
        for metric, value in evaluation.metrics[task.column].items():
            share = evaluation.oracle_share(task.column) if metric == "r2" else None
            bounds = evaluation.confidence.of(task.column, metric)
            rows.append(
                (
                    task.column,
                    metric,
                    number(value),
                    *(("", "") if bounds is None else map(number, bounds)),
                    *goals.get(metric, ("", "")),
                    number(oracle.get(metric), none=""),
                    "" if share is None else f"{share:.1%}",
                )
            )
    filled = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    return [tuple(row[column] for column in filled) for row in rows]


def main_metrics_by_column(run: TrainedRun) -> dict[str, tuple[str, ...]]:
    """Return the two main metrics of each target."""
    return {task.column: main_metrics_of(task) for task in run.tasks}


def what_intervals_mean(run: TrainedRun, found: Confidence) -> str:
    """Return what the intervals of metrics are, and what they do not mean, in words."""
    if found.reason:
        return f"none, {found.reason}."
    unit = "rows" if found.unit == "row" else f"values of {found.unit}"
    others = [spec.name for spec in run.layout.strings if spec.name != found.unit]
    other = f", nor for {' and '.join(others)} strings that training never saw" if others else ""
    return (
        f"{found.level:.0%} intervals of the metrics, from drawing the {found.num_units:,} {unit}"
        f" anew {found.replicates:,} times (bootstrap): they hold for new {unit} that are like"
        f" these, not for another seed of the training{other}."
    )


def _beside(run: TrainedRun, evaluation: Evaluation) -> list[str]:
    """Return the model beside its baselines, nothing where there are none."""
    if not (evaluation.baselines or evaluation.parts):
        return []
    heads = [f"{task.column} {metric}" for task, metric in main_metrics(run.tasks)]
    rows = [(name, *map(number, values)) for name, values in beside_rows(run, evaluation)]
    table = text_table([("beside baselines", *heads), *rows])
    remark = [evaluation.baselines_remark] if evaluation.baselines_remark else []
    return ["", *table, *remark, ""]


def coverage_in_words(column: str, found: Coverage) -> str:
    """Return what the intervals of a target promise and hold, in a line."""
    if found.covered is None:
        return f"{column}: no row with a label for its intervals"
    kind = "intervals" if found.mean_size is None else "sets"
    text = f"{found.promised:.0%} {kind} of {column} hold {found.covered:.1%} of its labels"
    for worst in found.worst:
        text += f", {worst.covered:.1%} in the worst {worst.column} ({worst.value})"
    if found.mean_size is not None:
        text += f"; {number(found.mean_size)} classes on average"
    elif found.mean_width is None:
        return f"{text}; some have no end"
    else:
        text += f"; mean width {number(found.mean_width)}"
    if found.oracle_width is not None:
        text += f", {number(found.oracle_width)} around noise-free outcomes"
    if found.left_out is not None:
        text += (
            f"; of each measured {found.unit}, by the others' errors, {found.left_out.mean:.0%}, of"
            f" the worst {found.left_out.least:.0%}"
        )
    return f"{text}; guaranteed for a new {found.unit}: {found.guaranteed:.0%}"


def _what_strings_cannot_promise(run: TrainedRun, evaluation: Evaluation) -> list[str]:
    """Return what the guarantee of intervals supposes, where that is bold: of strings left out."""
    strings = {spec.name for spec in run.layout.strings}
    units = {each.unit for each in evaluation.intervals.values()}
    return [
        f"NOTE  that a new {unit} is drawn like those that were measured is a hope: each has a"
        " chemistry of its own, and nothing is guaranteed of what is of another kind"
        for unit in sorted(units & strings)
    ]


def chances_in_words(column: str, found: Chances) -> str:
    """Return how far a target's probabilities are off, and what the best threshold gives."""
    if found.ece is None:
        return f"{column}: no row with a label for its probabilities"
    text = (
        f"probabilities of {column}: off by {found.ece:.3f} on average (ECE), at temperature"
        f" {found.temperature:.2f}"
    )
    if found.threshold is None:
        return text
    metrics = ", ".join(
        f"{name} {number(found.at_threshold[name])}" for name in ("f1", "recall", "precision")
    )
    return f"{text}; above {found.threshold:.3f}, the best F1 on the rows that told it: {metrics}"


def _spread(run: TrainedRun, column: str, table: Breakdown) -> str:
    """Return how the first task's first metric varies over the values of one column."""
    task = run.tasks[0]
    metric = spread_metric(task)
    what = f"{task.column} {metric} by {column}"
    measured = {value: entry[task.column][metric] for value, entry in table.items()}
    found = {value: each for value, each in measured.items() if each is not None}
    if not found:
        return f"{what}: undefined"
    if len(found) <= MOST_NAMED:
        return f"{what}: " + ", ".join(f"{value} {each:.3f}" for value, each in found.items())
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return f"{what}: {found[low]:.3f} ({low}) to {found[high]:.3f} ({high}), {len(found):,} values"
