"""The list of a run's own files, kept in its folder: the run's name, its id, and what it wrote.

`run_files.jsonl` begins with the name and a random id, which every checkpoint carries too. Each
further line is the path of a file, added before the file is written. So after a kill at any moment
nothing of the run is unlisted; `--overwrite` deletes what is listed, and what is not listed is
never written over. Lines are appended, each batch in one write: training, export and evaluations
may list at the same time.

A line that ends in a slash is a whole folder, whatever a tracker's library writes there.

A run that replaces another takes over its list first, under its own id, and then deletes the old
files; a kill in between leaves a list that says what is still to be deleted.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedcache.errors import RunError
from embedcache.files import clean_up_after_killed, is_workplace, sync, write_atomically
from embedcache.system import naming

LIST = "run_files.jsonl"
LOCK = ".lock"  # held by who trains
HOLDER = ".lock.json"  # who that is
EVALUATION_LOCK = ".evaluation.lock"  # held by who writes an evaluation
MOST_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """What a run folder says of itself; paths are relative to it."""

    name: str
    run_id: str
    files: frozenset[str]
    replaced: frozenset[str]  # files of the run before, which are to be deleted


def new_id() -> str:
    """Return a run's id."""
    return secrets.token_hex(8)


def read_listing(folder: Path) -> Listing | None:
    """Return what a folder lists, or None where no run has begun.

    Raises RunError where the list's first line is damaged. A line that a kill cut off is left out:
    its file was not written yet.
    """
    path = folder / LIST
    if not path.is_file():
        return None
    head, *lines = path.read_bytes().split(b"\n")
    try:
        start = json.loads(head)
        name, run_id, replaced = start["run"], start["id"], frozenset(start["replaced"])
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} is damaged: it must begin with the run's name and id. Restore it; without it"
            " nobody knows which files here are the run's"
        ) from None
    files = (_path_of(line) for line in lines)
    return Listing(name, run_id, frozenset(file for file in files if file is not None), replaced)


def begin_listing(folder: Path, name: str, run_id: str) -> None:
    """Begin the list of a new run, deleting the files of the run that was there, if any.

    Only the trainer that holds the folder's lock may do this.
    """
    old = read_listing(folder)
    leftovers = frozenset() if old is None else old.files | old.replaced
    if leftovers:
        _write_head(folder, name, run_id, leftovers)
        delete_files(folder, leftovers)
    _write_head(folder, name, run_id, frozenset())


