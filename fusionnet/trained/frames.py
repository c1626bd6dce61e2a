"""Raw frames to model inputs, by the same rules and checks that built the cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from embedcache.config.columns import CategoryColumn, StringColumn
from embedcache.config.table import DataConfig, OnInvalid
from embedcache.table.invalid import REASON
from embedcache.table.read import read_features
from embedcache.table.table import Table
from fusionnet.config.reward import Unseen
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import REMEMBERING, TrainedRun
from fusionnet.trained.sources import source_of

# before the names of columns that only come along, so that none can be taken for a canonical one
_KEPT = "kept:"
_SEEN = "seen:"  # before a category column's name: whether its vocabulary has the row's value


@dataclass(frozen=True)
class FrameBlock:
    """Some consecutive rows of a frame: B rows, of which U can be used."""

    inputs: RowInputs  # of the U rows, in raw units; string ids index the table's distinct strings
    usable: Bool[np.ndarray, " B"]
    marks: pl.DataFrame | None  # of all B rows: `known`, `outside`, `reason`, if they are wanted
    kept: pl.DataFrame  # the same B rows of what comes along

    def spread(self, values: Float[Tensor, "U T"]) -> Float[Tensor, "B T"]:
        """Return values of the rows that can be used among all rows, NaN in the others."""
        if self.usable.all():
            return values
        full = values.new_full((len(self.usable), values.shape[1]), float("nan"))
        full[torch.from_numpy(self.usable)] = values
        return full


def open_frame(
    run: TrainedRun, frame: Any, on_invalid: OnInvalid | None = None, unseen: Unseen = "flag"
) -> Table:
    """Return a polars or pandas frame, a lazy frame, or a file, checked against the run's columns.

    Raises one TableError with all violations; with `on_invalid` "skip" (unset: as the run's config
    says) only for those that are no matter of rows. With `unseen` "refuse" a string or category
    that training never saw is one of them. Labels, groups and weights are not needed and not read.
    NaN is a missing value.
    """
    features = features_only(run, on_invalid or run.data.on_invalid)
    judge, refuses = partial(unreadable, run), unseen == "refuse"
    if refuses:
        trained = tuple(_trained_alone(run, each) for each in features.categories)
        features = features.model_copy(update={"categories": trained})
        judge = partial(new_strings, run)
    return read_features(source_of(run, frame), features, run.scaling.reach(), judge, refuses)


def _trained_alone(run: TrainedRun, column: CategoryColumn) -> CategoryColumn:
    """Return a category column in which what no train row had is unknown.

    The others keep their codes: in the place of each such value is one that no table has.
    """
    untrained = run.scaling.untrained_categories.get(column.column, ())
    values = [
        f"\0{place}" if place in untrained else value
        for place, value in enumerate(column.values or ())
    ]
    return column.model_copy(update={"values": tuple(values), "other": None})


def new_strings(run: TrainedRun, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
    """Return the strings that training never saw, with that as the reason to refuse them."""
    reason = "is none of the strings that the run was trained on (reward.unseen: refuse)"
    known = known_strings(run, column.name, texts)
    return {text: reason for text, seen in zip(texts, known, strict=True) if not seen}


def unreadable(run: TrainedRun, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
    """Return the new strings that the run's encoder cannot read, or that have no features, with the
    reason.
    """
    new = [text for text in texts if text not in run.strings[column.name]]
    if not new:
        return {}
    reasons: dict[str, str] = {}
    with REMEMBERING:
        # not at the top: known strings need no encoder, whose packages take seconds to import
        if column.features:
            from fusionnet.trained.features import without_features

            reasons |= without_features(run, column, new)
        if run.recipe.mode != "none":
            from fusionnet.trained.encoder import unreadable_new

            reasons |= unreadable_new(run, column, new)
    return reasons


def frame_blocks(
    run: TrainedRun,
    table: Table,
    block_rows: int,
    keep: pl.LazyFrame | None = None,
    with_marks: bool = False,
) -> Iterator[FrameBlock]:
    """Yield the table's rows as inputs on the CPU, block by block, with the same rows of `keep`.

    `keep` is a frame of equal length. A table without rows has one block without rows.
    """
    kept = [] if keep is None else keep.collect_schema().names()
    frame = table.frame.with_columns(
        pl.col(f"category:{column}").is_in(values).alias(_SEEN + column)
        for column, values in table.categories
        if column in table.others
    )
    if keep is not None:
        along = keep.select(pl.col(name).alias(_KEPT + name) for name in kept)
        frame = pl.concat([frame, along], how="horizontal")
    table = replace(table, frame=frame)
    columns = [*_strings(run), *_numeric(run), *_categories(run)]
    columns += [_SEEN + column for column in table.others]
    columns += [name for name in (REASON,) if name in table.columns]
    columns += [_KEPT + name for name in kept]
    for block in table.blocks(columns, block_rows):
        beside = block.select(pl.col(_KEPT + name).alias(name) for name in kept)
        yield _block(run, table, block, beside, with_marks)


def _block(
    run: TrainedRun, table: Table, block: pl.DataFrame, beside: pl.DataFrame, with_marks: bool
) -> FrameBlock:
    """Return rows as inputs, with what is to be known of their predictions where that is wanted."""
    told = block[REASON] if REASON in block.columns else None
    usable = np.ones(block.height, dtype=bool) if told is None else told.is_null().to_numpy()
    rows = block if usable.all() else block.filter(usable)
    inputs = _inputs(run, table, rows)
    if not with_marks:
        return FrameBlock(inputs, usable, None, beside)
    known, outside, reason = _marks(run, table, rows, inputs)
    if told is not None and not usable.all():
        place = np.full(block.height, -1)
        place[usable] = np.arange(rows.height)
        index = pl.Series(place, dtype=pl.Int64).replace(-1, None)
        known, outside, reason = (marks.gather(index) for marks in (known, outside, reason))
        reason = pl.select(pl.coalesce(told, reason)).to_series()
    marks = pl.DataFrame({"known": known, "outside": outside, "reason": reason})
    return FrameBlock(inputs, usable, marks, beside)


def _marks(
    run: TrainedRun, table: Table, rows: pl.DataFrame, inputs: RowInputs
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return for each row whether training saw its strings and categories, whether a number lies
    outside of the train rows', and in words what is so.
    """
    remarks: list[tuple[pl.Series, str]] = []
    known = np.ones(rows.height, dtype=bool)
    for c, column in enumerate(run.data.strings):
        is_known = known_strings(run, column.name, table.strings[column.name].text)
        seen = is_known[inputs.string_id[:, c].numpy()]
        known &= seen
        remarks.append((pl.Series(~seen), f"the run was not trained on this {column.name} string"))
    for name in table.others:
        seen = rows[_SEEN + name].to_numpy()
        known &= seen
        remarks.append((pl.Series(~seen), f"{name} has a category that the run does not know"))
    for k, (name, _) in enumerate(run.layout.categories):
        untrained = run.scaling.untrained_categories.get(name, ())
        seen = ~np.isin(inputs.category[:, k].numpy(), untrained)
        known &= seen
        remarks.append((pl.Series(~seen), f"the run was not trained on this {name}"))
    is_outside = run.scaling.is_outside(inputs.numeric).numpy()
    scaling = run.scaling
    for f in np.flatnonzero(is_outside.any(0)).tolist():
        where = f"{scaling.low[f]:.6g} to {scaling.high[f]:.6g}"
        remark = f"{scaling.columns[f]} is outside of the train rows' {where}"
        remarks.append((pl.Series(is_outside[:, f]), remark))
    parts = [pl.when(pl.lit(which)).then(pl.lit(what)) for which, what in remarks if which.any()]
    reason = pl.Series([None], dtype=pl.String).new_from_index(0, rows.height)
    if parts:
        text = pl.concat_str(parts, separator="; ", ignore_nulls=True)
        reason = pl.select(text.replace("", None)).to_series()
    return pl.Series(known), pl.Series(is_outside.any(1)), reason


