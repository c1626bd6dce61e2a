"""Evaluate a run and write what it shows: metrics.json, plots and report.html."""

import json
from contextlib import nullcontext
from pathlib import Path

import filelock

from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import MissingCacheError
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.outputs import evaluation_files
from fusionnet.evaluation.report import write_report
from fusionnet.evaluation.summary import summary
from fusionnet.runfolder.listing import EVALUATION_LOCK, write_listed
from fusionnet.trained.folder import Moment
from fusionnet.trained.run import TrainedRun, all_records, load_run


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
) -> str:
    """Write the evaluation of a run folder; return its summary, or metrics.json's text.

    `out` is the folder to write to (None: the run's own), which is made where it is missing.
    `cache` says where the run's cache lies now (None: where it lay in training), `oracle` names the
    noise-free outcomes of the table's rows. Raises RunError, CacheError or TableError.
    """
    run = load_run(folder, checkpoint, device)
    evaluation = evaluate_run(
        run, cache_of(run, cache), split, oracle, with_baselines=with_baselines
    )
    metrics = json.dumps(evaluation.to_json(run), indent=1, allow_nan=False)
    records = all_records(run)
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    # two evaluations at once: the files of one, then those of the other
    with filelock.FileLock(folder / EVALUATION_LOCK) if out is None else nullcontext():
        metrics_file = evaluation_files(target, split).metrics
        write_listed(run.folder, run.run_id, metrics_file, f"{metrics}\n".encode())
        page = write_report(run, evaluation, records, target)
    return metrics if as_json else f"{summary(run, evaluation, records)}\nreport: {page}"


def cache_of(run: TrainedRun, path: Path | None) -> Cache:
    """Return the run's cache; evaluation checks that it is the one that the run was trained on."""
    try:
        return open_cache(path or run.config["cache"]["path"])
    except MissingCacheError as error:
        hint = (
            ""
            if path
            else (
                "; the run's config names it relative to where training was started: go there, or"
                " say where it lies now with --cache PATH"
            )
        )
        raise MissingCacheError(f"{error}{hint}") from None
