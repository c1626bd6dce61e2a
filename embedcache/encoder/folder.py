"""The files of an encoder's folder, local or from the hub's cache, read as what others wrote.

A folder from elsewhere is data to be judged. Its JSON files are read here, as mappings of bounded
depth, before transformers reads them: it would recurse, or look for keys in what is no mapping.
"""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.hub import PICKLED, hub_model
from embedcache.errors import EncoderError
from embedcache.schema import depth_of
from embedcache.text import nearest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MOST_LEVELS = 64  # of nesting; tokenizers' own JSON have 8


def encoder_folder(config: EncoderConfig) -> Path:
    """Return the encoder's folder, its own or one in the hub's cache.

    Raises EncoderError where it is no folder that can be read, and no model of the hub either.
    """
    folder = Path(config.source)
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise EncoderError(f"this user may not read the encoder's folder {folder}")
        return folder
    if os.path.lexists(folder):
        what = "is a file" if folder.is_file() else "is a link to nothing"
        raise EncoderError(f"encoder.source {folder} {what}, not a model's folder or a hub id")
    try:
        return hub_model(config.source, config.revision).folder
    except EncoderError as error:
        raise EncoderError(f"{error}{_near(folder)}") from None


def _near(folder: Path) -> str:
    """Return "; did you mean 'encoder'?" where a model's folder of a similar name lies beside."""
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return nearest(folder.name, [path.name for path in beside if (path / CONFIG).is_file()])


def encoder_file(config: EncoderConfig, name: str) -> Path | None:
    """Return one file of the encoder, local or from the hub's cache, None where it is missing."""
    file = encoder_folder(config) / name
    return file if file.is_file() else None


def config_file(config: EncoderConfig) -> Path:
    """Return the encoder's config.json; raises EncoderError where there is none."""
    file = encoder_file(config, CONFIG)
    if file is None:
        raise EncoderError(
            f"{config.source} has no {CONFIG}, so it is not a Hugging Face model folder"
        )
    return file


def weight_files(config: EncoderConfig) -> list[Path]:
    """Return the encoder's safetensors files; raises EncoderError where there are none.

    Pickled weights are not read: they can run code.
    """
    whole = encoder_file(config, WEIGHTS)
    if whole is not None:
        return [whole]
    index = encoder_file(config, INDEX)
    if index is None:
        raise _no_weights(config)
    names = _indexed_names(index)
    files = [encoder_file(config, name) for name in names]
    found = [file for file in files if file is not None]
    if len(found) < len(names):
        raise EncoderError(
            f"{config.source} is incomplete: its index names weight files that are not there"
        )
    return found


def _no_weights(config: EncoderConfig) -> EncoderError:
    """Return the error that says what the encoder has instead of safetensors, and what to do."""
    folder, is_own = encoder_folder(config), Path(config.source).is_dir()
    names, reason = frozenset(os.listdir(folder)), ""
    if not is_own:
        _, names, reason = hub_model(config.source, config.revision)
    pickled = sorted(name for name in names if fnmatch(name, PICKLED))
    if pickled:
        revision = f" --revision {config.revision}" if config.revision and not is_own else ""
        return EncoderError(
            f"{config.source} has its weights as a pickle alone ({pickled[0]}), which is not read"
            " here: a pickle can run code. Write them as safetensors, in a process that takes"
            f" tensors and nothing else, with: embedcache make-encoder --from-pickle"
            f" {config.source}{revision} --out encoder; then set encoder.source to that folder"
        )
    unasked = f" in the hub's cache, and the hub is not reachable ({reason})" if reason else ""
    return EncoderError(
        f"there are no safetensors weights in {config.source}{unasked}; give a Hugging Face hub id"
        " or a model folder as encoder.source, or make a stand-in with: embedcache make-encoder"
        " --out encoder --size polybert"
    )


def _indexed_names(index: Path) -> list[str]:
    """Return the names of the weight files that an index lists."""
    listed = read_mapping(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise EncoderError(
            f"{index} has no 'weight_map' from tensors to the files that hold them; fetch the"
            " encoder again"
        )
    for tensor, name in listed.items():
        # a name with a folder in it may lead out of this one
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or Path(name).suffix != ".safetensors"
        ):
            raise EncoderError(
                f"{index}: weight_map gives {name!r:.80} for {tensor:.80}, expected the name of a"
                " .safetensors file of the same folder"
            )
    return sorted(set(listed.values()))


def read_mapping(file: Path) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises EncoderError for what is not UTF-8, no JSON, no mapping, or nested too deep.
    """
    damaged = f"{file} is damaged"
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise EncoderError(f"{damaged}: it is not UTF-8 ({error}); fetch it again") from None
    except RecursionError:
        raise EncoderError(f"{damaged}: its JSON is nested too deep; fetch it again") from None
    except ValueError as error:
        raise EncoderError(f"{damaged}: it is not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise EncoderError(
            f"{damaged}: it holds {content!r:.40} where a mapping is expected; fetch it again"
        )
    if depth_of(content) > MOST_LEVELS:
        raise EncoderError(f"{damaged}: its JSON is nested too deep; fetch it again")
    return content


def nested_items(content: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, key, value) of every mapping inside a JSON document of bounded depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            inner = f"{path}.{key}" if path else key
            yield inner, key, value
            yield from nested_items(value, inner)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from nested_items(value, f"{path}[{number}]")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
