"""A CSV file, however it is separated, encoded or packed, as plain UTF-8 that polars can scan.

What is neither UTF-8 nor unpacked is written once to a temporary copy that is; a scan then reads it
block by block, as often as it likes.
"""

import bz2
import codecs
import csv
import gzip
import lzma
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numcodecs.zstd

from embedcache.config.table import CsvConfig
from embedcache.errors import TableError

SEPARATORS = (",", ";", "\t", "|")
# how files begin that are no text, and the suffix by which they would be read
_OTHER_KINDS = {
    b"PK\x03\x04": ("a spreadsheet", ".xlsx"),
    b"PAR1": ("Parquet", ".parquet"),
    b"ARROW1": ("Arrow", ".arrow"),
    b"\x1f\x8b": ("packed by gzip", ".csv.gz"),
}
_SEP_LINE = re.compile(r"sep=(.)", re.IGNORECASE)  # above the header, for Excel alone
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK_CHARS = 1 << 20


def _unzstd(file: Path) -> BytesIO:
    return BytesIO(numcodecs.zstd.decompress(file.read_bytes()))


UNPACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _unzstd,
}


class _TemporaryFolder:
    """A folder that is deleted with this object, or when Python ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="embedcache-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class TextFile:
    """A text file ready to be scanned."""

    plain: Path  # in UTF-8, unpacked; the file itself where it is that
    separator: str
    names: list[str]  # of its header
    copy: _TemporaryFolder | None  # keeps the plain copy, where there is one


def open_text(file: Path, options: CsvConfig, kind: str) -> TextFile:
    """Return a CSV file with its header read; `kind` is its suffix, without that of the packing.

    Raises TableError where it cannot be unpacked or decoded, or its header cannot be read.
    """
    plain, copy = _plain(file, options)
    named = options.separator
    try:
        first = _first_record(file, plain)
        if mark := _SEP_LINE.fullmatch(first):
            plain, copy = _without_first_line(plain)
            first, named = _first_record(file, plain), named or mark[1]
    except UnicodeDecodeError:
        raise not_utf8(file, _line_of_error(plain)) from None
    try:
        separator = named or ("\t" if kind == ".tsv" else _separator_of(first))
        names = next(csv.reader([first], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise _bad_header(file, error) from None
    return TextFile(plain, separator, names, copy)


def not_utf8(file: Path, line: int) -> TableError:
    """Return the error on a file that has other bytes than UTF-8's in a line, counted from 1."""
    return TableError(
        f"{file} is not UTF-8, first in line {line:,}; say how it is written, e.g. data.csv:"
        " {encoding: cp1252} for Excel in Western Europe, or save it as UTF-8"
    )


def _plain(file: Path, options: CsvConfig) -> tuple[Path, _TemporaryFolder | None]:
    """Return the file as UTF-8 without packing, and what holds the copy, if one was needed."""
    with _unpacking(file) as stream:
        start = stream.read(6)
    for mark, (what, suffix) in _OTHER_KINDS.items():
        if start.startswith(mark):
            raise TableError(f"{file} is no text: it begins as {what} does; name it {suffix}")
    encoding = options.encoding
    if start[:2] in _UTF16 and codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-16"  # it says so itself
    is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")
    if is_utf8 and file.suffix.lower() not in UNPACKED:
        return file, None
    copy = _TemporaryFolder()
    plain = copy.path / "table.csv"
    with _unpacking(file) as stream, plain.open("wb") as target:
        if is_utf8:
            while content := stream.read(_BLOCK_CHARS):
                target.write(content)
        else:
            reader = codecs.getreader(encoding)(stream)
            while text := reader.read(_BLOCK_CHARS):
                target.write(text.encode())
    return plain, copy


def _without_first_line(plain: Path) -> tuple[Path, _TemporaryFolder]:
    """Return a copy of a file without its first line, and what holds the copy."""
    copy = _TemporaryFolder()
    target = copy.path / "table.csv"
    with plain.open("rb") as lines, target.open("wb") as rest:
        lines.readline()
        shutil.copyfileobj(lines, rest)
    return target, copy


@contextmanager
def _unpacking(file: Path) -> Iterator[Any]:
    """Yield a stream of the file's unpacked bytes; raise TableError where they are none."""
    unpack = UNPACKED.get(file.suffix.lower(), lambda path: path.open("rb"))
    try:
        with unpack(file) as stream:
            yield stream
    except UnicodeError as error:
        raise TableError(
            f"{file} is not written in data.csv.encoding: {error!s:.200}; name the right one"
        ) from None
    except PermissionError:
        raise TableError(f"{file} cannot be read: this user may not") from None
    except (EOFError, lzma.LZMAError, RuntimeError, OSError) as error:
        raise TableError(f"{file} cannot be unpacked: {error!s:.200}") from None


def _first_record(file: Path, plain: Path) -> str:
    """Return the header, which ends at the first line's end outside of quotes."""
    lines = []
    with plain.open(newline="", encoding="utf-8-sig") as stream:
        for line in stream:
            lines.append(line)
            if "".join(lines).count('"') % 2 == 0:
                break
        else:
            if lines:
                raise _bad_header(file, "unexpected end of data", len(lines))
    return "".join(lines).rstrip("\r\n")


def _separator_of(header: str) -> str:
    """Return the separator that divides a header into most names, a comma before others."""
    counts = [len(next(csv.reader([header], delimiter=each), [])) for each in SEPARATORS]
    return SEPARATORS[counts.index(max(counts))]


def _line_of_error(plain: Path) -> int:
    """Return the line, counted from 1, of the first byte that is not UTF-8."""
    content = plain.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def _bad_header(file: Path, why: object, line: int = 1) -> TableError:
    return TableError(
        f"{file}: the header cannot be read, line {line}: {why}; is a quote opened there that is"
        " not closed?"
    )
