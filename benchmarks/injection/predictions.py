"""What predict and evaluate are asked for: odd rows, odd arguments, outputs in the way.

A request is refused, or every row of the input has its finite predictions beside it, equal to those
that the same row had before.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import polars as pl

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.compare import changed_files, files_below
from benchmarks.injection.damage import damages
from benchmarks.injection.processes import in_fork
from benchmarks.injection.scene import RUN, Scene
from benchmarks.injection.tables import ODD_CELLS, SHAPES, TEXTS, frame_of, with_cell, write_changed

NUM_DAMAGED = 30
READ = ("smiles", "x0", "x1", "x2", "kind")  # what the model reads of a row
RUN_WORDS = ("--run", "run")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "the device meta": ("--device", "meta"),
    "the device cuda:7": ("--device", "cuda:7"),
    "a device that there is not": ("--device", "quantum"),
    "an empty device": ("--device", ""),
    "a moment that there is not": ("--checkpoint", "first"),
    "a precision that there is not": ("--precision", "fp7"),
    "bf16": ("--precision", "bf16"),
    "the last epoch": ("--checkpoint", "last"),
    "an unknown argument": ("--speed", "5"),
    "no run": ("--run", "nowhere"),
    "a file as run": ("--run", "table.parquet"),
    "the cache as run": ("--run", "cache.zarr"),
    "an empty run": ("--run", ""),
    "a run with NUL": ("--run", "a\0b"),
    "a run too long": ("--run", "x" * 5000),
}
OUTPUTS: dict[str, str] = {
    "the input itself": "new.parquet",
    "the table": "table.parquet",
    "a file of the run": "run/small_best.pt",
    "a Parquet file in the run": "run/x.parquet",
    "a folder": "folder.parquet",
    "below a file": "new.parquet/x.parquet",
    "in a folder that there is not": "a/b/c.parquet",
    "no ending": "out",
    "another ending": "out.xlsx",
    "a name too long": "x" * 300 + ".parquet",
    "NUL": "a\0.parquet",
    "a link to nothing": "link.parquet",
    "a link to the input": "back.parquet",
    "CSV": "out.csv",
    "upper case": "out.CSV",
    "a name with brackets": "out [1]*.parquet",
}
INPUTS: dict[str, str] = {
    "a folder": "encoder",
    "no file": "nowhere.parquet",
    "a checkpoint": "run/small_best.pt",
    "a YAML file": "small.yaml",
    "a link to nothing": "link.parquet",
    "a name too long": "x" * 5000 + ".parquet",
    "NUL": "a\0.parquet",
    "nothing": "",
}
ASKED_OF_EVALUATE: dict[str, tuple[str, ...]] = {
    **{name: words for name, words in ARGUMENTS.items() if "bf16" not in name},
    "a split that there is not": ("--split", "all"),
    "another cache": ("--cache", "nowhere.zarr"),
    "a cache that is a run": ("--cache", "run"),
    "a cache with NUL": ("--cache", "a\0b"),
    "an oracle that there is not": ("--oracle", "nowhere.parquet"),
    "an oracle that is a run": ("--oracle", "run/small_best.pt"),
    "an oracle of other rows": ("--oracle", "new.parquet"),
    "an oracle of NaN": ("--oracle", "nan.parquet"),
    "an oracle that is text": ("--oracle", "small.yaml"),
}


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield odd requests."""
    number = 0
    for column in (*READ, "patient"):
        for cell in random.sample(ODD_CELLS, 12):
            number += 1
            change = partial(with_cell, column, cell, random.randrange(24))
            yield _of_rows(f"{column}: a cell is {cell!r:.40}", change, number)
    for name, change in SHAPES.items():
        number += 1
        yield _of_rows(name, change, number)
    for label, damage in damages(random, project, ["new.parquet"], NUM_DAMAGED):
        yield Case("predict: rows", label, partial(_play_damaged, damage))
    for name, text in TEXTS.items():
        yield Case("predict: rows", f"a CSV with {name}", partial(_play_text, text))
    for name, words in ARGUMENTS.items():
        arguments = ("--input", "new.parquet", "--output", "out.parquet", *words)
        yield Case("predict: arguments", name, partial(_play_words, arguments))
    for name, output in OUTPUTS.items():
        arguments = ("--input", "new.parquet", "--output", output)
        yield Case("predict: arguments", f"output: {name}", partial(_play_words, arguments))
    for name, source in INPUTS.items():
        arguments = ("--input", source, "--output", "out.parquet")
        yield Case("predict: arguments", f"input: {name}", partial(_play_words, arguments))
    for name, words in ASKED_OF_EVALUATE.items():
        yield Case("evaluate: arguments", name, partial(_play_evaluate, words))


