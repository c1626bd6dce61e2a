"""Damage to cache.zarr, and roots that were edited by someone who knows the digest's formula."""

import copy
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.injection.cases import Case, Outcome
from benchmarks.injection.compare import files_below
from benchmarks.injection.damage import Damage, damages, replaced_by
from benchmarks.injection.results import NEW_RUN, read
from benchmarks.injection.scene import BUILD, EVALUATE, RUN, Scene
from benchmarks.injection.texts import ODD_VALUES, places, put, taken

VERIFY = ("verify_cache", "cache.zarr")
OTHER = (*BUILD, "--set", "cache.path=older.zarr", "--set", "split.seed=1")
NUM_DAMAGED, NUM_OLDER, NUM_EXTRA, NUM_FORGED = 200, 30, 10, 60
READERS = (VERIFY, VERIFY, VERIFY, EVALUATE, EVALUATE, BUILD, NEW_RUN)


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield damages and forgeries, each met by one of the commands that read a cache."""
    cache = project / "cache.zarr"
    names = sorted(files_below(cache))
    for label, damage in damages(random, cache, names, NUM_DAMAGED):
        yield _case("cache damaged", label, damage, random)
    older = project.parent / "caches" / "older.zarr"
    needs = partial(_older, project, older)
    for name in random.sample(names, NUM_OLDER):
        label = f"{name}: of another build"
        case = _case("cache damaged", label, replaced_by(older, name), random)
        yield case._replace(needs=needs)
    for _ in range(NUM_EXTRA):
        name = f"{random.choice(names)}.{random.randrange(100)}"
        yield _case("cache damaged", f"{name}: a file more", partial(_more, name), random)
    yield from _forgeries(random, json.loads((cache / "zarr.json").read_text()))


def _older(project: Path, cache: Path) -> None:
    """Build another cache of the same table, if that is still to be done."""
    if not cache.parent.exists():
        cache.parent.mkdir()
        scene = Scene(cache.parent, project)
        scene.bring(("encoder", "table.parquet", "columns.yaml", "small.yaml"))
        done = scene.call(*OTHER)
        assert done.code == 0, done


def _forgeries(random: Random, root: dict[str, Any]) -> Iterator[Case]:
    """Yield roots with a key taken out or an odd value put in, under a digest of their own."""
    paths = [path for path in places(root["attributes"]) if path != ("digest",)]
    named = [path for path in paths if path[0] != "files" or len(path) == 1]
    files = [path for path in paths if path[0] == "files" and len(path) > 1]
    for number in range(NUM_FORGED):
        path = random.choice(named if number % 6 else files)
        forged = copy.deepcopy(root)
        if number % 3 == 0:
            label = f"root: {'.'.join(map(str, path))} taken out"
            forged["attributes"] = taken(forged["attributes"], path)
        else:
            value = random.choice(ODD_VALUES)
            label = f"root: {'.'.join(map(str, path))} = {value!r:.40}"
            forged["attributes"] = put(forged["attributes"], path, value)
        yield _case("cache forged", label, partial(_write_root, forged), random)


def _write_root(document: dict[str, Any], cache: Path) -> None:
    """Write a root with a digest that fits, as `embedcache.cache.manifest` would."""
    content = {key: value for key, value in document["attributes"].items() if key != "digest"}
    digest = hashlib.sha256(_spelled(content)).hexdigest()
    attributes = {**content, "digest": digest}
    (cache / "zarr.json").write_bytes(_spelled({**document, "attributes": attributes}))


def _spelled(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def _more(name: str, cache: Path) -> None:
    (cache / name).write_bytes(b"{}")


def _case(attack: str, label: str, damage: Damage, random: Random) -> Case:
    words = random.choice(READERS)
    but = ("zarr.json differs",) if attack == "cache forged" else ()  # its results may not
    return Case(attack, f"{label}; {words[0]}", partial(_play, damage, words, but))


def _play(damage: Damage, words: tuple[str, ...], but: tuple[str, ...], scene: Scene) -> Outcome:
    """Damage the cache, and let a command read it."""
    scene.bring(RUN)
    damage(scene / "cache.zarr")
    damaged = files_below(scene / "cache.zarr")
    outcome = read(scene, words, scene.finished, but=but)
    if files_below(scene / "cache.zarr") != damaged:
        return Outcome("lost", f"{' '.join(words)} has changed the cache")
    return outcome
