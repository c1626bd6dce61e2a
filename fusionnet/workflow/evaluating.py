"""Evaluate a run and write what it shows: metrics.json, plots and report.html."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from embedcache.cache.reader import open_cache
from embedcache.config.split import SPLITS
from embedcache.errors import MissingCacheError, RunError, StaleCacheError, UserError
from fusionnet.evaluation.comparison_rows import split_or_whole
from fusionnet.evaluation.evaluate import evaluate_rows
from fusionnet.evaluation.outputs import comparison_file, evaluation_files
from fusionnet.evaluation.report import ShownBeside, write_report
from fusionnet.evaluation.result import Evaluation
from fusionnet.evaluation.rows import RunRows, rows_of_cache
from fusionnet.evaluation.summary import summary
from fusionnet.explain.page import section_beside
from fusionnet.runfolder.listing import EVALUATION_LOCK, write_listed
from fusionnet.trained.folder import Moment
from fusionnet.trained.run import TrainedRun, all_records, load_run
from fusionnet.workflow.comparing import comparison_of, paired
from fusionnet.workflow.reporting import shown_beside


def evaluate_folder(
    folder: Path,
    checkpoint: Moment = "best",
    split: str = "test",
    out: Path | None = None,
    cache: Path | None = None,
    oracle: Path | None = None,
    device: str = "cpu",
    as_json: bool = False,
    with_baselines: bool = True,
    table: Sequence[Path] = (),
    against: Path | None = None,
    with_live: bool = True,
) -> str:
    """Write the evaluation of a run folder; return its summary, or metrics.json's text.

    `out` is the folder to write to (None: the run's own), which is made where it is missing.
    `cache` says where the run's cache lies now (None: where it lay in training), `oracle` names the
    noise-free outcomes of the table's rows. `table` are the files of the run's own table, or a
    labelled table of other rows, all of which are evaluated. `against` is the folder of another
    run, which is compared on the same rows (`as_json`: the comparison's text). `with_live` off
    leaves the trained weights out of the page. Raises RunError, CacheError or TableError.
    """
    run = load_run(folder, checkpoint, device)
    rows = rows_for(run, cache, table)
    pair = None  # refused before the work
    if against is not None:
        other = load_run(against, checkpoint, device)
        beside = _rows_of_other(other, cache, table)
        pair = paired(run, rows, other, beside, split, same_files=bool(table))
    split = split_or_whole(rows, split)
    start = time.perf_counter()
    evaluation = evaluate_rows(run, rows, split, oracle, with_baselines=with_baselines)
    spent_s = {"predictions and metrics of this page": time.perf_counter() - start}
    if pair is not None:
        evaluation = replace(evaluation, comparison=comparison_of(pair, evaluation))
    records = all_records(run)
    # two evaluations at once: the files of one, then those of the other
    with filelock.FileLock(folder / EVALUATION_LOCK) if out is None else nullcontext():
        explained = section_beside(run, out or folder, split)
        shown = shown_beside(run, evaluation, rows, spent_s, explained, with_live)
        text, page = _write(run, evaluation, shown, records, out or folder, against)
        if out is None and split == SPLITS[-1]:
            # not at the top: huggingface_hub, which writes cards, takes a while to import
            from fusionnet.trained.card import renew_card

            renew_card(run)
    return text if as_json else f"{summary(run, evaluation, records)}\nreport: {page}"


def _write(
    run: TrainedRun,
    evaluation: Evaluation,
    shown: ShownBeside,
    records: list[dict[str, Any]],
    target: Path,
    against: Path | None,
) -> tuple[str, Path]:
    """Write what an evaluation found into a folder.

    Returns the text of metrics.json, or of the comparison where there is one, and the page's path.
    """
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.to_json(run), indent=1, allow_nan=False)
    file = evaluation_files(target, evaluation.split).metrics
    write_listed(run.folder, run.run_id, file, f"{text}\n".encode())
    if against is not None and evaluation.comparison is not None:
        text = evaluation.comparison.model_dump_json(indent=1)
        file = comparison_file(target, evaluation.split, against)
        write_listed(run.folder, run.run_id, file, f"{text}\n".encode())
    return text, write_report(run, evaluation, records, target, shown)


def rows_for(run: TrainedRun, cache: Path | None, table: Sequence[Path]) -> RunRows:
    """Return the rows to evaluate: the run's own, or those of another table.

    Without `cache` and `table` they are those of the run's cache, or where that is gone or of
    something else now, of the run's table as it was. Raises CacheError where neither is there.
    """
    if table:
        return _rows_of_tables(run, table)
    try:
        return rows_of_cache(run, open_cache(cache or run.config["cache"]["path"]))
    except (MissingCacheError, StaleCacheError) as error:
        # not at the top: rows of a cache need no scikit-learn and no encoder
        from fusionnet.evaluation.tablerows import is_own_table, rows_of_own_table

        if cache is None and is_own_table(run, run.data.files):
            own = rows_of_own_table(run, run.data.files)
            remark = f"{error}\nRows and splits are those of the run's own table, {own.where}"
            return replace(own, remark=remark)
        hint = "evaluate the rows of a table, whatever its cache is, with --table FILE"
        if cache is None:
            hint = (
                "the run's config names the cache relative to where training was started, and its"
                f" table is not there as it was: say where the cache lies now with --cache PATH, or"
                f" {hint}"
            )
        raise type(error)(f"{error}\n{hint}") from None


def _rows_of_other(other: TrainedRun, cache: Path | None, table: Sequence[Path]) -> RunRows:
    """Return the rows of a run that is compared, from the cache that is named, or from its own."""
    try:
        return rows_for(other, cache, table)
    except (MissingCacheError, StaleCacheError):
        if cache is None:
            raise
        return rows_for(other, None, table)


def _rows_of_tables(run: TrainedRun, table: Sequence[Path]) -> RunRows:
    """Return the rows of the run's own table, or of another one."""
    # not at the top: as above
    from fusionnet.evaluation.tablerows import is_own_table, rows_of_own_table, rows_of_table

    if is_own_table(run, table):
        return rows_of_own_table(run, table)
    if len(table) > 1:
        raise RunError(
            f"{', '.join(map(str, table))} are not the files that {run.folder} was trained on"
            " (other bytes, number or order); evaluate other tables one by one"
        )
    return rows_of_table(run, table[0], _own_rows_if_any(run))


def _own_rows_if_any(run: TrainedRun) -> RunRows | None:
    """Return the run's own rows, None where they cannot be had."""
    try:
        return rows_for(run, None, ())
    except UserError:
        return None
