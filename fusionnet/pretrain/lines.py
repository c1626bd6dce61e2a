"""Files of strings, one a line, plain or compressed: read and written as they stream past."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from embedcache.errors import CorpusError
from embedcache.files import atomic_write
from embedcache.table.repeatunit import each_kind_first
from embedcache.text import count_of
from fusionnet.pretrain.processes import in_processes
from fusionnet.pretrain.recombine import checked_lines

COMPRESSED = ".gz"
SUFFIXES = (".txt", ".txt.gz", ".smi", ".smi.gz")
_LINES_PER_ITEM = 500
_MOST_NAMED = 5


class Polymers(NamedTuple):
    """The distinct polymers of some files in canonical form, sorted, and what the files held."""

    strings: tuple[str, ...]
    num_lines: int
    num_invalid: int


def check_suffix(path: Path) -> None:
    """Raise CorpusError for a file of strings to write whose name does not say what it is."""
    if not path.name.endswith(SUFFIXES):
        raise CorpusError(
            f"{path} would be a file of strings, one a line: its name ends in"
            f" {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )


def lines_of(path: Path) -> Iterator[str]:
    """Yield a file's lines without white space around them, blank ones too.

    Raises CorpusError where it is none, or no text.
    """
    if not path.is_file():
        raise CorpusError(f"there is no file {path} of strings, one a line")
    opened = gzip.open if path.name.endswith(COMPRESSED) else open
    try:
        with opened(path, "rt", encoding="utf-8") as stream:
            for line in stream:
                yield line.strip()
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); a corpus is a text"
            " file with one string a line, plain or as .gz"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is damaged: {error}; make or fetch it again") from None


@contextmanager
def lines_to(path: Path) -> Iterator[io.TextIOWrapper]:
    """Yield a stream whose file is there whole when it is closed, or not at all.

    A compressed one has the same bytes whenever, and under whatever name, it is written.
    """
    with atomic_write(path) as partial, partial.open("wb") as raw:
        if path.name.endswith(COMPRESSED):
            with (
                gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
                io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
            ):
                yield stream
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as stream:
                yield stream


def polymers_of_files(
    paths: Iterable[Path], processes: int, *, skip_invalid: bool = False
) -> Polymers:
    """Return the polymers of files with one PSMILES a line; blank lines are none.

    Raises CorpusError that names lines which are no repeat unit, unless they are to be skipped, and
    where no polymer is left.
    """
    paths = list(paths)
    texts = [(path, number, line) for path in paths for number, line in _filled(path)]
    parts = [
        [line for _, _, line in texts[first : first + _LINES_PER_ITEM]]
        for first in range(0, len(texts), _LINES_PER_ITEM)
    ]
    found: list[str | None] = []
    reasons: dict[str, str] = {}
    for checked in in_processes(checked_lines, parts, min(processes, max(1, len(parts)))):
        for text, reason in checked:
            found.append(text if reason is None else None)
            if reason is not None:
                path, number, line = texts[len(found) - 1]
                reasons[f"{path}, line {number}: {line:.80}"] = reason
    if reasons and not skip_invalid:
        shown = [f"  - {where} {reasons[where]}" for where in each_kind_first(reasons)]
        more = [f"  - and {len(shown) - _MOST_NAMED:,} more"] if len(shown) > _MOST_NAMED else []
        raise CorpusError(
            f"{count_of(len(reasons), 'line')} of {len(texts):,} cannot be read as a polymer's"
            " repeat unit; mend them, or leave them out with --skip-invalid:\n"
            + "\n".join(shown[:_MOST_NAMED] + more)
        )
    strings = tuple(sorted({text for text in found if text is not None}))
    if not strings:
        raise CorpusError(
            f"there is no polymer in {', '.join(map(str, paths))}: {len(texts):,} lines, of which"
            f" {len(reasons):,} are no repeat unit"
        )
    return Polymers(strings, len(texts), len(reasons))


def _filled(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbers, from 1, and the texts of a file's lines that are not blank."""
    return ((number, line) for number, line in enumerate(lines_of(path), 1) if line)
