"""A table file written batch by batch, in memory that does not grow with its rows."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from fusionnet.workflow.outputs import TABLE_KINDS, TEXT_KINDS

ROW_GROUP = 65_536  # rows that a Parquet file's writer holds back
PATIENCE_S = 0.1  # between two looks whether the writer still lives

WriteBatch = Callable[[pl.DataFrame], None]
Schema = Mapping[str, Any]  # to polars data types, whose repr beartype refuses


def table_file(path: Path, schema: Schema, kind: str) -> AbstractContextManager[WriteBatch]:
    """Return a context that yields a function which appends a batch of this schema to a new file.

    `kind` is one of TABLE_KINDS. The file is complete when the context ends. Raises OSError or
    PolarsError where it cannot be written.
    """
    assert kind in TABLE_KINDS
    return _text_file(path, kind) if kind in TEXT_KINDS else _typed_file(path, schema, kind)


def unfit_for_csv(schema: Schema) -> list[str]:
    """Return the columns, with their types, that polars cannot write as CSV, such as lists."""
    unfit = {dtype for dtype in set(schema.values()) if not _fits_csv(dtype)}
    return [f"{name} ({dtype})" for name, dtype in schema.items() if dtype in unfit]


def _fits_csv(dtype: Any) -> bool:
    """Whether a value of this type can be a cell: polars itself is asked."""
    try:
        pl.DataFrame({"": [None]}, schema={"": dtype}).write_csv()
    except pl.exceptions.ComputeError:
        return False
    return True


@contextmanager
def _text_file(path: Path, kind: str) -> Iterator[WriteBatch]:
    separator = "\t" if kind == ".tsv" else ","
    with path.open("wb") as stream:
        yield lambda batch: batch.write_csv(
            stream, include_header=stream.tell() == 0, separator=separator
        )


@contextmanager
def _typed_file(path: Path, schema: Schema, kind: str) -> Iterator[WriteBatch]:
    """Hand batches to a thread in which polars pulls them into the file, one waiting at a time.

    polars has no writer that is called per batch. In this thread it would not do: while it is in
    polars, no signal is answered.
    """
    waiting: Queue[pl.DataFrame | None] = Queue(1)

    def batches(*_: object) -> Iterator[pl.DataFrame]:
        while (batch := waiting.get()) is not None:
            yield batch

    rows = register_io_source(batches, schema=schema)
    sink = partial(rows.sink_parquet, row_group_size=ROW_GROUP)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(sink if kind == ".parquet" else rows.sink_ipc, path)

        def hand_over(batch: pl.DataFrame | None) -> None:
            while not written.done():
                try:
                    return waiting.put(batch, timeout=PATIENCE_S)
                except Full:
                    pass
            written.result()  # it ends before its time by an error alone

        try:
            yield hand_over
        finally:
            hand_over(None)
        written.result()
