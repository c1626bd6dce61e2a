"""Where commands write: what stands in the way is said before the work, not after it.

Parents that are missing are no fault: they are made when there is something to write.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from embedcache.errors import OutputError
from fusionnet.evaluation.outputs import comparison_file, evaluation_files
from fusionnet.explain.saved import explain_files
from fusionnet.runfolder.listing import LIST

TEXT_KINDS = (".csv", ".tsv")
TABLE_KINDS = (".parquet", *TEXT_KINDS, ".arrow", ".feather", ".ipc")  # as they are read


def check_file(target: Path, source: Path, tables: Sequence[Path] = ()) -> None:
    """Raise OutputError unless a new file can take the name `target`.

    `source` is what is read, `tables` what the run was trained on.
    """
    with _unusable_names_said(target):
        if _exists(target):
            if target.is_dir():
                raise OutputError(f"{target} is a folder; give a file's name as well")
            if not target.is_file():
                raise OutputError(f"{target} is no regular file; give another name")
            if source.exists() and target.samefile(source):
                raise OutputError(f"{target} is the input itself; give the output another name")
            if any(table.exists() and target.samefile(table) for table in tables):
                raise OutputError(
                    f"{target} is the table that the run was trained on; give another name"
                )
            if not os.access(target, os.W_OK):
                raise OutputError(f"{target} is write-protected; give another name")
        _check_folder(target.parent, f"{target} cannot be written", "give another name")


def check_files(folder: Path, names: Sequence[str], hint: str) -> None:
    """Raise OutputError, with the hint, unless files of these names can be written to a folder."""
    with _unusable_names_said(folder):
        _check_folder(folder, f"results cannot be written into {folder}", hint)
        for file in (folder / name for name in names):
            if file.is_dir():
                raise OutputError(f"{file} is a folder, where a file is to be; {hint}")


def check_evaluation(folder: Path, split: str, hint: str, against: Path | None = None) -> None:
    """Raise OutputError, with the hint, unless a split's evaluation can be written to a folder.

    `against` is the folder of a run that it is compared with.
    """
    found = evaluation_files(folder, split)
    compared = [] if against is None else [comparison_file(folder, split, against)]
    files = (found.metrics, found.report, *compared)
    _check_files(folder, files, found.plots, "the evaluation", hint)
    _check_not_foreign((*files, found.plots), found.metrics, "evaluation", hint)


def check_explanation(folder: Path, split: str, hint: str) -> None:
    """Raise OutputError, with the hint, unless a split's explanation can be written to a folder."""
    found = explain_files(folder, split)
    files = (found.numbers, found.page)
    _check_files(folder, files, found.pictures, "the explanation", hint)
    _check_not_foreign((*files, found.pictures), found.numbers, "explanation", hint)


def _check_not_foreign(places: Sequence[Path], numbers: Path, what: str, hint: str) -> None:
    """Raise OutputError where places are taken, and no numbers of ours lie beside them.

    In a run's folder its list says whose files there are.
    """
    there = [place.name for place in places if _exists(place)]
    if there and not (numbers.parent / LIST).is_file() and not _is_of_a_run(numbers):
        raise OutputError(
            f"{numbers.parent} holds {', '.join(there)}, which no {what} of a run wrote; {hint}"
        )


def _is_of_a_run(numbers: Path) -> bool:
    """Return whether a JSON file says of what checkpoint and epoch it is."""
    try:
        found = json.loads(numbers.read_bytes())
        return bool({"checkpoint", "epoch", "rows"} <= found.keys())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _check_files(folder: Path, files: Sequence[Path], plots: Path, what: str, hint: str) -> None:
    with _unusable_names_said(folder):
        _check_folder(folder, f"{what} cannot be written into {folder}", hint)
        for file in files:
            if file.is_dir():
                raise OutputError(f"{file} is a folder, where a file is to be; {hint}")
        if _exists(plots) and not plots.is_dir():
            raise OutputError(f"{plots} is no folder, where one is to be; {hint}")
        if plots.is_dir():
            _check_folder(plots, f"the plots cannot be written into {plots}", hint)


def _check_folder(folder: Path, consequence: str, hint: str) -> None:
    """Raise OutputError unless files can be made in a folder, or in a new one of that name."""
    nearest = folder.absolute()
    while not _exists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputError(f"{consequence}, since {nearest} is no folder; {hint}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{consequence}, since {nearest} is read-only for this user; {hint}")


def _exists(path: Path) -> bool:
    """Whether there is anything at a path, be it a link to nothing; raises OSError or ValueError
    for a name that cannot be one.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def _unusable_names_said(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # too long, with NUL, or in a folder that is closed
        what = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{str(path)[:200]!r} cannot be written: {what}") from None
