"""Explain a run and write what it shows: importance.json, pictures and a page."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

import filelock

from fusionnet.evaluation.comparison_rows import split_or_whole
from fusionnet.explain.drawing import MARK
from fusionnet.explain.explain import AUTHOR, explain_rows
from fusionnet.explain.page import page_of
from fusionnet.explain.saved import explain_files
from fusionnet.explain.words import summary
from fusionnet.runfolder.listing import EVALUATION_LOCK, write_listed
from fusionnet.trained.folder import Moment
from fusionnet.trained.run import load_run
from fusionnet.workflow.evaluating import rows_for

NUM_STRINGS, REPEATS = 6, 5


def explain_folder(
    folder: Path,
    checkpoint: Moment = "best",
    split: str = "test",
    out: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    table: Sequence[Path] = (),
    num_strings: int = NUM_STRINGS,
    repeats: int = REPEATS,
    most_rows: int | None = None,
) -> str:
    """Write what the run of a folder reads on rows that it never saw; return that in words.

    `out` is the folder to write to (None: the run's own), which is made where it is missing;
    `cache` and `table` say where the rows are, as in `evaluate_folder`. `num_strings` of each
    column are drawn, and columns shuffled over at most `most_rows`. Raises RunError, CacheError or
    TableError.
    """
    run = load_run(folder, checkpoint, device)
    rows = rows_for(run, cache, table)
    split = split_or_whole(rows, split)
    found = explain_rows(run, rows, split, num_strings, repeats, most_rows)
    files = explain_files(out or folder, split)
    files.pictures.mkdir(parents=True, exist_ok=True)
    # two at once: the files of one, then those of the other
    with filelock.FileLock(folder / EVALUATION_LOCK) if out is None else nullcontext():
        for name, picture in found.pictures.items():
            write_listed(run.folder, run.run_id, files.pictures / name, picture)
        _delete_old(files.pictures, found.pictures)
        numbers = f"{found.explained.model_dump_json(indent=1)}\n".encode()
        write_listed(run.folder, run.run_id, files.numbers, numbers)
        page = page_of(run, found.explained, files.pictures)
        write_listed(run.folder, run.run_id, files.page, page.encode())
    return f"{summary(found.explained, files.pictures)}\npage: {files.page}"


def _delete_old(folder: Path, drawn: Collection[str]) -> None:
    """Delete the pictures of an earlier explanation that are not drawn any more, and no others."""
    for path in folder.iterdir():
        if path.suffix in (".png", ".svg") and path.name not in drawn and path.is_file():
            with path.open("rb") as stream:
                start = stream.read(400)
            if AUTHOR.encode() in start or MARK.encode() in start:
                path.unlink(missing_ok=True)
