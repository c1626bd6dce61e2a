"""Encoder folders: damaged under a cache and a run that know them, and malformed for a new cache.

A folder of other finite weights is another encoder, which a cache and a run must refuse, and a
build may take. A folder whose tensors are not those that its config asks for is none.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import zarr
from safetensors.torch import load_file, save_file

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.compare import files_below, not_finite
from benchmarks.injection.damage import Damage, damages
from benchmarks.injection.processes import in_fork
from benchmarks.injection.results import NEW_RUN, read
from benchmarks.injection.scene import BUILD, PREDICT, RUN, Scene
from benchmarks.injection.texts import ODD_TEXTS, ODD_VALUES, put, taken

NEW_CACHE = (*BUILD, "--set", "cache.path=new.zarr")
NUM_DAMAGED, NUM_CONFIGS, NUM_TEXTS = 60, 70, 30
WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# what a config may say of the same tensors, so that the encoder is another sound one
OTHER_SENSE = (
    *("hidden_act", "pooler", "eps", "prob", "dropout", "initializer", "_token_id", "dtype", "is_"),
    *("num_attention_heads", "version", "return", "output", "name", "label", "problem", "cross"),
    *("architectures", "legacy", "tie_word", "chunk", "max_relative"),
)
KEYS_OF_CODE: dict[str, Any] = {
    "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"},
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "_attn_implementation_internal": "someone/kernel:evil",
    "experts_implementation": "someone/kernel",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "evil.Evil"}},
    "transformers_weights": "evil.bin",
    "base_model_name_or_path": "someone/else",
    "model_type": "evil",
    "torchscript": True,
}


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield damaged and malformed folders."""
    encoder = project / "encoder"
    names = [name for name in sorted(files_below(encoder)) if name != "README.md"]
    for label, damage in damages(random, encoder, names, NUM_DAMAGED):
        words = random.choice((NEW_RUN, PREDICT, PREDICT))
        yield Case("encoder damaged", f"{label}; {words[0]}", partial(_known, damage, words))
    for name in TENSORS:
        for words in (NEW_CACHE, PREDICT):
            label = f"{WEIGHTS}: {name}; {words[0]}"
            yield Case("encoder malformed", label, partial(_of_tensors, name, words))
    for label, damage, other in _configs(random, json.loads((encoder / "config.json").read_text())):
        yield Case("encoder malformed", f"config.json: {label}", partial(_new, damage, other))
    for _ in range(NUM_TEXTS):
        name, text = random.choice(JSON_FILES), random.choice(ODD_TEXTS)
        label = f"{name} is {text[:30]!r}"
        yield Case("encoder malformed", label, partial(_new, partial(_write, name, text), False))
    for name, content in INDEXES.items():
        play = partial(_new, partial(_indexed, content), False)
        yield Case("encoder malformed", f"{WEIGHTS}.index.json: {name}", play)
    for key, value in KEYS_OF_CODE.items():
        for name in JSON_FILES[::2]:
            play = partial(_new, partial(_with_key, name, key, value), True)
            yield Case("encoder that runs code", f"{name}: {key} = {value!r:.40}", play)
    for name in PICKLED:
        play = partial(_new, partial(_pickled, name), True)
        yield Case("encoder that runs code", f"{name}: a pickle", play)


def _configs(random: Random, config: dict[str, Any]) -> Iterator[tuple[str, Damage, bool]]:
    """Yield config.json with a key taken out or an odd value."""
    for number in range(NUM_CONFIGS):
        key = random.choice(list(config))
        other = any(word in key for word in OTHER_SENSE)
        if number % 4 == 0:
            edited, label = taken(config, (key,)), f"{key} taken out"
        else:
            value = random.choice(ODD_VALUES)
            edited, label = put(config, (key,), value), f"{key} = {value!r:.40}"
        yield label, partial(_write, "config.json", json.dumps(edited).encode()), other


def _known(damage: Damage, words: tuple[str, ...], scene: Scene) -> Outcome:
    """Damage the encoder of a cache and a run."""
    scene.bring(RUN)
    damage(scene / "encoder")
    return read(scene, words, scene.finished)


def _new(damage: Damage, other_sense: bool, scene: Scene) -> Outcome:
    """Build a new cache from a malformed folder.

    It is refused, or the vectors are those of the sound one; where the change has another sense,
    they must be finite.
    """
    scene.bring(RUN)
    damage(scene / "encoder")
    done = scene.call(*NEW_CACHE)
    if any(scene.folder.rglob("executed")):
        return Outcome("wrong", f"{done.command}: code of the folder was executed")
    return judged(done, partial(_vectors, scene, other_sense))


