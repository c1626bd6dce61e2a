"""What readers of a run make of it, beside what they make of the sound one."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.injection.cases import Outcome, judged
from benchmarks.injection.compare import (
    files_below,
    metrics_differences,
    prediction_differences,
    run_differences,
)
from benchmarks.injection.processes import NORMAL, Conditions
from benchmarks.injection.scene import CACHE, EVALUATE, PREDICT, RUN, TRAIN, Scene, traced

RESUME = (*TRAIN, "--resume")
NEW_RUN = (*TRAIN, "--set", "run.dir=other")
LAST_WRITTEN = re.compile(r"open \S*small_last\.pt\S* w")
OF_FINAL = ("--checkpoint", "final")
# by what a checkpoint's name ends in: who reads it
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "_best.pt": (EVALUATE, PREDICT, PREDICT, PREDICT),
    "_final.pt": ((*EVALUATE, *OF_FINAL), (*PREDICT, *OF_FINAL), (*PREDICT, *OF_FINAL)),
    "_last.pt": (RESUME,),
    "": (EVALUATE, PREDICT, RESUME, RESUME),
}
MAY_DIFFER = ("reward", "goal", "note")  # what people may edit in a run's YAML


Compared = Callable[[Scene, Path], list[str]]


def metrics(scene: Scene, wanted: Path) -> list[str]:
    """Return where an evaluation differs from that of another project."""
    return metrics_differences(scene / "run" / "metrics.json", wanted / "run" / "metrics.json")


def predictions(scene: Scene, wanted: Path) -> list[str]:
    """Return where predictions differ from those of another project."""
    return prediction_differences(scene / "out.parquet", wanted / "out.parquet")


def resumed(scene: Scene, wanted: Path) -> list[str]:
    """Return where a run differs from that of another project."""
    return run_differences(scene / "run", wanted / "run")


def trained_anew(scene: Scene, wanted: Path) -> list[str]:
    """Return where a run in the folder `other` differs from that of another project."""
    lines = run_differences(scene / "other", wanted / "run")
    return [line for line in lines if "config.run.dir" not in line]


def untouched(scene: Scene, wanted: Path) -> list[str]:
    """Return which files of a cache differ from that of another project, by digests of our own."""
    mine, theirs = (files_below(folder / "cache.zarr") for folder in (scene.folder, wanted))
    return [f"{name} differs" for name in theirs if mine.get(name) != theirs[name]]


COMPARED: dict[str, Compared] = {
    "evaluate_model": metrics,
    "predict": predictions,
    "train": resumed,
    "verify_cache": untouched,
    "build_cache": untouched,
}


def read(
    scene: Scene,
    words: tuple[str, ...],
    wanted: Path,
    under: Conditions = NORMAL,
    but: tuple[str, ...] = (),
) -> Outcome:
    """Return the verdict on a command that reads what was damaged.

    Its result is compared with that of the sound project `wanted`; `but` are words of differences
    that do not matter.
    """
    compared = trained_anew if words == NEW_RUN else COMPARED[words[0]]
    done = scene.call(*words, under=under)

    def found() -> list[str]:
        lines = compared(scene, wanted)
        return [line for line in lines if not any(word in line for word in but)]

    return judged(done, found)


def readers_of(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the commands that read a file of a run."""
    return next(readers for end, readers in READERS.items() if name.endswith(end))


def with_final(project: Path, place: Path) -> Path:
    """Return a project whose metrics and predictions are those of the final checkpoint."""
    if place.exists():
        return place
    place.mkdir(parents=True)
    scene = Scene(place, project)
    scene.bring(RUN)
    for words in ((*EVALUATE, *OF_FINAL), (*PREDICT, *OF_FINAL)):
        done = scene.call(*words)
        assert done.code == 0, done
    return place


def interrupted(project: Path, place: Path) -> Path:
    """Return a project whose run was killed in its second epoch, so that there is more to train."""
    if place.exists():
        return place
    place.mkdir(parents=True)
    scene = Scene(place, project)
    scene.bring(CACHE)
    operations = traced(project, "train").operations
    written = [n for n, line in enumerate(operations) if LAST_WRITTEN.match(line)]
    killed = scene.call(*TRAIN, under=Conditions(kill_before=written[1]))
    assert killed.code == -9, killed
    return place
