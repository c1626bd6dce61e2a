"""Damage to a run folder: its checkpoints, its YAML, its log, its exports; files of another run."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import yaml

from benchmarks.injection.cases import Case, Outcome
from benchmarks.injection.compare import files_below
from benchmarks.injection.damage import Damage, damages, replaced_by
from benchmarks.injection.results import MAY_DIFFER, RESUME, read, readers_of, with_final
from benchmarks.injection.scene import CACHE, EVALUATE, RUN, TRAIN, Scene
from benchmarks.injection.texts import ODD_TEXTS, ODD_VALUES, UNKNOWN_KEY, places, put, taken

NUM_CHECKPOINTS, NUM_OTHERS, NUM_YAML = 90, 40, 60
YAML, LOG = "small_config.yaml", "training_log.json"
CHECKPOINTS = ("small_best.pt", "small_final.pt", "small_last.pt")
OTHER_RUNS = {"seed1": "train.seed=1", "seed2": "train.seed=2", "rate": "optim.lr=0.04"}
KINDS = ("metrics.json", "report.html", "plots", "plots/by_real.png", "README.md", "tensorboard")


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield damages, each met by one of the commands that read a run."""
    run = project / "run"
    final = project.parent / "final"
    others = [name for name in sorted(files_below(run)) if name not in (*CHECKPOINTS, YAML)]
    for names, num in ((list(CHECKPOINTS), NUM_CHECKPOINTS), (others, NUM_OTHERS)):
        for label, damage in damages(random, run, names, num):
            words = random.choice(readers_of(label.partition(":")[0]))
            yield _case("run damaged", label, damage, words, final)
    for label, damage in damages(random, run, [YAML], NUM_YAML // 3):
        yield _case("run's YAML", label, damage, random.choice(readers_of(YAML)))
    yield from _edited(random, yaml.safe_load((run / YAML).read_text()))
    for text in ODD_TEXTS:
        for name, attack in ((LOG, "run's log"), (YAML, "run's YAML")):
            words = random.choice((EVALUATE, RESUME))
            label = f"{name} is {text[:30]!r}"
            yield _case(attack, label, partial(_write, name, text), words)
    yield from _logs(run)
    for name in KINDS:
        for kind in ("folder", "file", "link"):
            label = f"{name}: a {kind} of another kind"
            words = random.choice((EVALUATE, RESUME))
            yield _case("run damaged", label, partial(_become, name, kind), words)
    yield from _foreign(project)


def _edited(random: Random, config: dict[str, object]) -> Iterator[Case]:
    """Yield the run's YAML with keys taken out, odd values, and unknown keys."""
    paths = list(places(config))
    for number in range(NUM_YAML):
        path = random.choice(paths)
        where = ".".join(map(str, path))
        if number % 3 == 0:
            label, edited = f"{where} taken out", taken(config, path)
        elif number % 7 == 1:
            label, edited = f"{where} misspelled", put(config, path, {UNKNOWN_KEY: 1})
        else:
            value = random.choice(ODD_VALUES)
            label, edited = f"{where} = {value!r:.40}", put(config, path, value)
        damage = partial(_write, YAML, yaml.safe_dump(edited).encode())
        yield _case("run's YAML", label, damage, random.choice(readers_of(YAML)))


def _logs(run: Path) -> Iterator[Case]:
    """Yield logs that are JSON, but not this run's."""
    records = json.loads((run / LOG).read_text())
    logs = {
        "without its last epoch": records[:-1],
        "with an epoch twice": [*records, records[-1]],
        "without epochs": [{key: each[key] for key in each if key != "epoch"} for each in records],
        "as a mapping": {"records": records},
        "with text for numbers": [{key: "x" for key in each} for each in records],
        "with empty records": [{}, {}, {}],
    }
    for label, log in logs.items():
        for words in (EVALUATE, RESUME):
            yield _case("run's log", label, partial(_write, LOG, json.dumps(log).encode()), words)


def _foreign(project: Path) -> Iterator[Case]:
    """Yield checkpoints of other runs: other seeds, another rate."""
    place = project.parent / "runs"
    needs = partial(_other_runs, project, place)
    for other in OTHER_RUNS:
        for name in CHECKPOINTS:
            for words in dict.fromkeys(readers_of(name)):
                damage = replaced_by(place / other, name)
                label = f"{name} of {other}"
                yield _case("checkpoint of another run", label, damage, words, None, needs)


def _other_runs(project: Path, place: Path) -> None:
    """Train the other runs, if that is still to be done."""
    if not place.exists():
        place.mkdir()
        scene = Scene(place, project)
        scene.bring(CACHE)
        for name, setting in OTHER_RUNS.items():
            done = scene.call(*TRAIN, "--set", setting, "--set", f"run.dir={name}")
            assert done.code == 0, done


def _case(
    attack: str,
    label: str,
    damage: Damage,
    words: tuple[str, ...],
    final: Path | None = None,
    needs: Callable[[], object] | None = None,
) -> Case:
    wanted = final if "final" in words else None
    make_final = partial(with_final, wanted.with_name("project"), wanted) if wanted else None
    play = partial(_play, attack, damage, words, wanted)
    return Case(attack, f"{label}; {words[0]}", play, needs or make_final)


def _play(
    attack: str, damage: Damage, words: tuple[str, ...], wanted: Path | None, scene: Scene
) -> Outcome:
    """Damage the run, and let a command read it."""
    scene.bring(RUN)
    damage(scene / "run")
    but = MAY_DIFFER if attack == "run's YAML" else ("tensorboard",)
    return read(scene, words, wanted or scene.finished, but=but)


def _write(name: str, content: bytes, run: Path) -> None:
    (run / name).write_bytes(content)


def _become(name: str, kind: str, run: Path) -> None:
    """Put a file, a folder or a link to nothing in the place of something."""
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "kept.txt").write_text("kept")
    elif kind == "file":
        path.write_text("kept")
    else:
        path.symlink_to("nowhere")
