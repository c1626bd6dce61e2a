"""The files of an encoder's folder, local or from the hub's cache, read as what others wrote.

A folder from elsewhere is data to be judged. Its JSON files are read here, as mappings of bounded
depth, before transformers reads them: it would recurse, or look for keys in what is no mapping.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from embedcache.config.encoder import EncoderConfig
from embedcache.errors import EncoderError
from embedcache.schema import depth_of

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
MOST_LEVELS = 64  # of nesting; tokenizers' own JSON have 8


def encoder_file(config: EncoderConfig, name: str) -> Path | None:
    """Return one file of the encoder, local or from the hub's cache, None where it is missing."""
    try:
        found = cached_file(
            config.source,
            name,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise EncoderError(
            f"the encoder {config.source} is neither a folder nor reachable on the hub:"
            f" {str(error).splitlines()[0]}"
        ) from None
    return None if found is None else Path(found)


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
        raise EncoderError(
            f"there are no safetensors weights in {config.source}; give a Hugging Face hub id or a"
            " model folder as encoder.source, or make a stand-in with: embedcache make-encoder"
            " --out encoder --size polybert"
        )
    names = _indexed_names(index)
    files = [encoder_file(config, name) for name in names]
    found = [file for file in files if file is not None]
    if len(found) < len(names):
        raise EncoderError(
            f"{config.source} is incomplete: its index names weight files that are not there"
        )
    return found


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