def _of_rows(label: str, change: Callable[[pl.DataFrame], pl.DataFrame], number: int) -> Case:
    ending = "parquet" if number % 2 else "csv"
    return Case("predict: rows", f"{label}; {ending}", partial(_play, ending, change))


def _play(ending: str, change: Callable[[pl.DataFrame], pl.DataFrame], scene: Scene) -> Outcome:
    """Predict changed rows."""
    scene.bring(RUN)
    return _predict(scene, write_changed(scene, "new.parquet", change, f"odd.{ending}"))


def _play_damaged(damage: Callable[[Path], None], scene: Scene) -> Outcome:
    """Predict a damaged file; the sound one is kept."""
    scene.bring(RUN)
    damage(scene.folder)
    return _predict(scene, "new.parquet")


def _play_text(text: bytes, scene: Scene) -> Outcome:
    """Predict a CSV file."""
    scene.bring(RUN)
    (scene / "odd.csv").write_bytes(text)
    return _predict(scene, "odd.csv")


def _predict(scene: Scene, file: str) -> Outcome:
    done = scene.call("predict", *RUN_WORDS, "--input", file, "--output", "out.parquet")
    return judged(done, partial(_rows, scene, file, "out.parquet"))


def _rows(scene: Scene, file: str, output: str) -> list[str]:
    """Return which predictions are missing, no number, or another than the same row had."""
    source, found = frame_of(scene / file), frame_of(scene / output)
    if len(source) != len(found):
        return [f"{len(found)} rows of {len(source)}"]
    added = [name for name in found.columns if name.startswith("predicted_")]
    if not added:
        return ["there are no predictions"]
    lines = [
        f"{name} is not finite"
        for name in added
        if found[name].is_null().any() or not found[name].is_finite().all()
    ]
    known = frame_of(scene.finished / "out.parquet")
    for name in added:
        before = {row[:-1]: row[-1] for row in known.select(*READ, name).iter_rows()}
        for row in found.select(*READ, name).iter_rows():
            if row[:-1] in before and abs(before[row[:-1]] - row[-1]) > 1e-5:
                lines.append(f"{name} of a row is {row[-1]}, and was {before[row[:-1]]}")
    return lines


def _play_words(arguments: tuple[str, ...], scene: Scene) -> Outcome:
    """Predict with odd arguments; nothing that was there may be gone."""
    before = _brought(scene)
    words = arguments if "--run" in arguments else (*RUN_WORDS, *arguments)
    done = scene.call("predict", *words)
    lost = changed_files(scene.folder, before)
    output = words[words.index("--output") + 1]
    if lost and not (done.code == 0 and lost == ["back.parquet changed"]):
        return Outcome("lost", f"{done.command}: {done.code}: {'; '.join(lost)}")
    if done.code == 0 and any(word in words for word in ("bf16", "last")):
        return judged(done, list)
    return judged(done, partial(_rows, scene, "new.parquet", output))


def _play_evaluate(words: tuple[str, ...], scene: Scene) -> Outcome:
    """Evaluate with odd arguments."""
    before = _brought(scene)
    arguments = words if "--run" in words else (*RUN_WORDS, *words)
    done = scene.call("evaluate_model", *arguments, "--no-baselines")
    written = ("run/metrics", "run/report", "run/plots")
    lost = [line for line in changed_files(scene.folder, before) if not line.startswith(written)]
    if lost:
        return Outcome("lost", f"{done.command}: {done.code}: {'; '.join(lost)}")
    return judged(done, lambda: [] if words == ("--checkpoint", "last") else ["it was accepted"])


def _brought(scene: Scene) -> dict[str, str]:
    """Bring a run and what is in the way of outputs; return the digests of all of it."""
    scene.bring(RUN)
    (scene / "folder.parquet").mkdir()
    (scene / "folder.parquet" / "kept.txt").write_text("kept")
    (scene / "link.parquet").symlink_to("nowhere")
    (scene / "back.parquet").symlink_to("new.parquet")

    def write() -> bool:
        frame = pl.read_parquet(scene / "table.parquet")
        frame.with_columns(outcome=pl.lit(float("nan"))).write_parquet(scene / "nan.parquet")
        return True

    in_fork(write)
    return files_below(scene.folder)
