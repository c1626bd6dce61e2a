"""A model of the Hugging Face hub as a folder of its cache.

Where nobody answers, huggingface_hub asks again and again, 23 s for each file, and transformers
takes a file that it could not ask for as one that is not there. Here the hub is asked once in a
process, for a limited time, and all files are those of the commit that it names. Where it does not
answer, what its cache holds is used, and whatever is lacking then is said with that reason.
"""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is a library's
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from embedcache.errors import EncoderError

ANSWER_S = 10.0  # for the hub to say what a model consists of
READ = ("*.json", "*.txt", "*.model", "model*.safetensors")
PICKLED = "pytorch_model*.bin"


class HubModel(NamedTuple):
    """A model of the hub."""

    folder: Path
    names: frozenset[str]  # of its files: those of the hub, or those in its cache
    reason: str  # why the hub could not be asked for more; empty where it was


@cache
def hub_model(source: str, revision: str | None, patterns: tuple[str, ...] = READ) -> HubModel:
    """Return a model of the hub, its files of these patterns fetched.

    Raises EncoderError where the hub has no such model or revision, or does not answer while its
    cache lacks the model.
    """
    try:
        found = HfApi().model_info(source, revision=revision, timeout=ANSWER_S)
        folder = snapshot_download(
            source, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
        )
    except HFValidationError:
        raise EncoderError(f"there is no encoder folder {source}") from None
    except GatedRepoError:
        raise EncoderError(
            f"the hub's model {source} is given to those alone who asked for it: ask at"
            f" https://huggingface.co/{source}, then log in with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise EncoderError(
            f"there is no folder {source}, nor a model of this name on the hub; correct"
            " encoder.source, or, if it is a private one, log in with: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise EncoderError(
            f"the hub's model {source} has no revision '{revision}'; correct encoder.revision"
        ) from None
    except OfflineModeIsEnabled:
        return _cached_model(source, revision, "HF_HUB_OFFLINE is set")
    except (HTTPError, LocalEntryNotFoundError, ValueError) as error:  # an answer that is no JSON
        said = " ".join(str(error).split()) or type(error).__name__
        return _cached_model(source, revision, f"it does not answer: {said:.200}")
    names = frozenset(each.rfilename for each in found.siblings or [])
    return HubModel(Path(folder), names, "")


def _cached_model(source: str, revision: str | None, reason: str) -> HubModel:
    """Return what the hub's cache holds of a model; raises EncoderError where that is nothing."""
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(config, str):
        raise EncoderError(
            f"there is no folder {source}, and the hub is not reachable for a model of this name"
            f" ({reason}), nor does its cache hold one. Fetch it where there is a network, with:"
            f" hf download {source}; or name a model folder as encoder.source, or make a stand-in"
            " with: embedcache make-encoder --out encoder"
        )
    folder = Path(config).parent
    return HubModel(folder, frozenset(os.listdir(folder)), reason)
