"""Checkpoints made by hand: valid files of wrong content, numbers that are none, and pickles that
would run code.

A checkpoint of other finite numbers cannot be told from one that training wrote; it is another
model. So what is asked here is: a refusal in words, or finite results; and that nothing runs.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.compare import checkpoint, not_finite
from benchmarks.injection.processes import in_fork
from benchmarks.injection.results import RESUME, interrupted
from benchmarks.injection.scene import CACHE, EVALUATE, PREDICT, RUN, Scene
from benchmarks.injection.texts import ODD_VALUES, places, put, taken

NUM_EDITED, NUM_TENSORS = 130, 60
READERS = (EVALUATE, PREDICT, PREDICT, RESUME)
OF_TRAINING = (
    "optimizer_state_dict",
    "scheduler_state_dict",
    "step",
    "best_val_loss",
    "order",
    "epoch_losses",
    "epoch_seconds",
    "gradient_norm",
)  # read by a resumed run alone
BEST, LAST = "small_best.pt", "small_last.pt"


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield checkpoints with one value changed, and pickles."""
    # torch may start threads: only a fork reads the file
    found = in_fork(partial(_places_of, project / "run" / LAST))
    values = [tuple(path) for path, is_tensor in found if not is_tensor]
    tensors = [tuple(path) for path, is_tensor in found if is_tensor]
    begun = project.parent / "interrupted"
    top = [path for path in values if len(path) == 1]
    for number in range(NUM_EDITED):
        path = random.choice(top if number % 2 else values)
        where = ".".join(map(str, path))
        words = _reader(random, path)
        if number % 3 == 0:
            yield _case(f"{where} taken out", partial(taken, path=path), words, begun)
        else:
            value = random.choice(ODD_VALUES)
            yield _case(
                f"{where} = {value!r:.40}", partial(put, path=path, new=value), words, begun
            )
    for _ in range(NUM_TENSORS):
        path, name = random.choice(tensors), random.choice(list(TENSORS))
        words = _reader(random, path)
        yield _case(
            f"{'.'.join(map(str, path))}: {name}", partial(_with_tensor, path, name), words, begun
        )
    for name in PICKLES:
        for words in READERS[1:]:
            label = f"pickle: {name}; {words[0]}"
            yield Case("checkpoint that runs code", label, partial(_play_pickle, name, words))


def _places_of(file: Path) -> list[tuple[Any, bool]]:
    content = checkpoint(file)
    named = (path for path in places(content) if all(isinstance(key, str | int) for key in path))
    # an earlier epoch's checkpoint has fewer records
    paths = [path for path in named if path[0] != "records" or path[1:2] in ((), (0,))]
    return [(path, isinstance(_at(content, path), torch.Tensor)) for path in paths]


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone().float()
        changed.view(-1)[:1] = value
        return changed

    return change


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "one NaN": _one(float("nan")),
    "one infinity": _one(float("inf")),
    "all NaN": lambda tensor: torch.full_like(tensor.float(), float("nan")),
    "one 1e38": _one(1e38),
    "a row more": lambda tensor: torch.stack([tensor, tensor]),
    "no rows": lambda tensor: tensor.reshape(-1)[:0],
    "a scalar": lambda tensor: torch.tensor(1.0),
    "integers": lambda tensor: tensor.to(torch.int64),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bf16": lambda tensor: tensor.to(torch.bfloat16),
    "a list": lambda tensor: tensor.tolist(),
    "sparse": lambda tensor: tensor.float().to_sparse(),
    "on the meta device": lambda tensor: tensor.to("meta"),
}


def _with_tensor(path: tuple[Any, ...], name: str, content: Any) -> Any:
    return put(content, path, TENSORS[name](_at(content, path)))


