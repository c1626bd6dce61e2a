"""The short form of `python -m benchmarks faults`, played in a fork of the warm server: a few cases
of every attack; and the same machinery on commands with a fault planted in them, which it must see.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.injection import caches, folders, kills, predictions
from benchmarks.injection.cases import Case
from benchmarks.injection.pool import play

# of each attack, one case whose label holds this; those left out cost 5 to 20 s a case
SHORT: dict[str, tuple[str, ...]] = {
    "kills": ("build: killed before", "train: killed before", "predict: killed after"),
    "caches": ("; verify", "; evaluate", "root: "),
    "runs": ("; predict", "small_last.pt"),
    "checkpoints": ("; predict", "pickle"),
    "encoders": ("; predict", "config.json: "),
    "configs": ("; build", "extends", "--set"),
    "tables": ("a cell is", "bit "),
    "predictions": ("a cell is", "output", "oracle"),
    "disks": ("predict: no file above",),
    "together": ("two builds", "predict: SIG"),
    "folders": ("train --overwrite into a folder", "make_encoder"),
}
LEFT_OUT = {"launchers", "names"}


def short_form(folder: Path) -> None:
    """Play the short form, then the planted faults, and write how the cases ended."""
    import benchmarks.injection.warm  # noqa: F401  (in the fork alone: it freezes what is there)
    from benchmarks.faults import cases_of
    from benchmarks.injection.scene import prepare

    project = prepare(folder)
    short = {}
    for name, wanted in SHORT.items():
        cases = list(enumerate(cases_of(name, 0, project)))
        chosen = [
            Random(name).choice([each for each in cases if words in each[1].label])
            for words in wanted
        ]
        short[name] = play(dict(chosen).items(), project, folder / name, workers=1)
    planted = {
        name: play(list(enumerate(cases)), project, folder / "planted" / name, 1, plant=plant)
        for name, (plant, cases) in planted_faults(project).items()
    }
    for name, results in (("short", short), ("planted", planted)):
        text = json.dumps(
            {key: [each._asdict() for each in found] for key, found in results.items()}
        )
        (folder / f"{name}.json").write_text(text)


def planted_faults(project: Path) -> dict[str, tuple[Callable[[], None], list[Case]]]:
    """Return faults to plant in every command, each with cases that must show it."""
    random = Random(0)
    damaged = [
        case
        for case in caches.cases(random, project)
        if case.label.startswith("rows/numeric/c") and "flipped; verify" in case.label
    ]
    killed = [
        case
        for case in kills.cases(random, project)
        if case.label.startswith("train: killed before")
        and "small_step.pt" in case.label
        and ";" not in case.label
    ]
    asked = [case for case in predictions.cases(random, project) if "no run" in case.label]
    overwritten = [
        case
        for case in folders.cases(random, project)
        if case.label == "build_cache --overwrite into a folder with a file"
    ]
    return {
        "wrong": (_digests_unchecked, damaged[:1]),
        "wrong after a kill": (_epoch_not_logged, killed[len(killed) // 2 :][:1]),
        "traceback": (_errors_without_names, asked[:1]),
        "lost": (_everything_deleted, overwritten[:1]),
    }


def _digests_unchecked() -> None:
    """Let damaged files of a cache pass."""
    from embedcache.cache import manifest

    manifest.check_digests = lambda *arguments: None


def _epoch_not_logged() -> None:
    """Let the log lack the last epoch, as it did after a kill before its line was written."""
    from fusionnet.train import runlog

    real = runlog.write_json
    runlog.write_json = lambda path, records: real(path, records[:-1])


def _errors_without_names() -> None:
    """Let what a user can cause end as a defect of ours."""
    from fusionnet.commands import command

    command.UserError = KeyboardInterrupt


def _everything_deleted() -> None:
    """Let a build begin by deleting what lies where its cache is to be."""
    import shutil

    from fusionnet.commands import build_cache

    real = build_cache.load_experiment

    def load(*arguments: Any) -> Any:
        experiment = real(*arguments)
        shutil.rmtree(experiment.cache.path)
        return experiment

    build_cache.load_experiment = load
