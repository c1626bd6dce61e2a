"""What stands beside a program: inputs and outputs by name and unit, its strings, an example."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusionnet.config.tasks import Task
from fusionnet.programs.program import INPUTS, OUTPUT, RawProgram
from fusionnet.trained.run import TrainedRun

FORMAT_VERSION = 1
NAME = "model.json"
_NUM_EXAMPLES = 3  # rows
Rows = tuple[Float[Tensor, "B N"], Int[Tensor, "B C"], Int[Tensor, "B K"]]


def sidecar(program: RawProgram, kind: dict[str, Any], is_whole: bool) -> dict[str, Any]:
    """Return what a client must know, as JSON holds it.

    `kind` says what the program's file is; `is_whole`: it predicts as the run does, trees or none.
    """
    run = program.run
    rows = example_rows(run)
    with torch.no_grad():
        predictions = program(*rows)
    return {
        "format_version": FORMAT_VERSION,
        **kind,
        "run": {"name": run.name, "id": run.run_id, "epoch": run.epoch, "note": run.note},
        "without_trees": not is_whole,
        "inputs": _inputs(run),
        "outputs": {OUTPUT: {"type": "float32", "columns": _outputs(run.tasks)}},
        "meanings": run.meanings,
        "remarks": [
            "all inputs have one line per row; any number of rows, also none",
            "numeric is in raw units: transforms and standardisation are inside",
            "string_id and category are places in the lists here, counted from 0; a place that"
            " there is not gives NaN, and so does a missing number (NaN) for which nothing stands",
            "strings are as they were prepared for training (data.strings[].canonicalize); one that"
            " is not in the list cannot be predicted by a program",
            "bounds and rules of the config are not checked: rows far from the train rows are"
            " predicted all the same",
        ],
        "example": {
            **{name: each.tolist() for name, each in zip(INPUTS, rows, strict=True)},
            OUTPUT: predictions.tolist(),
        },
    }


def example_rows(run: TrainedRun) -> Rows:
    """Return a few rows between the least and greatest numbers of the train rows."""
    share = torch.linspace(0.25, 0.75, _NUM_EXAMPLES).unsqueeze(1)
    places = _places_of_columns(run)
    low, high = (torch.tensor(each)[places] for each in (run.scaling.low, run.scaling.high))
    counts = (
        [len(run.strings[column.name]) for column in run.data.strings],
        [len(values) for _, values in run.layout.categories],
    )
    codes = [
        torch.stack([torch.arange(_NUM_EXAMPLES) % count for count in each], dim=1)
        if each
        else torch.zeros(_NUM_EXAMPLES, 0, dtype=torch.int64)
        for each in counts
    ]
    return (low + (high - low) * share).float(), codes[0], codes[1]


def _places_of_columns(run: TrainedRun) -> list[int]:
    """Return the place among the network's features of each numeric column of the table."""
    return [run.scaling.columns.index(column.column) for column in run.data.numeric]


def _inputs(run: TrainedRun) -> dict[str, Any]:
    """Return the inputs' columns, in their order."""
    return {
        "numeric": {"type": "float32", "columns": _numbers(run)},
        "string_id": {
            "type": "int64",
            "columns": [
                {
                    "column": column.column,
                    "kind": column.kind,
                    "strings": list(run.strings[column.name]),
                }
                for column in run.data.strings
            ],
        },
        "category": {
            "type": "int64",
            "columns": [
                {
                    "column": column,
                    "values": list(values),
                    "missing_stands_for": config.if_null,
                    "other_values_stand_for": config.other,
                }
                for (column, values), config in zip(
                    run.layout.categories, run.data.categories, strict=True
                )
            ],
        },
    }


def _numbers(run: TrainedRun) -> list[dict[str, Any]]:
    scaling = run.scaling
    return [
        {
            "column": column.column,
            "unit": column.unit,
            "train_low": scaling.low[place],
            "train_high": scaling.high[place],
            "missing_stands_for": scaling.fill[place],
        }
        for column, place in zip(run.data.numeric, _places_of_columns(run), strict=True)
    ]


def _outputs(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return the columns of predictions, named as frames of them are."""
    columns: list[dict[str, Any]] = []
    for task in tasks:
        if task.has_codes:
            columns += [
                {
                    "name": f"probability_{task.column}_{label}",
                    "column": task.column,
                    "class": label,
                    "unit": "",
                }
                for label in task.classes or ()
            ]
        else:
            name = f"predicted_{task.column}"
            columns.append({"name": name, "column": task.column, "unit": task.unit})
    return columns