def _reader(random: Random, path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return a command that reads what lies at a place of a checkpoint."""
    return RESUME if path[0] in OF_TRAINING else random.choice(READERS)


def _case(label: str, edit: Callable[[Any], Any], words: tuple[str, ...], begun: Path) -> Case:
    play = partial(_play, edit, words, begun)
    needs = partial(interrupted, begun.with_name("project"), begun) if words is RESUME else None
    return Case("checkpoint made by hand", f"{label}; {words[0]}", play, needs)


def _play(edit: Callable[[Any], Any], words: tuple[str, ...], begun: Path, scene: Scene) -> Outcome:
    """Let a command read an edited checkpoint; a resumed run has more to train."""
    if words is RESUME:
        Scene(scene.folder, begun).bring((*CACHE, "run"))
    else:
        scene.bring(RUN)
    file = scene / "run" / (LAST if words is RESUME else BEST)

    def write() -> bool:
        torch.save(edit(checkpoint(file)), file)
        return True

    in_fork(write)
    return judged(scene.call(*words), partial(_not_finite, words, scene))


def _not_finite(words: tuple[str, ...], scene: Scene) -> list[str]:
    """Return which results of a reader are no numbers."""
    if words is PREDICT:
        rows = pl.read_parquet(scene / "out.parquet")
        added = [name for name in rows.columns if name.startswith(("predicted_", "reward"))]
        return not_finite(rows.select(added).to_dict(as_series=False))
    if words is EVALUATE:
        text = (scene / "run" / "metrics.json").read_text()
        return [f"metrics.json holds {word}" for word in ("NaN", "Infinity") if word in text]
    content = checkpoint(scene / "run" / LAST)
    weights = ("model_state_dict", "optimizer_state_dict", "vectors", "records")
    return not_finite({key: content.get(key) for key in weights})


class _Touch:
    """An object whose unpickling leaves a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


class _Evaluate:
    """An object whose unpickling runs Python."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('executed', 'w').close()",)


def _zipped(payload: bytes, names: tuple[str, ...] = ("archive/data.pkl",)) -> bytes:
    """Return a zip as torch writes it, with a pickle of ours in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def _legacy(payload: bytes) -> bytes:
    """Return torch's format before zip: a magic number, a version, system facts, the content."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, protocol=2) for part in parts) + payload


def _objects(payload: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([payload], dtype=object), allow_pickle=True)
    return stream.getvalue()


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bytearray(200_000_000)))
    return stream.getvalue()


def _of_checkpoint(payload: object) -> bytes:
    """Return a pickle that looks like a checkpoint's, with an object of ours in it."""
    return pickle.dumps({"format_version": 3, "config": payload, "epoch": 1}, protocol=2)


PICKLES: dict[str, Callable[[], bytes]] = {
    "plain": lambda: pickle.dumps(_Touch()),
    "plain eval": lambda: pickle.dumps(_Evaluate()),
    "in torch's zip": lambda: _zipped(pickle.dumps(_Touch(), protocol=2)),
    "eval in torch's zip": lambda: _zipped(pickle.dumps(_Evaluate(), protocol=2)),
    "inside a checkpoint": lambda: _zipped(_of_checkpoint(_Touch())),
    "legacy format": lambda: _legacy(pickle.dumps(_Touch(), protocol=2)),
    "TorchScript": lambda: _zipped(
        pickle.dumps(_Touch(), protocol=2), ("archive/data.pkl", "archive/constants.pkl")
    ),
    "numpy objects": lambda: _objects(_Touch()),
    "names that leave the folder": lambda: _zipped(b"x", ("../../executed", "archive/data.pkl")),
    "unpacks to 200 MB": _bomb,
    "an unknown opcode": lambda: _zipped(b"\x80\x02\xff."),
    "endless memo": lambda: _zipped(b"\x80\x02" + b"]" * 100_000 + b"."),
    "a huge tuple": lambda: _zipped(b"\x80\x02\x8e" + struct.pack("<Q", 2**62) + b"."),
    "no pickle": lambda: _zipped(b""),
}


def _play_pickle(name: str, words: tuple[str, ...], scene: Scene) -> Outcome:
    """Let a command read a file whose unpickling would run code."""
    scene.bring(RUN)
    for file in (LAST, BEST):
        (scene / "run" / file).unlink()
        (scene / "run" / file).write_bytes(PICKLES[name]())
    done = scene.call(*words)
    if any(scene.folder.rglob("executed")) or (scene.folder.parent / "executed").exists():
        return Outcome("wrong", f"{done.command}: {name}: code was executed")
    return judged(done, lambda: ["a checkpoint was read from it"])