def list_files(folder: Path, run_id: str, paths: Iterable[str]) -> None:
    """Add files to a run's list, which must be done before they are written.

    Raises RunError where there is a file of such a name that the run did not write, or where the
    folder has become another run's.
    """
    wanted = list(paths)
    # looked up before the list is read: what another process writes meanwhile, it has listed
    present = [path for path in wanted if os.path.lexists(folder / path)]
    listing = read_listing(folder)
    if listing is None or listing.run_id != run_id:
        raise RunError(f"{folder} has become the folder of another run; nothing was written")
    _refuse_foreign(folder, sorted(set(present) - listing.files))
    new = [path for path in wanted if path not in listing.files]
    if not new:
        return
    text = "".join(f"\n{json.dumps(path)}" for path in new)
    with naming(folder / LIST):
        handle = os.open(folder / LIST, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, text.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def write_listed(folder: Path, run_id: str, file: Path, content: bytes) -> None:
    """Write a file of a run atomically, listed first if it lies in the run's folder.

    Outside it is replaced whoever wrote it.
    """
    place, own = os.path.realpath(file.parent), os.path.realpath(folder)
    if Path(place).is_relative_to(own):
        list_files(folder, run_id, [(Path(place).relative_to(own) / file.name).as_posix()])
    write_atomically(file, content)


def check_own(folder: Path, name: str) -> None:
    """Raise RunError where a folder of the run, which is replaced as a whole, holds files that no
    run wrote.
    """
    _refuse_foreign(folder, [path for path in foreign_files(folder) if path.startswith(f"{name}/")])


def foreign_files(folder: Path) -> list[str]:
    """Return what lies in a folder and no run wrote: files, links, and whole folders (`NAME/`)."""
    listing = read_listing(folder)
    own = frozenset({LIST, LOCK, HOLDER, EVALUATION_LOCK})
    if listing is not None:
        own |= listing.files | listing.replaced
    folders = _folders_of(own)
    found = [
        path if is_file else f"{path}/"
        for path, is_file in _walk(folder, own)
        if (path if is_file else f"{path}/") not in own and (is_file or path not in folders)
    ]
    return sorted(found)


def delete_files(folder: Path, files: frozenset[str]) -> None:
    """Delete these files in a folder, and the folders inside it that held nothing else.

    Follows no link, so it reaches nothing outside.
    """
    folders = _folders_of(files)
    _clean_up(folder, files)
    for path, is_file in _walk(folder, files):
        if is_file and path in files:
            (folder / path).unlink(missing_ok=True)
        elif not is_file and f"{path}/" in files:
            shutil.rmtree(folder / path)
        elif not is_file and path in folders and not any((folder / path).iterdir()):
            (folder / path).rmdir()
    sync(folder)


def clean_up(folder: Path) -> None:
    """Delete what writers of a run's own files have left that were killed."""
    listing = read_listing(folder)
    assert listing is not None
    _clean_up(folder, listing.files | {LIST, HOLDER})


def _clean_up(folder: Path, files: frozenset[str]) -> None:
    for path in files:
        if (folder / path).parent.is_dir():
            clean_up_after_killed(folder / path)


def _walk(folder: Path, own: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """Yield each relative path in a folder, what a folder holds before itself, and whether it is a
    file or a link.

    Workplaces of those who write the folder's own files are left out, and so is what lies in a
    folder that holds none of these.
    """
    names_in = {parent: set[str]() for parent in _folders_of(own) | {"."}}
    for path in own:
        names_in[PurePosixPath(path).parent.as_posix()].add(PurePosixPath(path).name)
    yield from _walk_below(folder, PurePosixPath(), names_in)


def _walk_below(
    folder: Path, inner: PurePosixPath, names_in: Mapping[str, set[str]]
) -> Iterator[tuple[str, bool]]:
    names = names_in.get(inner.as_posix(), set())
    for entry in sorted(os.scandir(folder / inner), key=lambda entry: entry.name):
        path = inner / entry.name
        if not entry.is_dir(follow_symlinks=False):
            yield path.as_posix(), True
        elif not any(is_workplace(entry.name, name) for name in names):
            if path.as_posix() in names_in:
                yield from _walk_below(folder, path, names_in)
            yield path.as_posix(), False


def _folders_of(files: Iterable[str]) -> frozenset[str]:
    """Return the folders in which these files lie, without the folder that holds all."""
    parents = {parent.as_posix() for path in files for parent in PurePosixPath(path).parents}
    return frozenset(parents - {"."})


def _refuse_foreign(folder: Path, paths: list[str]) -> None:
    """Raise RunError if there are any."""
    if paths:
        raise RunError(
            f"{folder} holds {some_of(paths)}, which the run did not write and would now replace;"
            " move it elsewhere and run the same command again"
        )


def some_of(paths: list[str]) -> str:
    """Return the first few of several paths, for a message."""
    more = len(paths) - MOST_SHOWN
    return ", ".join(paths[:MOST_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _write_head(folder: Path, name: str, run_id: str, replaced: frozenset[str]) -> None:
    head = {"run": name, "id": run_id, "replaced": sorted(replaced)}
    write_atomically(folder / LIST, json.dumps(head).encode())


def _path_of(line: bytes) -> str | None:
    """Return the path that a line names, or None for one that a kill cut off."""
    try:
        path = json.loads(line)
    except ValueError:
        return None
    return path if isinstance(path, str) else None
