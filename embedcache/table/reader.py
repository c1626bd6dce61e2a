"""The user's file as a lazy polars frame, whatever its format."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from embedcache.config.table import DataConfig
from embedcache.errors import TableError
from embedcache.table.cells import CellCounts, count_cells
from embedcache.table.kinds import KINDS, no_table, parquet_files
from embedcache.table.missing import cleaned_cells, with_numbers, without_missing
from embedcache.table.source import PARSED, RECORD, Source
from embedcache.table.textfile import UNPACKED, not_utf8, open_text

TEXT_KINDS = (".csv", ".tsv", ".txt")
ARROW_KINDS = (".arrow", ".feather", ".ipc")


def open_source(path: str | Path, data: DataConfig, named: str = "data.path") -> Source:
    """Return the table at `path`, unread; `data` says how text is written and what is missing.

    Raises TableError, with the key or flag that `named` it, where there is none, or none that can
    be read.
    """
    file = Path(path)
    if not file.exists():
        raise no_table(file, named)
    try:
        if file.is_dir():
            return _open_typed(file, _scan_folder(file, named), data)
        kind = kind_of(file)
        if kind == ".parquet":
            return _open_typed(
                file, pl.scan_parquet(file, glob=False, hive_partitioning=False), data
            )
        if kind in ARROW_KINDS:
            return _open_typed(file, pl.scan_ipc(file, glob=False), data)
        if kind == ".xlsx":
            return _open_sheet(file, data)
        if kind in TEXT_KINDS:
            return _open_text(file, kind, data)
    except (pl.exceptions.PolarsError, OSError) as error:
        what = " ".join(str(error).split())
        raise TableError(f"{file} cannot be read: {what:.400}") from None
    raise TableError(f"{file}: expected {KINDS}, found '{file.suffix}'")


def kind_of(file: Path) -> str:
    """Return the suffix that says what a file holds, behind which that of a packing may be."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in UNPACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def frame_source(
    frame: pl.LazyFrame, data: DataConfig, twice: tuple[str, ...] = (), name: str = "the frame"
) -> Source:
    """Return a lazy frame as a table."""
    schema = dict(frame.collect_schema())
    cleaned = without_missing(frame, schema, data.null_values)
    return Source(Path(name), cleaned, schema, is_csv=False, twice=twice, original=frame)


def _open_typed(file: Path, frame: pl.LazyFrame, data: DataConfig) -> Source:
    return frame_source(frame, data, name=str(file))


def _scan_folder(folder: Path, named: str) -> pl.LazyFrame:
    """Return all Parquet files in a folder, in the order of their names; key=value folders count.

    Names that begin with a dot or an underscore are left by other tools and no rows.
    """
    files = parquet_files(folder)
    if not files:
        raise TableError(f"there is no Parquet file in the folder {folder}; {named} must name one")
    partitioned = any("=" in part for file in files for part in file.relative_to(folder).parts[:-1])
    return pl.scan_parquet(files, glob=False, hive_partitioning=partitioned)


def _open_sheet(file: Path, data: DataConfig) -> Source:
    """Return the first sheet of a spreadsheet, its cells as text."""
    try:
        import fastexcel  # an extra
    except ModuleNotFoundError:
        raise TableError(
            f"{file}: spreadsheets are read by fastexcel, which is not installed; pip install"
            " 'embedcache-fusionnet[excel]', or save the sheet as CSV"
        ) from None
    try:
        cells = pl.read_excel(file, engine="calamine", infer_schema_length=0)
    except (pl.exceptions.PolarsError, fastexcel.FastExcelError) as error:
        raise TableError(f"{file} cannot be read as a spreadsheet: {error!s:.200}") from None
    cells = cells.select(pl.col(name).cast(pl.String) for name in cells.columns)
    names = cells.columns
    frame = with_numbers(cleaned_cells(cells.lazy(), names, data.null_values), names, data)
    return Source(file, frame, dict(cells.schema), True, (), cells.lazy())


def _open_text(file: Path, kind: str, data: DataConfig) -> Source:
    """Return a CSV's cells as text, and beside each column what it is as a number."""
    text = open_text(file, data.csv, kind)
    counts = count_cells(text.plain, text.separator)
    if counts.not_utf8 is not None:
        raise not_utf8(file, counts.not_utf8)
    if counts.open_quote is not None:
        raise TableError(
            f"{file}: a quote is opened and never closed, in or behind row {counts.open_quote:,}"
            " (counted from 0, without the header); close it, or write a quote in a cell twice"
        )
    cells = pl.scan_csv(
        text.plain,
        separator=text.separator,
        infer_schema=False,
        glob=False,
        truncate_ragged_lines=bool((counts.ragged_cells > counts.num_cells).any()),
    )
    schema = {
        name: dtype
        for name, dtype in cells.collect_schema().items()
        if not name.startswith((PARSED, RECORD))
    }
    names = list(schema)
    cells, ragged = _records(cells, counts)
    frame = with_numbers(cleaned_cells(cells, names, data.null_values), names, data)
    return Source(
        file,
        frame,
        schema,
        is_csv=True,
        twice=tuple(name for name, count in Counter(text.names).items() if count > 1),
        original=cells.select(names),
        num_blank=len(counts.blank),
        ragged=ragged,
        num_cells=counts.num_cells,
        row_cells=_cells_of_all(counts),
        copy=text.copy,
    )


def _cells_of_all(counts: CellCounts) -> int | None:
    """Return how many cells each record has, where that is another number than the header's."""
    found = set(counts.ragged_cells.tolist())
    are_all = len(counts.ragged) == counts.num_records - len(counts.blank)
    return found.pop() if are_all and len(found) == 1 else None


def _records(cells: pl.LazyFrame, counts: CellCounts) -> tuple[pl.LazyFrame, dict[int, int]]:
    """Return the records that are rows, numbered if some are broken, and the broken ones.

    Numbers are columns of the frame only where they are needed: a scan without them is faster.
    """
    blank = counts.blank
    num_rows = counts.num_records - len(blank)
    if len(blank) and blank[0] == num_rows:  # at the end alone, as spreadsheets leave them
        cells = cells.head(num_rows)
    elif len(blank):
        numbered = cells.with_row_index(RECORD)
        cells = numbered.filter(~pl.col(RECORD).is_in(blank.tolist())).drop(RECORD)
    rows = counts.ragged - np.searchsorted(blank, counts.ragged)
    if len(rows):
        cells = cells.with_row_index(RECORD)
    return cells, dict(zip(rows.tolist(), counts.ragged_cells.tolist(), strict=True))
