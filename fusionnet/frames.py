"""Raw frames to model inputs, by the same rules and checks that built the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.config import CategoryColumn, DataConfig, SplitConfig
from embedcache.errors import TableError
from embedcache.source import Source, open_source
from embedcache.table import Table, read_source
from fusionnet.run import TrainedRun

_NO_SPLIT = SplitConfig(strategy="random")


@dataclass(frozen=True)
class FrameInputs:
    """Model inputs of B rows, numeric features in raw units; `string_id[:, c]` indexes the sorted distinct strings of column c."""

    string_id: Int[Tensor, "B C"]
    numeric: Float[Tensor, "B F"]
    category: Int[Tensor, "B K"]


def open_frame(run: TrainedRun, frame: Any) -> Table:
    """Return a polars or pandas frame, a lazy frame, or a file, checked against the run's columns; raises one TableError with all violations.

    Labels, groups and weights are not needed and not read.
    """
    if isinstance(frame, str | Path):
        source = open_source(frame)
    else:
        lazy = _lazy(frame)
        source = Source(Path("the frame"), lazy, dict(lazy.collect_schema()), is_csv=False, twice=())
    return read_source(source, _features_only(run), (), _NO_SPLIT)


def frame_inputs(run: TrainedRun, table: Table, block_rows: int) -> Iterator[FrameInputs]:
    """Yield the table's rows as model inputs on the CPU, block by block."""
    strings = [f"string:{column.name}" for column in run.data.strings]
    numeric = [f"numeric:{column.column}" for column in run.data.numeric]
    categories = [f"category:{column}" for column, _ in run.layout.categories]
    for block in table.blocks([*strings, *numeric, *categories], block_rows):
        ids = _stacked(block, strings)
        for c, column in enumerate(run.data.strings):
            ids[:, c] = table.strings[column.name].id_of_spelling[ids[:, c]]
        features = block.select(numeric).to_numpy().astype(np.float32) if numeric else np.zeros((len(block), 0), dtype=np.float32)
        yield FrameInputs(torch.from_numpy(ids), torch.from_numpy(features.copy()), torch.from_numpy(_stacked(block, categories)))


def _features_only(run: TrainedRun) -> DataConfig:
    """Return the run's columns without what only training needs, with the categories that the model knows."""
    categories = tuple(CategoryColumn(column=column, values=values) for column, values in run.layout.categories)
    return run.data.model_copy(update={"categories": categories, "group": None, "stratum": None, "row_weight": None, "report_by": ()})


def _lazy(frame: Any) -> pl.LazyFrame:
    if isinstance(frame, pl.LazyFrame):
        return frame
    if isinstance(frame, pl.DataFrame):
        return frame.lazy()
    if hasattr(frame, "to_dict") and hasattr(frame, "columns"):  # pandas, without importing it
        return pl.DataFrame({str(name): frame[name].to_list() for name in frame.columns}).lazy()
    raise TableError(f"expected a polars or pandas frame or a path, found {type(frame).__name__}")


def _stacked(block: pl.DataFrame, columns: list[str]) -> Int[np.ndarray, "B _"]:
    return np.stack([block[column].to_numpy() for column in columns], axis=1).astype(np.int64) if columns else np.zeros((len(block), 0), dtype=np.int64)
