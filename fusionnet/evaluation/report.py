"""A self-contained HTML page of one evaluated run.

What the numbers are, what they are to be measured against, and where they fail. Plots (`plots`) are
inlined, so that the page can be mailed; values are shown to the digits that matter; every table
says what its rows are.
"""

import base64
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from embedcache.config.split import SPLITS
from embedcache.text import number, visible
from fusionnet.evaluation.comparison_text import (
    comparison_rows,
    rows_in_words,
    sentences,
    what_differences_mean,
)
from fusionnet.evaluation.explained import explanations
from fusionnet.evaluation.outputs import evaluation_files
from fusionnet.evaluation.plots import Drawing, draw_plots
from fusionnet.evaluation.provenance import costs, provenance
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.summary import (
    beside_rows,
    ended_early,
    main_metrics_by_column,
    what_intervals_mean,
    without_labels,
)
from fusionnet.metrics import METRICS, is_error, main_metrics, reaches, title, unit_of
from fusionnet.runfolder.listing import write_listed
from fusionnet.trained.run import TrainedRun
from fusionnet.yamlfile import to_yaml

MOST_TABLE_ROWS = 60
NO_ENCODER = "none: no language model reads the strings (encoder.mode none)"


class ShownBeside(NamedTuple):
    """What the page shows beside an evaluation."""

    live: Markup = Markup()  # the part in which the run itself predicts (`live.live_section`)
    explained: Markup = Markup()  # the section on what the run reads, if that is known
    drawings: Iterable[Drawing] = ()  # made when they are drawn, in the style of all others
    spent_s: Mapping[str, float] = MappingProxyType({})  # by phase of the evaluation
    peak_bytes: int = 0  # of its process; 0 is unknown


NOTHING_BESIDE = ShownBeside()


def write_report(
    run: TrainedRun,
    evaluation: Evaluation,
    records: list[dict[str, Any]],
    folder: Path,
    shown: ShownBeside = NOTHING_BESIDE,
) -> Path:
    """Write the plots and the page of an evaluation into a folder and return the page's path.

    `records` are the log's, of all epochs that the run has behind it.
    """
    files = evaluation_files(folder, evaluation.split)
    plots = draw_plots(run, evaluation, records, files.plots, shown.drawings)
    main = main_metrics(run.tasks)
    page = template().render(
        run=run,
        evaluation=evaluation,
        records=records,
        ended_early=ended_early(run, records),
        without_labels=without_labels(run, evaluation),
        facts=_facts(run, evaluation),
        goals=_goal_lines(run, evaluation),
        meanings=run.meanings,
        what_intervals_mean=what_intervals_mean(run, evaluation.confidence),
        **_comparison(run, evaluation),
        targets=[
            _target_table(run, evaluation, metrics)
            for kind in METRICS
            for metrics in dict.fromkeys(task.metrics for task in run.tasks if task.kind == kind)
        ],
        beside=beside_rows(run, evaluation),
        **_intervals(run, evaluation),
        plots=[(plot.title, plot.remark, base64.b64encode(plot.png).decode()) for plot in plots],
        main=[(task, metric, title(metric), unit_of(task, metric)) for task, metric in main],
        groups=[_group_table(run, evaluation, column) for column in evaluation.by],
        explained=shown.explained,
        config=to_yaml(run.config),
        live=shown.live,
        metric_meanings=explanations(run.tasks),
        costs=costs(records, shown.spent_s, shown.peak_bytes),
        provenance=provenance(run),
        style=Markup(page_file("report.css")),
        script=Markup(page_file("tables.js")),
    )
    write_listed(run.folder, run.run_id, files.report, page.encode())
    return files.report


def template(
    package: str = "fusionnet.evaluation", name: str = "report.html.j2"
) -> jinja2.Template:
    """Return a template of a package's page; text in it is escaped, Markup is taken as it is."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(page_file),
        finalize=_visible_lines,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, titled=title, percent=_percent)
    return environment.from_string(page_file(name, package))


def page_file(name: str, package: str = "fusionnet.evaluation") -> str:
    """Return the text of a template, style or script that lies in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _percent(value: float | None) -> str:
    return number(value) if value is None else f"{100 * value:.1f} %"


def _visible_lines(value: object) -> object:
    """Return a value for the page: text without control characters, which HTML has no place for."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(visible, value.split("\n")))


def _facts(run: TrainedRun, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return what was evaluated, as (what, text)."""
    layout, train = run.layout, run.recipe.train
    groups = f" of {evaluation.num_groups:,} {run.data.group}" if evaluation.num_groups else ""
    rows = f"{len(evaluation.targets):,} {evaluation.split} rows{groups}"
    if evaluation.split in SPLITS:
        rows += f", out of {layout.num_rows:,} in {run.data.title}"
    split = run.config["split"]["strategy"]
    if split == "group":
        split += f": no {run.data.group} is in more than one split"
    return [
        ("rows", rows),
        ("split", split),
        *_string_facts(run),
        (
            "checkpoint",
            f"{run.moment}: epoch {run.epoch} of {train.epochs}, {train.precision} training,"
            " fp32 evaluation",
        ),
        ("certificate", run.certificate),
        *([("blend", f"{run.shares}, weighed on validation rows")] if run.shares else []),
    ]


