"""How many cells each record of a CSV file has, counted over its bytes before anything is parsed.

polars reads a record with too few cells as one that ends in nulls, and one with too many without a
word as long as not every column is read: a decimal comma then moves all that follows it by one
column. Counting costs one pass at a few hundred MB/s, in memory that does not grow with the file.

A separator or a line's end inside quotes is none; a quote inside quotes is written twice (RFC
4180), so what lies between an odd and an even quote is inside.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, UInt8

BLOCK_BYTES = 1 << 22
_QUOTE, _LINE_END, _BLANK = ord('"'), ord("\n"), ord(" ")  # control characters are below a blank


@dataclass(frozen=True)
class CellCounts:
    """What a scan of a CSV file's bytes found; records are counted from 0, without the header."""

    num_records: int
    blank: Int64[np.ndarray, " _"]  # records in which every cell is empty
    ragged: Int64[np.ndarray, " R"]  # other records with another number of cells than the header
    ragged_cells: Int64[np.ndarray, " R"]  # how many they have
    num_cells: int  # of the header
    open_quote: int | None  # the record in which a quote is opened and never closed
    not_utf8: int | None  # the line, counted from 1, of the first byte that is not UTF-8


def count_cells(file: Path, separator: str) -> CellCounts:
    """Return the number of cells of every record of a CSV file, by exceptions from the header's."""
    scan = _Scan(ord(separator))
    decoder, not_utf8, num_lines = codecs.getincrementaldecoder("utf-8")(), None, 1
    for block in _blocks(file):
        if not_utf8 is None:
            try:
                decoder.decode(block.tobytes())
            except UnicodeDecodeError as error:
                not_utf8 = num_lines + int((block[: error.start] == _LINE_END).sum())
            num_lines += int((block == _LINE_END).sum())
        scan.add(block)
    if not_utf8 is None and decoder.getstate()[0]:  # the file ends inside of a character
        not_utf8 = num_lines
    return scan.result(not_utf8)


class _Scan:
    """Counts record by record; a record may go on from one block to the next."""

    def __init__(self, separator: int) -> None:
        self._separator = separator
        self._inside = False  # quotes
        self._separators = 0  # of the record that goes on
        self._has_content = False  # whether a cell of it is not empty
        self._has_bytes = False
        self._num_records = 0  # the header too
        self._num_cells = 0
        self._blank: list[np.ndarray] = []
        self._ragged: list[np.ndarray] = []
        self._ragged_cells: list[np.ndarray] = []

    def add(self, block: UInt8[np.ndarray, " _"]) -> None:
        """Count one block of bytes."""
        is_end, is_separator = block == _LINE_END, block == self._separator
        quotes = block == _QUOTE
        if self._inside or quotes.any():
            outside = (np.cumsum(quotes, dtype=np.int64) + self._inside) % 2 == 0
            is_end &= outside
            is_separator &= outside
            self._inside = not outside[-1]
        ends = np.flatnonzero(is_end)
        starts = np.concatenate([[0], ends + 1])
        separators = _sums(is_separator, starts)
        is_content = (block > _BLANK) & (block != self._separator) & (block != _QUOTE)
        # one more, so that a record that has just begun has a byte to look at
        has_content = np.logical_or.reduceat(np.append(is_content, False), starts)
        separators[0] += self._separators
        has_content[0] |= self._has_content
        self._note(separators[:-1] + 1, has_content[:-1])
        self._separators, self._has_content = int(separators[-1]), bool(has_content[-1])
        self._has_bytes = int(starts[-1]) < len(block) or (self._has_bytes and not len(ends))

    def _note(self, cells: Int64[np.ndarray, " R"], has_content: Bool[np.ndarray, " R"]) -> None:
        """Note R complete records."""
        if not len(cells):
            return
        number = np.arange(self._num_records, self._num_records + len(cells)) - 1
        if self._num_records == 0:
            self._num_cells = int(cells[0])
        self._num_records += len(cells)
        is_record = number >= 0
        blank = is_record & ~has_content
        ragged = is_record & has_content & (cells != self._num_cells)
        self._blank.append(number[blank])
        self._ragged.append(number[ragged])
        self._ragged_cells.append(cells[ragged])

    def result(self, not_utf8: int | None) -> CellCounts:
        """Return what was found, the last record with it, which need not end in a line's end."""
        open_quote = max(0, self._num_records - 1) if self._inside else None
        if self._has_bytes:
            self._note(np.array([self._separators + 1]), np.array([self._has_content]))
        nothing = np.zeros(0, dtype=np.int64)
        return CellCounts(
            num_records=max(0, self._num_records - 1),
            blank=np.concatenate([nothing, *self._blank]),
            ragged=np.concatenate([nothing, *self._ragged]),
            ragged_cells=np.concatenate([nothing, *self._ragged_cells]),
            num_cells=self._num_cells,
            open_quote=open_quote,
            not_utf8=not_utf8,
        )


def _sums(mask: np.ndarray, starts: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
    """Return how many bytes are marked from each start to the next; the last may be empty."""
    found = np.flatnonzero(mask)
    edges = np.append(np.searchsorted(found, starts), len(found))
    return np.diff(edges).astype(np.int64)


def _blocks(file: Path) -> Iterator[UInt8[np.ndarray, " _"]]:
    with file.open("rb") as stream:
        while content := stream.read(BLOCK_BYTES):
            yield np.frombuffer(content, dtype=np.uint8)