def known_strings(run: TrainedRun, column: str, texts: Sequence[str]) -> Bool[np.ndarray, " U"]:
    """Return which prepared strings of a column training saw: those of its train rows.

    Strings of validation and test rows have vectors in the run, and taught it nothing.
    """
    untrained = set(run.scaling.untrained_strings.get(column, ()))
    row_of = run.strings[column]
    return np.array([row_of.get(text, -1) not in {-1, *untrained} for text in texts], dtype=bool)


def _inputs(run: TrainedRun, table: Table, block: pl.DataFrame) -> RowInputs:
    """Return a block of the table's rows as tensors."""
    string_id = _stacked(block, _strings(run))
    for c, column in enumerate(run.data.strings):
        string_id[:, c] = table.strings[column.name].id_of_spelling[string_id[:, c]]
    numeric = np.zeros((len(block), 0), dtype=np.float32)
    if run.data.numeric:  # copied once
        numeric = block.select(_numeric(run)).to_numpy(order="c", writable=True)
    category = _stacked(block, _categories(run))
    return RowInputs(
        torch.from_numpy(string_id), torch.from_numpy(numeric), torch.from_numpy(category)
    )


def _strings(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's string columns."""
    return [f"string:{column.name}" for column in run.data.strings]


def _numeric(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's numeric features."""
    return [f"numeric:{column.column}" for column in run.data.features]


def _categories(run: TrainedRun) -> list[str]:
    """Return the canonical names of the run's category columns."""
    return [f"category:{column}" for column, _ in run.layout.categories]


def features_only(run: TrainedRun, on_invalid: OnInvalid) -> DataConfig:
    """Return the run's columns that the network reads, with the categories that it knows."""
    values = dict(run.layout.categories)
    categories = tuple(
        column.model_copy(update={"values": values[column.column], "min_rows": 1})
        for column in run.data.categories
    )
    return run.data.model_copy(
        update={
            "categories": categories,
            "on_invalid": on_invalid,
            "group": None,
            "stratum": None,
            "row_weight": None,
            "report_by": (),
        }
    )


def _stacked(block: pl.DataFrame, columns: list[str]) -> Int[np.ndarray, "B _"]:
    """Return columns of codes side by side."""
    if not columns:
        return np.zeros((len(block), 0), dtype=np.int64)
    return np.stack([block[column].to_numpy() for column in columns], axis=1).astype(np.int64)
