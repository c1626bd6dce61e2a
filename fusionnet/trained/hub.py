"""Runs on the Hugging Face hub, and the methods by which its libraries save and load models.

What is saved is the folder that `publish` writes: safetensors and JSON, no pickle.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is a library's
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from embedcache.errors import RunError
from embedcache.values import expanded_path
from fusionnet.runfolder.listing import LIST

if TYPE_CHECKING:
    from fusionnet.trained.run import TrainedRun

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Model = TypeVar("Model", bound="OnHub")


class OnHub(ModelHubMixin, library_name="fusionnet"):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a model that has a run."""

    run: "TrainedRun"
    # not None, or the mixin would copy the whole run to find arguments that JSON can hold
    _hub_mixin_config: dict[str, Any] | None = {}  # noqa: RUF012
    _pushed_as: str | None = None

    def save_pretrained(self, save_directory: str | Path, **keywords: Any) -> str | None:
        """Write the best epoch, its card and what is read beside it to a new folder.

        With `push_to_hub=True` and `repo_id` also to the hub. Raises OutputError where there is
        such a folder with anything in it.
        """
        # not at the top: who only predicts writes no card
        from fusionnet.trained.publish import check_new

        check_new(Path(save_directory))
        return super().save_pretrained(save_directory, **keywords)

    def _save_pretrained(self, save_directory: Path) -> None:
        from fusionnet.trained.publish import fill_portable

        fill_portable(self.run, save_directory, self._pushed_as or save_directory.name)

    def push_to_hub(self, repo_id: str, **keywords: Any) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, made if there is none.

        See `huggingface_hub.ModelHubMixin.push_to_hub` for what else it takes (`private`, ...).
        """
        self._pushed_as = repo_id
        try:
            return super().push_to_hub(repo_id, **keywords)
        finally:
            self._pushed_as = None

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **model_kwargs: Any,
    ) -> Model:
        """Return the model in a folder, or of the hub by its id; the rest is as `load` takes it.

        Raises RunError where there is no such model, or the hub cannot be asked and its cache lacks
        it.
        """
        how = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
        name = pretrained_model_name_or_path
        folder = run_folder(name, revision, local_files_only=local_files_only, **how)
        found: Model = super().from_pretrained(folder, **model_kwargs)
        return found

    @classmethod
    def _from_pretrained(cls: type[Model], *, model_id: str, **keywords: Any) -> Model:
        ours = {key: keywords[key] for key in keywords.keys() - _OF_THE_MIXIN}
        loader: Any = cls
        found: Model = loader.load(model_id, **ours)
        return found


_OF_THE_MIXIN = {"revision", "cache_dir", "force_download", "local_files_only", "token"}


def run_folder(name: str | Path, revision: str | None = None, **download: Any) -> Path:
    """Return the run folder that a path or a hub id names; a hub's model is fetched to its cache.

    A path may be that of the run, or of the folder that a model was fitted in. Raises RunError
    where there is neither, or the hub cannot be asked and its cache does not hold the model.
    """
    try:
        folder = Path(expanded_path(str(name)))
    except ValueError as error:
        raise RunError(f"the folder {str(name)[:200]!r} {error}") from None
    for place in (folder, folder / "run"):
        if (place / LIST).is_file():
            return place
    if folder.exists():
        raise RunError(
            f"{folder} holds no trained model: neither it nor {folder / 'run'} has {LIST}, which"
            " training writes"
        )
    if isinstance(name, Path) or not _HUB_ID.fullmatch(str(name)):
        raise RunError(f"there is no folder {folder}")
    return _from_hub(str(name), revision, download)


def _from_hub(name: str, revision: str | None, download: dict[str, Any]) -> Path:
    """Return the folder of a hub's model in the hub's cache."""
    try:
        folder = Path(snapshot_download(name, revision=revision, **download))
    except (RepositoryNotFoundError, HFValidationError):
        raise RunError(f"there is no folder {name}, nor a model of this name on the hub") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, OSError) as error:
        off = os.environ.get("HF_HUB_OFFLINE") == "1"
        said = "HF_HUB_OFFLINE is set" if off else " ".join(str(error).split())
        raise RunError(
            f"there is no folder {name}, and the hub cannot be asked for a model of this name"
            f" ({said:.200}), nor does its cache hold it; fetch it where there is a network, with:"
            f" hf download {name}"
        ) from None
    if not (folder / LIST).is_file():
        raise RunError(
            f"the hub's {name} is no model of ours: it has no {LIST}, which FusionModel.save and"
            " RewardModel.save_pretrained write"
        )
    return folder
