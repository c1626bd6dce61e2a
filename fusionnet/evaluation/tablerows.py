"""The rows of a table file that a run is evaluated on: its own table's, or another's.

The run's own table is read and split anew by the run's config, where its bytes are those that it
was trained on, and held to what the checkpoint knows: names, and the statistics of train rows. Rows
of another table are in no split of the run; those that trained it are left out, not presented as
unseen.

Axes: N rows, n chosen ones.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int, UInt64

from embedcache.build.blocks import row_blocks
from embedcache.build.files import read_files
from embedcache.build.identity import table_digest
from embedcache.build.statistics import TrainStatistics
from embedcache.cache.identity import Identity
from embedcache.cache.layout import RowBlock
from embedcache.config.split import NO_SPLIT, SPLITS, SplitConfig
from embedcache.config.table import DataConfig
from embedcache.errors import RunError
from embedcache.split.assign import Assignment
from embedcache.table.read import read_table
from embedcache.table.reader import open_source
from embedcache.text import count_of
from fusionnet.evaluation.rows import RunRows, split_of
from fusionnet.trained.frames import features_only, unreadable
from fusionnet.trained.run import TrainedRun


def is_own_table(run: TrainedRun, files: Sequence[str | Path]) -> bool:
    """Return whether these files are there and have the bytes that the run was trained on."""
    if not all(Path(file).exists() for file in files):
        return False
    return Identity(run.identity).files == tuple(f"sha256 {table_digest(file)}" for file in files)


def rows_of_own_table(run: TrainedRun, files: Sequence[str | Path]) -> RunRows:
    """Return the run's own rows from its table, split by its config; `is_own_table` must hold.

    Raises RunError where they are not read, or not split, as they were in training.
    """
    data = _of_files(run.data, files)
    judge = partial(unreadable, run)
    read = read_files(data, run.layout.targets, split_of(run), None, judge)
    blocks = list(read.rows(data, read.num_rows))
    texts = {column.name: read.last.strings[column.name].text for column in data.strings}
    _check_read(run, texts, blocks[0])
    where = ", ".join(map(str, files))
    return RunRows(run.layout, blocks[0], texts, np.arange(read.num_rows), where)


def rows_of_table(run: TrainedRun, file: str | Path, own: RunRows | None) -> RunRows:
    """Return the labelled rows of another table, without those that the run was trained on.

    `own` are the run's own rows, None where they cannot be had; the remark then says that nobody
    knows. Raises TableError for rows that break a rule of the run's config, RunError where no row
    is left.
    """
    features, judge = features_only(run, run.data.on_invalid), partial(unreadable, run)
    present = open_source(file, features).columns
    facets = tuple(column for column in run.data.report_by if column in present)
    group = run.data.group if run.data.group in present else None
    read = {"report_by": facets, "group": group}
    data = _of_files(features, [file]).model_copy(update=read)
    targets = tuple(each.model_copy(update={"optional": True}) for each in run.layout.targets)
    table = read_table(str(file), data, targets, SplitConfig(strategy="random"), judge=judge)
    in_none = np.array([NO_SPLIT], dtype=np.int8)
    splits = Assignment(None, np.zeros(table.num_rows, dtype=np.int16), in_none)
    (block,) = row_blocks(table, data, splits, run.layout.targets, table.num_rows)
    kept, remark = _never_seen(run, block, own, str(file))
    groups = () if table.groups is None else table.groups.values
    changes = {"num_rows": len(kept), "groups": groups, "strata": (), "facets": table.facets}
    texts = {column.name: table.strings[column.name].text for column in data.strings}
    layout = run.layout.model_copy(update=changes)
    return RunRows(layout, block.take(kept), texts, kept, str(file), remark)


def _never_seen(
    run: TrainedRun, block: RowBlock, own: RunRows | None, where: str
) -> tuple[Int[np.ndarray, " n"], str]:
    """Return the rows that neither trained the run nor chose its epoch, and a remark on them."""
    labelled = np.isfinite(block.targets).any(1)
    if not labelled.any():
        names = ", ".join(target.column for target in run.layout.targets)
        raise RunError(f"{where} has no label of {names}: there is nothing to evaluate")
    if own is None:
        return np.flatnonzero(labelled), (
            f"The rows are those of {where}. The run's own rows are not at hand, so rows that it"
            " was trained on may be among them: these are no test rows"
        )
    learnt = own.block.split[:, None] == [SPLITS.index("train"), SPLITS.index("validation")]
    seen = np.isin(_keys(block), _keys(own.block.take(np.flatnonzero(learnt.any(1)))))
    kept = np.flatnonzero(labelled & ~seen)
    if not len(kept):
        raise RunError(
            f"each labelled row of {where} has the strings and features of a row that"
            f" {run.folder} was trained or validated on: none is left to evaluate"
        )
    left_out = int((labelled & seen).sum())
    without = (
        f", without {count_of(left_out, 'row')} with the strings and features of one that the run"
        " was trained or validated on"
        if left_out
        else ", none of which the run was trained or validated on"
    )
    return kept, f"The rows are those of {where}{without}"


def _keys(block: RowBlock) -> UInt64[np.ndarray, " N"]:
    """Return a hash of each row's strings and features; a missing value equals another."""
    parts = {"s": block.string_hash, "n": block.numeric + 0.0, "c": block.category}
    columns = {
        f"{name}{k}": values[:, k] for name, values in parts.items() for k in range(values.shape[1])
    }
    return pl.DataFrame(columns).hash_rows(0).to_numpy()


def _of_files(data: DataConfig, files: Sequence[str | Path]) -> DataConfig:
    return data.model_copy(update={"path": tuple(map(str, files))})


def _check_read(run: TrainedRun, texts: Mapping[str, Sequence[str]], block: RowBlock) -> None:
    """Raise RunError unless a table was read and split as it was in training."""
    statistics = TrainStatistics(run.layout)
    statistics.add(block)
    found, wanted = statistics.fit.result(), run.scaling
    same = all(list(texts[name]) == list(known) for name, known in run.strings.items())
    for name in ("mean", "std", "low", "high", "target_mean", "target_std"):
        same = same and np.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-6)
    if not same:
        raise RunError(
            f"the table of {run.folder} is read or split otherwise than in training, as other"
            " versions of packages may do: its train rows have other statistics. Evaluate with the"
            " run's own cache (--cache PATH)"
        )
