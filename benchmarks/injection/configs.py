"""Config files: each value exchanged for odd ones, values without sense, and files that are none.

A value is refused, or the build or training that it describes ends with finite numbers. Of the
values in `SENSELESS` each must be refused: no reader could want what they say.
"""

import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.compare import checkpoint, not_finite, written
from benchmarks.injection.processes import Conditions
from benchmarks.injection.scene import BUILD, CACHE, CONFIG, TRAIN, Scene
from benchmarks.injection.texts import ODD_TEXTS, ODD_VALUES, UNKNOWN_KEY, places, put, taken
from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment

PER_LEAF = 2
OF_BUILD = ("data", "split", "encoder", "cache")
OF_TRAINING = (("encoder", "lora"), ("encoder", "memory_budget_gib"), ("encoder", "mode"))
LARGE = 10**6
TAKES_LONG = {"epochs", "num_layers"}  # a million of them is much work, and no mistake to detect
MEMORY = Conditions(limits=((resource.RLIMIT_AS, 24 << 30),))  # of addresses, for the machine
NEW_CACHE = ("--set", "cache.path=new.zarr")
NEW_RUN = ("--set", "run.dir=other")
SENSELESS: tuple[tuple[str, Any], ...] = (
    *(("tasks.0.head", [0]), ("tasks.0.head", [-5]), ("tasks.0.head", [10**13])),
    *(("tasks.1.pos_weight", -3), ("tasks.1.pos_weight", 0), ("tasks.1.pos_weight", 1e300)),
    *(("data.row_weight.weight", 1e300), ("tasks.0.beta", 1e300), ("optim.eps", 1e300)),
    *(("optim.clip", 1e-300), ("optim.lr_log_variance", 1e30), ("optim.lr", 1e300)),
    *(("optim.betas", [2, 3]), ("optim.betas", [-1, 0.9]), ("optim.betas", [1, 1])),
    *(("split.seed", -1), ("split.seed", 2**32), ("train.seed", 2**63)),
    *(("model.fusion_width", 10**10), ("model.feedforward", 10**23), ("encoder.lora.r", 10**9)),
    *(("encoder.lora.alpha", 1e300), ("encoder.lora.target_modules", [])),
    *(("encoder.lora.target_modules", [""]), ("encoder.lora.target_modules", ["LayerNorm"])),
    *(("encoder.lora.target_modules", ["encoder"]), ("encoder.memory_budget_gib", 1e300)),
    *(("train.cpu_threads", 10**11), ("train.cpu_threads", 5000), ("optim.warmup_epochs", 1e7)),
    *(("tasks.0.goals", {"speed": 1.0}), ("data.report_by", ["real", "real"])),
    *(("data.categories", [{"column": "kind"}, {"column": "kind"}]), ("cache.path", "/")),
    *(("cache.path", "x" * 5000), ("cache.path", "a\0b"), ("run.dir", "a\0b"), ("run.dir", "/")),
    *(("run.dir", "table.parquet"), ("run.dir", "table.parquet/x"), ("run.dir", "x" * 5000)),
    *(("run.dir", "."), ("run.dir", "encoder"), ("run.dir", "cache.zarr")),
    *(("data.path", "nowhere.parquet"), ("data.path", []), ("data.path", "encoder")),
    *(("reward.terms.0.weight", 1e300), ("reward.penalties.0.penalty", 1e300)),
    *(("encoder.source", ""), ("encoder.source", "nowhere"), ("encoder.source", "a\0b")),
    *(("train.deepspeed_config", "deep.json"), ("train.deepspeed_config", "unknown.json")),
)
SETTINGS = (  # what stands behind --set
    *("", "=", "=1", "train", "train.epochs", "optim.lr=", "train.epochs=x", "train..epochs=1"),
    *(".=1", "..=1", "train.epochs.x=1", "tasks.9.name=x", "tasks.-1.name=x", "tasks.²=x"),
    *("tasks.x=1", "tasks=1", "tasks=[]", "data=5", "data.path.0=x", "x" * 5000 + "=1"),
    *("train.epochs=[", "train.epochs={", "train.epochs=" + "[" * 3000, "train.seed=" + "9" * 5000),
    *("train.seed=2020-99-99", "train.seed=&a [*a]", "train.seed=!!python/name:os.system"),
    *("extends=small.yaml", "run.name=../x", "run.name=a b", "run.name=", "train.epochs=1_000.5"),
)
EXTENDS: dict[str, bytes] = {
    "of itself": b"extends: odd.yaml",
    "in a circle": b"extends: circle.yaml",
    "a number": b"extends: 5",
    "a list": b"extends: [small.yaml]",
    "a mapping": b"extends: {a: 1}",
    "true": b"extends: true",
    "empty": b"extends: ''",
    "a folder": b"extends: encoder",
    "no file": b"extends: nowhere.yaml",
    "a name too long": b"extends: " + b"x" * 5000,
    "a name with NUL": b'extends: "a\\0b"',
    "a block twice": b"extends: small.yaml\ntrain: {epochs: 1}\ntrain: {seed: 1}",
    "a key twice": b"extends: small.yaml\ntrain: {epochs: 1, epochs: 2}",
    "a key that is a list": b"extends: small.yaml\n? [train]\n: 1",
    "a key that is a number": b"extends: small.yaml\n5: 1",
    "two documents": b"extends: small.yaml\n---\nextends: small.yaml",
    "Latin-1": "extends: small.yaml\nrun: {note: ä}".encode("latin-1"),
    "UTF-16": "extends: small.yaml".encode("utf-16"),
    "merge keys": b"extends: small.yaml\ntrain: {<<: {epochs: -1}}",
}


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield configs, each read by the command that it is for."""
    config = resolved(project)
    leaves = [path for path in places(config) if not isinstance(_at(config, path), dict | list)]
    for path in leaves:
        for value in random.sample(ODD_VALUES, PER_LEAF):
            if value == LARGE and path[-1] in TAKES_LONG:
                continue
            label = f"{'.'.join(map(str, path))} = {value!r:.40}"
            yield _value(label, put(config, path, value), path, refused=False)
    for path in random.sample(list(places(config)), 40):
        name = ".".join(map(str, path))
        yield _value(f"{name} taken out", taken(config, path), path, refused=False)
        edited = put(config, path, {UNKNOWN_KEY: 1})
        yield _value(f"{name}.{UNKNOWN_KEY} = 1", edited, path, refused=False)
    for key, value in SENSELESS:
        path = tuple(int(step) if step.isdigit() else step for step in key.split("."))
        label = f"{key} = {value!r:.40}"
        yield _value(label, put(config, path, value), path, refused=True)
    for text in ODD_TEXTS:
        play = partial(_play_text, text, random.choice(("build_cache", "train")))
        yield Case("config file", f"the config is {text[:30]!r}", play)
    for name, text in EXTENDS.items():
        for command in ("build_cache", "train"):
            label = f"extends: {name}; {command}"
            yield Case("config file", label, partial(_play_text, text, command))
    for setting in SETTINGS:
        words = random.choice((BUILD, TRAIN))
        label = f"--set {setting!r:.40}; {words[0]}"
        yield Case("config file", label, partial(_play_setting, setting, words))


def resolved(project: Path) -> dict[str, Any]:
    """Return the project's config with all defaults, for a short training."""
    short = ["train.epochs=1", "train.checkpoint_steps=null"]
    dumped: dict[str, Any] = load_experiment(project / CONFIG, short).model_dump(mode="json")
    return dumped


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _value(label: str, config: Any, path: tuple[Any, ...], refused: bool) -> Case:
    """Return the case of one config, by the command that reads the value."""
    words = BUILD if path[0] in OF_BUILD and path[:2] not in OF_TRAINING else TRAIN
    attack = "config without sense" if refused else "config value"
    return Case(attack, f"{label}; {words[0]}", partial(_play, config, words, path, refused))


