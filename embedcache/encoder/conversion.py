"""An encoder whose weights are a pickle alone, as a folder with safetensors that can be loaded."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.description import described_config
from embedcache.encoder.folder import WEIGHTS, encoder_folder
from embedcache.encoder.hub import PICKLED, READ, hub_model
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.pickled import write_safetensors
from embedcache.errors import EncoderError
from embedcache.files import atomic_write


def convert_encoder(source: EncoderConfig, folder: Path) -> None:
    """Write the encoder of a hub id or local folder with safetensors weights into a new folder.

    Raises EncoderError where the folder holds anything, where there are no pickled weights or they
    hold more than tensors, and where the result is no encoder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EncoderError(f"{folder} holds files already; choose another folder with --out")
    described_config(source)  # before a pickle is opened
    origin = encoder_folder(source)
    if not Path(source.source).is_dir():
        origin = hub_model(source.source, source.revision, (*READ, PICKLED)).folder
    pickles = sorted(file for file in origin.iterdir() if fnmatch(file.name, PICKLED))
    if not pickles:
        raise EncoderError(f"{source.source} has no pickled weights ({PICKLED})")
    with atomic_write(folder) as partial:
        partial.mkdir(parents=True)
        write_safetensors(pickles, partial / WEIGHTS)
        for file in origin.iterdir():
            if file.is_file() and any(fnmatch(file.name, kind) for kind in READ[:3]):
                shutil.copyfile(file, partial / file.name)
        try:
            load_encoder(EncoderConfig(source=str(partial), tokenizer=source.tokenizer))
        except EncoderError as error:
            raise EncoderError(str(error).replace(str(partial), source.source)) from None