def _vectors(scene: Scene, other_sense: bool) -> list[str]:
    mine, theirs = (
        torch.from_numpy(zarr.open_array(cache / "strings/polymer/embeddings", mode="r")[:])
        for cache in (scene / "new.zarr", scene.finished / "cache.zarr")
    )
    if other_sense or mine.shape != theirs.shape:
        return not_finite(mine)
    far = float((mine - theirs).abs().max())
    return [] if far < 1e-6 else [f"vectors are off by {far}"]


TENSORS: dict[str, Callable[[dict[str, torch.Tensor], str], None]] = {
    "one missing": lambda found, name: found.__delitem__(name),
    "one renamed": lambda found, name: found.update({f"{name}.x": found.pop(name)}),
    "one more": lambda found, name: found.update({"evil.weight": torch.zeros(2)}),
    "one transposed": lambda found, name: found.update({name: found[name].t().contiguous()}),
    "one with a row more": lambda found, name: found.update(
        {name: torch.cat([found[name], found[name][:1]])}
    ),
    "one empty": lambda found, name: found.update({name: found[name][:0]}),
    "one of NaN": lambda found, name: found.update({name: found[name] * float("nan")}),
    "one with an infinity": lambda found, name: (
        found[name].view(-1)[:1].fill_(float("inf")) and None
    ),
    "one of integers": lambda found, name: found.update({name: found[name].long()}),
    "one huge": lambda found, name: found.update({name: found[name] * 1e38}),
    "all missing": lambda found, name: found.clear(),
    "all with a prefix": lambda found, name: _prefixed(found),
    "two exchanged": lambda found, name: _exchanged(found),
}
VICTIM = "query_proj.weight"


def _infinite(tensor: torch.Tensor) -> None:
    tensor.view(-1)[0] = float("inf")


def _prefixed(found: dict[str, torch.Tensor]) -> None:
    for name in list(found):
        found[f"other.{name}"] = found.pop(name)


def _exchanged(found: dict[str, torch.Tensor]) -> None:
    first, second = [name for name in found if name.endswith(VICTIM)]
    found[first], found[second] = found[second], found[first]


def _of_tensors(name: str, words: tuple[str, ...], scene: Scene) -> Outcome:
    """Edit the tensors, and build a new cache or predict new strings."""
    scene.bring(RUN)
    file = scene / "encoder" / WEIGHTS

    def write() -> bool:
        found = load_file(file)
        TENSORS[name](found, next(each for each in found if each.endswith(VICTIM)))
        save_file(found, file, metadata={"format": "pt"})
        return True

    in_fork(write)
    if words is PREDICT:
        return read(scene, words, scene.finished)
    # other weights of the same names and shapes
    sound = name in ("two exchanged", "one of integers", "one transposed", "one huge")
    return judged(scene.call(*words), partial(_vectors, scene, sound))


def _write(name: str, content: bytes, encoder: Path) -> None:
    (encoder / name).write_bytes(content)


def _with_key(name: str, key: str, value: Any, encoder: Path) -> None:
    file = encoder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    code = "open('executed', 'w').close()\nclass Evil:\n    pass\n"
    (encoder / "evil.py").write_text(code)


INDEXES: dict[str, bytes] = {
    "a brace": b"{",
    "empty": b"{}",
    "a list": b"[]",
    "a map that is a list": b'{"weight_map": []}',
    "a file that is not there": b'{"metadata": {}, "weight_map": {"a": "nowhere.safetensors"}}',
    "a file outside": b'{"metadata": {}, "weight_map": {"a": "../../etc/passwd"}}',
    "a number": b'{"metadata": {}, "weight_map": {"a": 5}}',
    "null": b"null",
}


def _indexed(content: bytes, encoder: Path) -> None:
    """Name the weights by an index, as large models do."""
    (encoder / WEIGHTS).rename(encoder / "model-00001-of-00001.safetensors")
    (encoder / f"{WEIGHTS}.index.json").write_bytes(content)


class _Touch:
    """An object whose unpickling leaves a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


PICKLED = ("pytorch_model.bin", WEIGHTS, "adapter_model.bin", "training_args.bin", "spm.model")


def _pickled(name: str, encoder: Path) -> None:
    """Put a pickle in the place of the weights, or beside them."""
    if name in ("pytorch_model.bin", "adapter_model.bin"):
        (encoder / WEIGHTS).unlink()
    if name == "adapter_model.bin":
        (encoder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    (encoder / name).write_bytes(pickle.dumps(_Touch()))