def _string_facts(run: TrainedRun) -> list[tuple[str, str]]:
    """Return what the strings and their encoders are, nothing where there are none."""
    specs = run.layout.strings
    if not specs:
        return []
    distinct = ", ".join(f"{spec.num_strings:,} distinct {spec.column}" for spec in specs)
    encoders = {
        f"{spec.encoder.source}, {spec.pooling} pooling": None for spec in specs if spec.width
    }
    encoder = f"{', '.join(encoders)}; trained in mode {run.recipe.mode}"
    facts = [("strings", distinct), ("encoder", encoder if encoders else NO_ENCODER)]
    features = [
        f"{spec.column}: "
        + ", ".join(f"{each.name} {len(each.columns):,}" for each in spec.features)
        for spec in specs
        if spec.features
    ]
    if features:
        facts.append(("features of strings", "; ".join(features)))
    return [*facts, ("saving", run.saving)] if run.saving else facts


def _goal_lines(run: TrainedRun, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one entry per goal: value, goal and verdict, and how the oracle does."""
    lines = []
    for task in run.tasks:
        for metric, goal, reached in evaluation.verdicts(run, task.column):
            best = (evaluation.oracle or {}).get(task.column, {}).get(metric)
            unit = unit_of(task, metric)
            lines.append(
                {
                    "what": f"{task.column} {title(metric)}",
                    "unit": f" {unit}" if unit else "",
                    "value": evaluation.metrics[task.column][metric],
                    "sign": "<" if is_error(metric) else ">",
                    "goal": goal,
                    "reached": reached,
                    "oracle": best,
                    "out_of_reach": reaches(metric, best, goal) is False,
                }
            )
    return lines


def _target_table(
    run: TrainedRun, evaluation: Evaluation, metrics: tuple[str, ...]
) -> dict[str, Any]:
    """Return all targets that have these metrics, with intervals, beside the oracle's."""
    lines, kind = [], ""
    for index, task in enumerate(run.tasks):
        if task.metrics == metrics:
            kind = task.kind
            own, oracle = evaluation.metrics[task.column], (evaluation.oracle or {})
            best = oracle.get(task.column, {})
            lines.append(
                {
                    "task": task,
                    "labels": int(np.isfinite(evaluation.targets[:, index]).sum()),
                    "cells": [
                        (own[each], evaluation.confidence.of(task.column, each), best.get(each))
                        for each in metrics
                    ],
                    "share": evaluation.oracle_share(task.column),
                }
            )
    return {"kind": kind, "metrics": metrics, "lines": lines}


def _intervals(run: TrainedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns by which the coverage of intervals is shown, and what their unit is."""
    found = list(evaluation.intervals.values())
    columns = dict.fromkeys(worst.column for each in found for worst in each.worst)
    unit = found[0].unit if found else "row"
    return {
        "interval_columns": list(columns),
        "interval_unit": unit,
        "interval_is_of_strings": unit in [spec.name for spec in run.layout.strings],
        "interval_rows": None if run.calibration is None else run.calibration.rows_in_words,
        "interval_folds": 0 if run.calibration is None else run.calibration.folds,
    }


def _comparison(run: TrainedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Return the words of a comparison with another run, if there is one."""
    found = evaluation.comparison
    if found is None:
        return {}
    return {
        "compared_rows": comparison_rows(found),
        "compared_in_words": rows_in_words(found),
        "differences_in_words": sentences(found, main_metrics_by_column(run)),
        "what_differences_mean": what_differences_mean(found),
    }


def _group_table(run: TrainedRun, evaluation: Evaluation, column: str) -> dict[str, Any]:
    """Return the break-down by one column: a line per value, and mean and spread over values."""
    table = evaluation.by[column]
    main = main_metrics(run.tasks)
    lines = [
        {
            "value": value,
            "rows": entry["rows"],
            "groups": entry.get("groups"),
            "metrics": [entry[task.column][metric] for task, metric in main],
        }
        for value, entry in table.items()
    ]
    by_metric = zip(*(line["metrics"] for line in lines), strict=True)
    defined = [[value for value in values if value is not None] for values in by_metric]
    return {
        "column": column,
        "lines": lines[:MOST_TABLE_ROWS],
        "num_values": len(lines),
        "mean": [fmean(values) if values else None for values in defined],
        "spread": [stdev(values) if len(values) > 1 else None for values in defined],
        "has_groups": evaluation.num_groups > 0 and column != run.data.group,
    }