def _play(
    config: Any, words: tuple[str, ...], path: tuple[Any, ...], refused: bool, scene: Scene
) -> Outcome:
    """Let a command read a config; what it accepts must come to finite numbers."""
    scene.bring(CACHE)
    (scene / "deep.json").write_text('{"a":' * 2000 + "1" + "}" * 2000)
    (scene / "unknown.json").write_text('{"zero_optimisation": {"stage": 1}}')
    text = yaml.safe_dump(config)
    (scene / CONFIG).write_text(text)
    elsewhere = NEW_CACHE if words is BUILD else NEW_RUN
    if path[:2] in (("cache", "path"), ("run", "dir")) or path in (("cache",), ("run",)):
        elsewhere = ()
    done = scene.call(*words, *elsewhere, under=MEMORY)
    if refused:
        return judged(done, lambda: ["it was accepted"])
    return judged(done, partial(_built if words is BUILD else _trained, scene))


def _built(scene: Scene) -> list[str]:
    """Return what is not finite in the new cache, wherever it was put."""
    caches = [path.parent for path in scene.folder.rglob("rows/zarr.json")]
    lines: list[str] = []
    for path in caches:
        cache = open_cache(path.parent)
        rows = cache.rows()
        lines += not_finite({"numeric": torch.from_numpy(rows.numeric.copy())})
        lines += not_finite({"weight": torch.from_numpy(rows.weight.copy())})
        for spec in cache.layout.strings:
            lines += not_finite({spec.name: cache.strings(spec.name).embeddings})
    return lines


def _trained(scene: Scene) -> list[str]:
    """Return what is not finite in a run, wherever it was put."""
    files = [file for file in scene.folder.rglob("*_final.pt") if file.parent.name != "cache.zarr"]
    if not files:
        return ["there is no final checkpoint"]
    content = checkpoint(files[0])
    kept = {key: content[key] for key in ("model_state_dict", "vectors", "records")}
    return not_finite(kept) + not_finite(written(files[0].parent / "training_log.json"))


def _play_text(text: bytes, command: str, scene: Scene) -> Outcome:
    """Give a command a file that is hardly a config."""
    scene.bring(CACHE)
    (scene / "odd.yaml").write_bytes(text)
    (scene / "circle.yaml").write_bytes(b"extends: odd.yaml")
    done = scene.call(command, "--config", "odd.yaml")
    if (scene / "executed").exists():
        return Outcome("wrong", f"{done.command}: code of the file was executed")
    return judged(done, lambda: ["it was accepted"])


def _play_setting(setting: str, words: tuple[str, ...], scene: Scene) -> Outcome:
    """Give a command an odd --set."""
    scene.bring(CACHE)
    return judged(scene.call(*words, "--set", setting), lambda: ["it was accepted"])
