"""An encoder of the hub or of a folder, written anew as a folder with safetensors."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.description import described_config
from embedcache.encoder.folder import INDEX, WEIGHTS, encoder_folder
from embedcache.encoder.hub import PICKLED, READ, hub_model
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.pickled import write_safetensors
from embedcache.encoder.tokenizer import load_tokenizer
from embedcache.errors import EncoderError
from embedcache.files import atomic_write

_BESIDE_WEIGHTS = (*READ[:3], "LICENSE", "README.md")


def convert_encoder(source: EncoderConfig, folder: Path) -> None:
    """Write the encoder of a hub id or local folder with safetensors weights into a new folder.

    Raises EncoderError where the folder holds anything, where there are no pickled weights or they
    hold more than tensors, and where the result is no encoder.
    """
    refuse_full(folder)
    described_config(source)  # before a pickle is opened
    origin = encoder_folder(source)
    if not Path(source.source).is_dir():
        origin = hub_model(source.source, source.revision, (*READ, PICKLED)).folder
    pickles = sorted(file for file in origin.iterdir() if fnmatch(file.name, PICKLED))
    if not pickles:
        raise EncoderError(f"{source.source} has no pickled weights ({PICKLED})")
    with _new_encoder(source, folder) as partial:
        write_safetensors(pickles, partial / WEIGHTS)
        _copy(origin, partial, _BESIDE_WEIGHTS)


def fetch_encoder(source: EncoderConfig, folder: Path) -> str:
    """Write a model of the hub into a new folder, from a pickle where it has no other weights.

    Returns the commit that it is of. Raises EncoderError where the hub has it not or does not
    answer, and where it is no encoder with the tokenizer that the config asks for.
    """
    refuse_full(folder)
    origin = hub_model(source.source, source.revision).folder
    if any((origin / name).is_file() for name in (WEIGHTS, INDEX)):
        with _new_encoder(source, folder) as partial:
            _copy(origin, partial, READ)
    else:
        convert_encoder(source, folder)
    return origin.name


@contextmanager
def _new_encoder(source: EncoderConfig, folder: Path) -> Iterator[Path]:
    """Yield a path for a folder, which takes its name where it can be loaded as an encoder."""
    with atomic_write(folder) as partial:
        partial.mkdir(parents=True)
        yield partial
        written = EncoderConfig(source=str(partial), tokenizer=source.tokenizer)
        try:
            load_encoder(written)
            load_tokenizer(written)
        except EncoderError as error:
            said = str(error).replace(str(partial), source.source)
            raise type(error)(said) from None


def _copy(origin: Path, target: Path, patterns: Iterable[str]) -> None:
    for file in origin.iterdir():
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns):
            shutil.copyfile(file, target / file.name)


def refuse_full(folder: Path) -> None:
    """Raise EncoderError for a folder that holds anything."""
    if folder.is_dir() and any(folder.iterdir()):
        raise EncoderError(f"{folder} holds files already; choose another folder with --out")
