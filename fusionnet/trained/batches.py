"""Predictions of a checked frame, batch by batch.

Axes: B rows of a batch, of which U can be used, P predictions.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.table.table import Table
from fusionnet.config.reward import BinaryUnit
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.forward import refuse_non_finite
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.blended import Found, found_of, tree_tables
from fusionnet.trained.frames import FrameBlock, frame_blocks
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.vectors import vectors_of_all_strings

BATCH_ROWS = 8192


class Batch(NamedTuple):
    """Consecutive rows of a frame, of which U can be used."""

    found: Found
    predictions: Float[Tensor, "U P"]  # in the units that were asked for
    block: FrameBlock


@torch.no_grad()
def predicted_batches(
    run: TrainedRun,
    evaluate: RowEvaluator,
    table: Table,
    binary_unit: BinaryUnit,
    keep: pl.LazyFrame | None = None,
    with_marks: bool = False,
) -> Iterator[Batch]:
    """Yield predictions of the rows that can be used, with the same rows of `keep`."""
    start = 0
    vectors = table_vectors(run, table)
    tables = evaluate.tables(vectors) if all(map(len, vectors)) else None
    texts = {name: strings.text for name, strings in table.strings.items()}
    of_strings = tree_tables(run, texts, vectors)
    for block in frame_blocks(run, table, BATCH_ROWS, keep, with_marks):
        rows = standardised(run, block.inputs)
        number = torch.from_numpy(np.flatnonzero(block.usable)) + start
        where = f"rows {start:,} to {start + len(block.usable) - 1:,}"
        start += len(block.usable)
        if tables is None or not rows.num_rows:
            nothing = torch.empty(0, run.model.network.heads.num_outputs, device=run.device)
            none = found_of(run, nothing, rows.to(run.device), of_strings)
            yield Batch(none, none.in_units(run), block)
            continue
        # they move to the device while it still works on the batch before
        moved = rows.to(run.device, non_blocking=True)
        found = found_of(run, evaluate(tables, moved), moved, of_strings)
        predictions = found.in_units(run, binary_unit)
        columns = run.scaling.columns
        refuse_non_finite(predictions, run.tasks, rows.numeric, columns, number, where)
        yield Batch(found, predictions, block)


def table_vectors(run: TrainedRun, table: Table) -> list[Float[Tensor, "_ _"]]:
    """Return the vectors of a table's distinct strings, one matrix per string column."""
    return [
        vectors_of_all_strings(run, column.name, table.strings[column.name].text)
        for column in run.data.strings
    ]


def standardised(run: TrainedRun, inputs: RowInputs) -> RowInputs:
    """Return rows in raw units as the network takes them."""
    return replace(inputs, numeric=run.scaling.apply(inputs.numeric))
