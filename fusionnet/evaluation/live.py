"""The rows of an evaluation that the model of a report's page starts from, and names of strings.

Axes: N rows.
"""

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup

from embedcache.config.split import SPLITS
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import RunRows
from fusionnet.inpage.columns import Start
from fusionnet.inpage.part import live_part
from fusionnet.trained.run import TrainedRun

MOST_STARTS = 40


def live_section(run: TrainedRun, evaluation: Evaluation, rows: RunRows) -> Markup:
    """Return the part of the report in which the run itself predicts."""
    return live_part(run, names_of_strings(run, rows), list(_starts(run, evaluation, rows)))


def names_of_strings(run: TrainedRun, rows: RunRows) -> dict[str, dict[str, str]]:
    """Return by string column what the table calls its strings.

    That is a column of `report_by` of which each value has one string; a string with several
    values has all their names.
    """
    found: dict[str, dict[str, str]] = {}
    for place, spec in enumerate(run.layout.strings):
        for number, (_, values) in enumerate(rows.layout.facets):
            own = np.stack([rows.block.string_id[:, place], rows.block.facets[:, number]], axis=1)
            pairs = np.unique(own, axis=0)
            if len(pairs) == len(np.unique(pairs[:, 1])) > 1:
                named: dict[str, list[str]] = {}
                for text, value in pairs:
                    named.setdefault(rows.texts[spec.name][text], []).append(values[value])
                found[spec.name] = {text: ", ".join(each) for text, each in named.items()}
                break
    return found


def _starts(run: TrainedRun, evaluation: Evaluation, rows: RunRows) -> Iterator[Start]:
    """Yield the first row of each evaluated group, or the first rows where there are no groups."""
    block, layout = rows.block, rows.layout
    chosen = np.flatnonzero(np.isin(rows.row, evaluation.rows))
    if layout.groups:
        _, first = np.unique(block.group[chosen], return_index=True)
        chosen = chosen[np.sort(first)]
    for row in chosen[:MOST_STARTS].tolist():
        name = f"row {rows.row[row]:,}"
        if layout.groups:
            name = f"{run.data.group} {layout.groups[block.group[row]]}, {name}"
        split = int(block.split[row])
        if 0 <= split < len(SPLITS):
            name += f" ({SPLITS[split]})"
        numeric = [None if np.isnan(x) else float(f"{x:.9g}") for x in block.numeric[row]]
        texts = [rows.texts[spec.name] for spec in run.layout.strings]
        strings = [own[k] for own, k in zip(texts, block.string_id[row], strict=True)]
        yield Start(name, numeric, strings, [int(code) for code in block.category[row]])
