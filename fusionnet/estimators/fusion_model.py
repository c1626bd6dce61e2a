"""A model that is fitted to a frame, by the functions that `fusionnet init`, `build`, `train` call.

    from fusionnet import FusionModel

    model = FusionModel(strings="smiles", target="tg").fit(frame)
    model.predict(frame)  # polars for polars, pandas with its index for pandas

A fit writes the frame as Parquet, a config, the cache and the run into one folder. With `folder=`
they stay there, and are what the commands would have written: the same run goes on under a launcher
with `deepspeed jobs/train.py --config FOLDER/config.yaml --resume`. Without it they are temporary,
and vanish with the model; `save` keeps the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcache.build.decide import Existing
from embedcache.config.split import Split
from embedcache.config.table import OnInvalid
from embedcache.errors import RunError
from fusionnet.estimators.described import Columns, Description, described, read_config
from fusionnet.estimators.keeping import copy_run, run_bytes, write_run
from fusionnet.estimators.measuring import evaluation_of, probabilities, score_of
from fusionnet.estimators.workfolder import WorkFolder
from fusionnet.experiment import Experiment
from fusionnet.metrics import Metrics
from fusionnet.trained.folder import Moment
from fusionnet.trained.hub import run_folder
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.words import described_run
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.training import train_experiment


class FusionModel:
    """Predicts columns of a table from its strings, numbers and categories.

    Columns are given by name, by an entry of the config (`{"column": "tg", "unit": "K"}`), or as a
    list of these; what is not given is guessed from the frame, and printed with its reason.
    `config` is a YAML file or its mapping; each of its sections may also be given by name:
    `train={"epochs": 3}`, `encoder={"source": "encoder"}`, `split={"strategy":
    "leave_strings_out"}`. `folder` keeps what a fit writes; `device` is that of predictions.
    """

    def __init__(
        self,
        strings: Columns | None = None,
        target: Columns | None = None,
        *,
        numeric: Columns | None = None,
        categories: Columns | None = None,
        group: str | None = None,
        ignore: Columns = (),
        config: Any = None,
        folder: str | Path | None = None,
        device: str = "cpu",
        verbose: bool = True,
        **keys: Any,
    ) -> None:
        """Raise ConfigError for a key that no config has."""
        values = read_config(config, keys)
        self._said = Description(strings, numeric, categories, target, group, ignore, values)
        self._named_folder, self.device, self.verbose = folder, device, verbose
        self._place: WorkFolder | None = None
        self._model: RewardModel | None = None

    def fit(
        self,
        frame: Any,
        *,
        callbacks: Sequence[object] = (),
        resume: bool = False,
        overwrite: bool = False,
    ) -> "FusionModel":
        """Return this model, trained on a polars or pandas frame, or on the table at a path.

        The config's split says which rows train, which choose the best epoch, and which test.
        `callbacks` see each epoch's record (`fusionnet.Callback`). Where `folder` holds an earlier
        run, `resume` goes on with it and `overwrite` replaces it. Raises TableError, ConfigError,
        SplitError, EncoderError or RunError, each with what to do.
        """
        place = WorkFolder(self._named_folder)
        self._check_earlier(place, resume, overwrite)
        table = place.table_of(frame, resume)
        experiment, draft = described(table, place.path, self._said)
        place.write_config(experiment.to_yaml())
        if self.verbose:
            print(f"{draft.roles()}\n{draft.saving()}".rstrip())
        build_experiment(experiment, Existing.OVERWRITE if overwrite else Existing.KEEP)
        config = str(place.config)
        train_experiment(experiment, config, resume, overwrite, callbacks, self.verbose)
        self._place = place
        self._model = RewardModel.load(experiment.run.dir, self.device)
        return self

    def predict(
        self,
        frame: Any,
        on_invalid: OnInvalid | None = None,
        coverage: float | None = None,
        uncertainty: bool = False,
    ) -> Any:
        """Return predictions of a frame's rows as a frame of its own kind, in the targets' units.

        See `RewardModel.predict`: `predicted_<column>`, intervals and uncertainties where they are
        asked for, `known`, `outside`, `reason`.
        """
        return self.model.predict(frame, on_invalid, coverage, uncertainty)

    def predict_proba(self, frame: Any) -> Any:
        """Return the probability of each class of each row, as a frame of the frame's own kind.

        Columns are `probability_<column>_<class>`. Raises ConfigError where no target has classes.
        """
        return probabilities(self.model, frame)

    def evaluate(self, frame: Any = None, split: Split = "test") -> dict[str, Metrics]:
        """Return metrics by target column and name, in the targets' units.

        They are of rows that did not train: the run's own test rows (`split`), or those of a frame
        or path with labels. What has to be known of them is printed.
        """
        evaluation = evaluation_of(self.model.run, frame, split)
        if self.verbose and evaluation.remark:
            print(evaluation.remark)
        return evaluation.metrics

    def score(self, frame: Any = None) -> float:
        """Return R2 of regression, accuracy of classes or kappa of ordered ones on those rows.

        The rows are those of `evaluate`; of several targets it is the mean.
        """
        run = self.model.run
        return score_of(run, evaluation_of(run, frame, "test"))

    @property
    def model(self) -> RewardModel:
        """The trained model, which also computes rewards; raises RunError before a fit."""
        if self._model is None:
            raise RunError("this FusionModel is not fitted yet; call fit(frame) first")
        return self._model

    @property
    def folder(self) -> Path:
        """The run's folder, which `fusionnet evaluate --run` and `predict --run` read."""
        return self.model.run.folder

    @property
    def experiment(self) -> Experiment:
        """The resolved config that it was trained by."""
        return Experiment.model_validate(self.model.run.config)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log's record of each epoch, up to the best one."""
        return self.model.run.records

    def save(self, folder: str | Path) -> Path:
        """Copy the run to a new folder, which `load`, the commands and the hub take; return it."""
        target = Path(folder)
        copy_run(self.folder, target)
        return target

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str = "cpu",
        moment: Moment = "best",
        revision: str | None = None,
    ) -> "FusionModel":
        """Return the model in a folder, or of the Hugging Face hub by its id.

        The folder is one of `save`, of a run, or that a model was fitted in. Raises RunError where
        there is no such model, or the hub cannot be asked and its cache lacks it.
        """
        run = run_folder(name, revision)
        loaded = cls(device=device)
        loaded._model = RewardModel.load(run, device, moment)
        return loaded

    def __repr__(self) -> str:
        """What it predicts from what, and how well."""
        if self._model is None:
            given = {
                name: getattr(self._said, name)
                for name in ("strings", "target", "numeric", "categories", "group")
                if getattr(self._said, name) is not None
            }
            shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
            return f"FusionModel({shown}), not fitted"
        return f"FusionModel\n{described_run(self._model.run)}"

    def __getstate__(self) -> dict[str, Any]:
        """Return what it was told, and the files of its run: a copy or pickle has a run of its own.

        The table, the cache and the encoder do not come along.
        """
        state = self.__dict__ | {"_place": None, "_model": None}
        if self._model is not None:
            run = self._model.run
            state["_run"] = run_bytes(run.folder, run.moment)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the run from a new temporary folder."""
        content = state.pop("_run", None)
        self.__dict__.update(state)
        if content is not None:
            self._place = WorkFolder(None)
            folder, moment = write_run(content, self._place.path / "run")
            self._model = RewardModel.load(folder, self.device, moment)

    def _check_earlier(self, place: WorkFolder, resume: bool, overwrite: bool) -> None:
        """Raise RunError where a folder holds a fit, and nobody says what becomes of it."""
        if resume and overwrite:
            raise RunError("resume goes on with an earlier fit, overwrite replaces it: choose one")
        if place.has_config and not (resume or overwrite):
            raise RunError(
                f"{place.path} holds an earlier fit; go on with it by fit(frame, resume=True),"
                " replace it by fit(frame, overwrite=True), or name another folder"
            )
