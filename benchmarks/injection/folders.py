"""Folders of others: commands that are told to overwrite, or to go on, where something foreign
lies. Whatever the command says, nothing that was not its own may be gone.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.compare import changed_files, files_below
from benchmarks.injection.scene import BUILD, EVALUATE, RUN, TRAIN, Scene

FOREIGN = "thesis.txt"
AS_RUN = {
    "a folder with a file": "foreign",
    "an empty folder": "empty",
    "the folder itself": ".",
    "the folder above": "..",
    "the encoder": "encoder",
    "the cache": "cache.zarr",
    "a folder with the cache": "holds-cache",
    "a folder with the encoder": "holds-encoder",
    "a folder with the table": "holds-table",
    "a run with a file of somebody": "run",
    "a link to a folder": "link",
    "a link to nothing": "nowhere",
    "a file": "table.parquet",
    "a run with a folder of somebody": "run-more",
}
AS_CACHE = {
    "a folder with a file": "foreign",
    "the folder itself": ".",
    "the run": "run",
    "the encoder": "encoder",
    "a file": "table.parquet",
    "a link to a folder": "link",
    "a cache with a file of somebody": "cache.zarr",
    "a foreign folder .partial": "other.zarr",
}
AS_ENCODER = {
    "a folder with a file": "foreign",
    "the run": "run",
    "the cache": "cache.zarr",
    "the folder itself": ".",
    "an encoder with a file of somebody": "encoder",
}
HOLDS = {
    "holds-cache": ("cache.path", "cache.zarr"),
    "holds-encoder": ("encoder.source", "encoder"),
    "holds-table": ("data.path", "table.parquet"),
}
OF_ENCODER = ("encoder/model.safetensors", "encoder/standin.json")
OF_RUN = (
    *("adapter", "tokenizer", "tensorboard", "small_", "training_log.json", "plots/", "README.md"),
    *("network.safetensors", "metrics.json", "report.html"),
    *("run_files.jsonl", ".lock", ".evaluation.lock"),
)


def cases(random: Random, project: object) -> Iterator[Case]:
    """Yield commands that are sent into folders of others."""
    for option in ("--overwrite", "--resume", ""):
        for name, place in AS_RUN.items():
            words = (*TRAIN, "--set", f"run.dir={place}", *([option] if option else []))
            if place in HOLDS:
                key, inside = HOLDS[place]
                words += ("--set", f"{key}={place}/{inside}")
            label = f"train {option} into {name}".replace("  ", " ")
            yield Case("folder of others", label, partial(_play, words, ()))
    for option in ("--overwrite", "--append", ""):
        for name, place in AS_CACHE.items():
            words = (*BUILD, "--set", f"cache.path={place}", *([option] if option else []))
            label = f"build_cache {option} into {name}".replace("  ", " ")
            own = ("cache.zarr/", "other.zarr.partial/store") if "somebody" in name else ()
            yield Case("folder of others", label, partial(_play, words, own))
    for name, place in AS_ENCODER.items():
        words = ("make_encoder", "--out", place, "--size", "tiny", "--seed", "1")
        own = OF_ENCODER if place == "encoder" else ()
        yield Case("folder of others", f"make_encoder into {name}", partial(_play, words, own))
    for name in ("metrics.json", "report.html", "plots/mine.txt", "plots.partial/mine.txt"):
        label = f"evaluate_model beside {name} of somebody"
        yield Case("folder of others", label, partial(_play_beside, name))


def _bring(scene: Scene) -> None:
    """Bring a project, and folders of others beside it."""
    scene.bring(RUN)
    for name in ("foreign", "target", "holds-cache", "holds-encoder", "holds-table"):
        (scene / name).mkdir()
        (scene / name / FOREIGN).write_text("ten years")
    (scene / "empty").mkdir()
    for place, (_, inside) in HOLDS.items():
        Scene(scene / place, scene.finished).bring((inside,))
    (scene.folder.parent / FOREIGN).write_text("ten years")
    (scene / "link").symlink_to("target")
    (scene / "nowhere").symlink_to("gone")
    for name in ("run", "cache.zarr", "encoder"):
        (scene / name / FOREIGN).write_text("ten years")
    (scene / "other.zarr.partial").mkdir()
    (scene / "other.zarr.partial" / FOREIGN).write_text("ten years")
    shutil.copytree(scene.finished / "run", scene / "run-more")
    (scene / "run-more" / "mine").mkdir()
    (scene / "run-more" / "mine" / FOREIGN).write_text("ten years")


def _own(name: str, more: tuple[str, ...]) -> bool:
    """Return whether a command may replace a file: it is a run's own, or named by the case."""
    for folder in ("run/", "run-more/"):
        if name.startswith(folder) and name.removeprefix(folder).startswith(OF_RUN):
            return True
    return name.startswith(more) and not name.endswith(FOREIGN) if more else False


def _play(words: tuple[str, ...], own: tuple[str, ...], scene: Scene) -> Outcome:
    """Send a command into a folder, and look for everything that was there."""
    _bring(scene)
    return _kept(scene, words, partial(_own, more=own))


def _kept(scene: Scene, words: tuple[str, ...], own: Callable[[str], bool]) -> Outcome:
    above = scene.folder.parent
    before = files_below(above)
    done = scene.call(*words)
    lines = [line.removeprefix(f"{scene.folder.name}/") for line in changed_files(above, before)]
    lost = [line for line in lines if not own(line.split(" ")[0])]
    if lost:
        return Outcome("lost", f"{done.command}: {done.code}: {'; '.join(lost)[:500]}")
    return judged(done, list)


def _play_beside(name: str, scene: Scene) -> Outcome:
    """Evaluate a run in which somebody keeps a file where ours will lie, or near."""
    scene.bring(RUN)
    path = scene / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("ten years")
    ours = name in ("metrics.json", "report.html")
    return _kept(scene, EVALUATE, lambda line: ours or (line != f"run/{name}" and _own(line, ())))
