"""A run's best epoch as safetensors and JSON alone, as it is kept on a hub or given away.

    model.safetensors   weights of network, loss and LoRA, vectors of the strings trained on
    config.json         config, columns and statistics, records, identities; all that are no tensors
    strings.json        the strings trained on, by column

Beside them lie what a run has beside its best checkpoint (`NAME_config.yaml`, calibration, trees).
Nothing that only training needs is in it, and nothing in it is executed. safetensors has no
checksum: the header of the first file holds one of all three.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from embedcache.errors import RunError
from fusionnet.blend.saved import digest_of
from fusionnet.train.content import Predicting, check_content
from fusionnet.trained.folder import MODEL, SETTINGS, STRINGS

FORMAT_VERSION = 1
_CHECKSUM = "sha256"  # of the header
_WEIGHTS, _VECTORS = "weights.", "vectors."  # first parts of tensors' names


class Portable(NamedTuple):
    """The three files' content."""

    settings: Mapping[str, Any]  # what JSON can hold, of the kinds of `Predicting`
    strings: Mapping[str, list[str]]
    weights: Mapping[str, Tensor]
    vectors: Mapping[str, Tensor]

    def files(self) -> dict[str, bytes]:
        """Return the files by name."""
        found = {
            SETTINGS: _json({"format_version": FORMAT_VERSION, **self.settings}),
            STRINGS: _json(self.strings),
        }
        tensors = {f"{_WEIGHTS}{name}": value for name, value in self.weights.items()}
        tensors |= {f"{_VECTORS}{name}": value for name, value in self.vectors.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # one key: safetensors writes several in any order, and equal runs are to be equal files
        return {**found, MODEL: save(tensors, metadata={_CHECKSUM: _checksum(found, tensors)})}


def read_portable(folder: Path) -> dict[str, Any]:
    """Return what predicting needs of a checkpoint's content (`train.content.Predicting`).

    Raises RunError where a file is missing, damaged, of another version, or not what export writes.
    """
    lacking = [name for name in (MODEL, SETTINGS, STRINGS) if not (folder / name).is_file()]
    if lacking:
        raise RunError(f"{folder} lacks {', '.join(lacking)}, parts of its model; put them back")
    texts = {name: (folder / name).read_bytes() for name in (SETTINGS, STRINGS)}
    try:
        with safe_open(folder / MODEL, framework="pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0]
        raise RunError(f"{folder / MODEL} is not a readable model: {why:.200}") from None
    if checksum is None:
        raise RunError(f"{folder / MODEL} is not a model that fusionnet export wrote")
    if checksum != _checksum(texts, tensors):
        raise RunError(
            f"{folder} is damaged: {MODEL}, {SETTINGS} and {STRINGS} are not those that were"
            " written together; restore all three, or export the run again"
        )
    settings = _parsed(folder / SETTINGS, texts[SETTINGS])
    version = settings.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise RunError(
            f"{folder} is not a model of format {FORMAT_VERSION}; it was written by another version"
        )
    content = {
        **settings,
        # as checkpoints have them: what reads these checks them
        **{key: json.dumps(settings.get(key)) for key in ("layout", "scaling")},
        "strings": _parsed(folder / STRINGS, texts[STRINGS]),
        "model_state_dict": _of(tensors, _WEIGHTS),
        "vectors": _of(tensors, _VECTORS),
    }
    check_content(Predicting, content, folder / SETTINGS)
    return content


def _of(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    """Return the mapping in a JSON file."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold a mapping, as export wrote it")
    return found


def _json(value: Any) -> bytes:
    return f"{json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)}\n".encode()


def _checksum(texts: Mapping[str, bytes], tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of the JSON files and of the arrays with their names, kinds and sizes."""
    digest = hashlib.sha256()
    for name in (SETTINGS, STRINGS):
        digest.update(hashlib.sha256(texts[name]).digest())
    digest.update(digest_of(tensors).encode())
    return digest.hexdigest()
