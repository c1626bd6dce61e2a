"""Predict the rows of a table file, batch by batch, into another file, published by rename."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import polars as pl

from embedcache.config.table import CsvConfig, OnInvalid
from embedcache.errors import OutputError, TableError
from embedcache.files import atomic_write
from embedcache.schema import parse_config
from embedcache.system import explained, naming
from embedcache.table.cellkinds import typed
from embedcache.table.source import Source
from fusionnet.config.reward import Unseen
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.sources import source_of
from fusionnet.workflow.outputs import TEXT_KINDS
from fusionnet.workflow.table_file import table_file, unfit_for_csv

MARKS = ("known", "outside", "reason")  # beside predictions; see `RewardModel.predict`


@dataclass
class Written:
    """What was written."""

    num_rows: int = 0
    num_invalid: int = 0  # rows that break a rule, predicted as null
    num_unknown: int = 0  # rows with a string or category that training never saw
    num_outside: int = 0  # rows with a number outside of the train rows'
    means: dict[str, float] = field(default_factory=dict)  # of each added number; NaN of no rows


def write_scores(
    model: RewardModel,
    path: Path,
    target: Path,
    reward: bool,
    on_invalid: OnInvalid | None = None,
    csv: Mapping[str, str] = MappingProxyType({}),
    coverage: float | None = None,
    uncertainty: bool = False,
    pessimism: float | None = None,
    unseen: Unseen | None = None,
) -> Written:
    """Write the columns of the table at `path` and predictions, and count what was written.

    Rewards, intervals and uncertainties stand beside these where asked (`RewardModel.predict`,
    `RewardModel.score`). `target` ends in one of TABLE_KINDS.
    `csv` has keys of the run's `data.csv` that are others for this table. Memory does not grow with
    the rows. Nothing is written before the whole input is checked, and `target` is what it was
    until the last row is in the new file.
    """
    kind = target.suffix.lower()
    as_text = kind in TEXT_KINDS
    added = model.columns(reward, coverage, uncertainty, pessimism)
    options = parse_config(CsvConfig, {**model.run.data.csv.model_dump(), **csv}, "--csv")
    # polars says of a file that may not be read that something may not
    with naming(path), _naming_the_flag():
        source = source_of(model.run, path, "--input", options)
        keep = _source_rows(source, [*added, *MARKS], as_text)
        batches = model.batches(
            source, reward, keep, True, on_invalid, coverage, uncertainty, pessimism, unseen
        )
        first = next(batches)  # the whole input is checked before anything is written
    written = Written()
    sums = {name: 0.0 for name in added if first.schema[name].is_numeric()}  # not of classes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(target) as partial,
            table_file(partial, first.schema, kind) as write,
        ):
            for batch in chain([first], batches):
                write(batch)
                _count(written, batch)
                for name in sums:
                    sums[name] += float(batch[name].cast(pl.Float64).sum())
    except OSError as error:
        raise OutputError(explained(error)) from None
    except pl.exceptions.PolarsError as error:
        raise OutputError(f"{target} cannot be written: {error}") from None
    num_predicted = written.num_rows - written.num_invalid
    written.means = {name: total / max(1, num_predicted) for name, total in sums.items()}
    return written


@contextmanager
def _naming_the_flag() -> Iterator[None]:
    """Say how a key of the run's config that an error names is set for this table alone."""
    try:
        yield
    except TableError as error:
        hint = "\nfor this table, data.csv is set by --csv, e.g. --csv decimal=,"
        raise TableError(f"{error}{hint if 'data.csv' in str(error) else ''}") from None


def _count(written: Written, batch: pl.DataFrame) -> None:
    written.num_rows += len(batch)
    written.num_invalid += batch["known"].null_count()
    written.num_unknown += int((~batch["known"]).sum())
    written.num_outside += int(batch["outside"].sum())


def _source_rows(source: Source, added: list[str], as_text: bool) -> pl.LazyFrame:
    """Return the input as it is written; cells of a CSV stay text if they are to be a CSV again."""
    rows = source.original
    clash = sorted(set(source.columns) & set(added))
    if clash:
        raise TableError(
            f"{source.path} already has the columns {', '.join(clash)}; rename or drop them"
        )
    unfit = unfit_for_csv(source.columns) if as_text else []
    if unfit:
        raise TableError(
            f"{source.path} has columns that a CSV file cannot hold: {', '.join(unfit)}; write"
            " Parquet (--output NAME.parquet), or drop them from the input"
        )
    return rows if as_text or not source.is_csv else typed(source)
