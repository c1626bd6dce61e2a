"""A trained run, loaded for prediction: no DeepSpeed, no raw table, no cache.

The encoder is loaded (by `vectors`) only for strings that the run has never seen. The checkpoint
decides what the model is. From the run's YAML file, which people edit, only what may change after
training is read: the reward, what may be designed, the goals, the note, and where the encoder lies
now (its digest is checked). Nothing is filled in: a checkpoint that lacks a weight is refused, and
so is one whose bytes changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.cache.layout import Layout
from embedcache.config.encoder import EncoderConfig
from embedcache.config.table import DataConfig
from embedcache.errors import RunError
from embedcache.scaling import Scaling
from embedcache.schema import parse_config
from fusionnet.blend.blend import Blend, shares_in_words
from fusionnet.calibration.saved import Calibration
from fusionnet.config.design import DesignConfig
from fusionnet.config.model import ModelConfig
from fusionnet.config.reward import RewardConfig
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.config.train import VAL_LOSS, TrainConfig
from fusionnet.model.probability import meaning_of
from fusionnet.model.trainable import TrainableModel
from fusionnet.recipe import Recipe, model_of, observed_tasks
from fusionnet.train.checkpoint import check_run_id
from fusionnet.train.content import check_weights, read_content
from fusionnet.train.monitor import best_epoch
from fusionnet.train.proof.record import certificate, proof_path, read_proofs
from fusionnet.trained.beside import blend_beside, calibration_beside
from fusionnet.trained.folder import Moment, is_portable, moment_path, read_config
from fusionnet.trained.portable import read_portable
from fusionnet.trained.weights import load_weights, own_random_state
from fusionnet.trained.written import WrittenRun, parse_written, relocated, tasks_as_written

Precision = Literal["fp32", "bf16"]
# held while a Memory is read or filled: threads share a run, and encode a new string once. One for
# all runs, since a run travels by pickle and an encoder takes all cores anyway
REMEMBERING = RLock()


@dataclass
class Memory:
    """What a run has encoded since it was loaded: its encoders, and new strings by column."""

    encoders: dict[str, nn.Module] = field(default_factory=dict)
    vectors: dict[str, dict[str, Float[Tensor, " E"]]] = field(default_factory=dict)
    # features of new strings by column, and the users' tables that hold some
    features: dict[str, dict[str, Float[Tensor, " K"]]] = field(default_factory=dict)
    tables: Any = None  # OwnTables, whose packages a run of known strings does not need
    # new string -> its parts that the tokenizer does not know
    unknown: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedRun:
    """Everything that turns raw units into predictions, and what the run says of itself."""

    folder: Path
    name: str
    run_id: str
    moment: Moment
    epoch: int
    config: dict[str, Any]
    data: DataConfig
    reward: RewardConfig
    design: DesignConfig  # what may be chosen for a patient
    note: str
    recipe: Recipe
    layout: Layout
    scaling: Scaling
    identity: dict[str, str]
    saving: str  # what a training step encoded instead of what, "" where it encoded nothing once
    records: list[dict[str, Any]]
    model: TrainableModel  # network and loss; encoders are loaded when a new string asks for one
    strings: dict[str, dict[str, int]]  # by string column: text -> row of `vectors`
    # by string column, of the strings trained on: vectors, with scaled features behind them
    vectors: dict[str, Float[Tensor, "_S _E"]]
    encoder_state: dict[str, Tensor]
    blend: Blend | None = None  # trees that predict beside the network
    calibration: Calibration | None = None  # what validation rows say of the best epoch
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that were trained, in the order of the outputs."""
        return self.recipe.tasks

    @property
    def meanings(self) -> list[str]:
        """What the predictions of the tasks with classes are, in words."""
        return [
            meaning_of(task, self.scaling, self.temperature(task))
            for task in self.tasks
            if task.kind != "regression"
        ]

    def temperature(self, task: Task) -> float:
        """Return what the logits of a task's probabilities are divided by."""
        known = {} if self.calibration is None else self.calibration.chances
        return known[task.name].temperature if task.name in known else 1.0

    @property
    def standin(self) -> bool:
        """Whether any encoder was a stand-in without published weights."""
        return any(spec.standin for spec in self.layout.strings)

    @property
    def device(self) -> torch.device:
        """Where the model and the vectors are."""
        return next(self.model.network.parameters()).device

    @property
    def certificate(self) -> str:
        """What training recomputed of itself, and how far off it was, in words."""
        return certificate(read_proofs(proof_path(self.folder, self.name)))

    @property
    def shares(self) -> str:
        """How much network and trees count in each target, in words; "" without trees."""
        return "" if self.blend is None else shares_in_words(self.blend, self.tasks)

    @property
    def record(self) -> dict[str, Any]:
        """The log's record of the epoch that this checkpoint ends."""
        return self.records[self.epoch - 1]


def load_run(
    folder: str | Path,
    moment: Moment = "best",
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    with_blend: bool = True,
    with_calibration: bool = True,
) -> TrainedRun:
    """Return a run from its folder, frozen and in evaluation mode.

    Executes no code from the files and leaves the random state of the process alone. `precision` is
    that of the network's products: bf16 rounds predictions to about three digits, and is faster on
    GPUs and on CPUs that have instructions for it (`precision.multiplies_bf16`). Boosted trees, if
    the config blends them, and what was calibrated belong to the best epoch; `with_blend` and
    `with_calibration` off leave them aside. While a training goes on beyond the epoch that was
    calibrated last, probabilities are not calibrated. Raises RunError where the run is missing,
    incomplete or damaged.
    """
    folder = Path(folder)
    listing, values = read_config(folder)
    name = listing.name
    _check_device(device)
    path = moment_path(folder, name, moment)
    checkpoint = read_portable(folder) if is_portable(folder) else read_content(path)
    check_run_id(path, checkpoint, listing.run_id)
    _check_moment(path, checkpoint, moment)
    layout, scaling = _columns_of(checkpoint, path)
    file = folder / f"{name}_config.yaml"
    written = parse_written(values, checkpoint["config"], file)
    data, recipe = _recipe_of(checkpoint["config"], written, layout, path, file)
    of_encoders, of_network = _by_owner(checkpoint["model_state_dict"])
    with torch.device("meta"):  # no memory for sizes that the weights do not have
        check_weights(model_of(recipe, layout, scaling, {}), of_network, path)
    model = _build(recipe, layout, scaling, device, precision)
    load_weights(model, of_network, path)
    blend, calibration = None, None
    if with_calibration and moment == "best":
        calibration = calibration_beside(listing, folder, written.calibration, checkpoint, recipe)
    if with_blend and moment == "best":
        blend = blend_beside(listing, folder, written.blend, checkpoint, recipe)
    return TrainedRun(
        folder=folder,
        name=name,
        run_id=listing.run_id,
        moment=moment,
        epoch=checkpoint["epoch"],
        config=checkpoint["config"],
        data=data,
        reward=written.reward,
        design=written.design,
        note=written.run.note,
        recipe=recipe,
        layout=layout,
        scaling=scaling,
        identity=checkpoint["identity"],
        saving=checkpoint.get("saving", ""),
        records=checkpoint["records"],
        model=model.eval().requires_grad_(False),
        strings=_rows_of_texts(checkpoint["strings"]),
        vectors={column: table.to(device) for column, table in checkpoint["vectors"].items()},
        encoder_state=of_encoders,
        blend=None if blend is None else blend.to(device),
        calibration=calibration,
    )


def _check_moment(path: Path, content: dict[str, Any], moment: Moment) -> None:
    """Raise RunError for a checkpoint of this run that took the name of another of its moments."""
    train = content["config"]["train"]
    epoch, step, epochs = content["epoch"], content["step"], train["epochs"]
    best = best_epoch(content["records"], train.get("monitor", VAL_LOSS))
    has_ended = epoch == epochs or any("stopped" in each for each in content["records"][-1:])
    is_own = {
        "best": step == 0 and 0 < epoch == best,
        "final": step == 0 and has_ended,
        "last": True,
    }
    if not is_own[moment]:
        raise RunError(
            f"{path} is the checkpoint of this run after epoch {epoch} of {epochs} and {step} steps"
            f" of the next, which is not its {moment} one: it took another's name. Put the run's"
            " own file back, or train again"
        )


def all_records(run: TrainedRun) -> list[dict[str, Any]]:
    """Return the records of all epochs that the run has been trained for.

    They go on after the best epoch in the last checkpoint, if that is there and sound.
    """
    try:
        last = read_content(run.folder / f"{run.name}_last.pt")
    except RunError:
        return run.records
    return last["records"] if last["run_id"] == run.run_id else run.records


def _columns_of(checkpoint: dict[str, Any], path: Path) -> tuple[Layout, Scaling]:
    """Return what the columns are and their statistics, or raise RunError."""
    try:
        layout = Layout.model_validate_json(checkpoint["layout"])
        scaling = Scaling.from_json(checkpoint["scaling"])
        layout.check_scaling(scaling)
    except ValueError as error:
        raise RunError(f"{path} does not say what its columns are: {error}") from None
    wanted = {spec.name: (spec.num_strings, spec.full_width) for spec in layout.strings}
    found = {name: tuple(table.shape) for name, table in checkpoint["vectors"].items()}
    if found != wanted:
        raise RunError(f"{path} has vectors of {found}, its columns have {wanted}")
    return layout, scaling


def _by_owner(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the encoders, and those of the network and the loss."""
    of_encoders = {name for name in state if name.startswith("encoders.")}
    return (
        {name: value for name, value in state.items() if name in of_encoders},
        {name: value for name, value in state.items() if name not in of_encoders},
    )


def _rows_of_texts(strings: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """Return for each string column the row of its table of vectors that a text has."""
    return {
        column: {text: row for row, text in enumerate(texts)} for column, texts in strings.items()
    }


def _build(
    recipe: Recipe,
    layout: Layout,
    scaling: Scaling,
    device: torch.device | str,
    precision: Precision,
) -> TrainableModel:
    """Return the model without encoders, its weights still to be loaded."""
    chosen = replace(recipe, train=recipe.train.model_copy(update={"precision": precision}))
    with own_random_state():
        return model_of(chosen, layout, scaling, {}).to(device)


def _check_device(device: torch.device | str) -> None:
    """Raise RunError for a device that this machine does not have."""
    try:
        torch.zeros(1, device=device).cpu()  # a meta tensor has no numbers to copy
    except (RuntimeError, AssertionError, ImportError) as error:  # as torch says that it has none
        why = str(error).splitlines()[0]
        if why.startswith("Expected one of"):  # twenty kinds, of which few are in any build
            why = "expected cpu, cuda, cuda:1, or another that this torch was built for"
        raise RunError(f"device '{device}' cannot be used on this machine: {why}") from None


def _recipe_of(
    config: dict[str, Any], written: WrittenRun, layout: Layout, path: Path, file: Path
) -> tuple[DataConfig, Recipe]:
    """Return the columns and the recipe as they were trained, `path` being the checkpoint.

    Goals and encoder sources are those that are written now. Raises ConfigError for a config that
    no run has, RunError where its columns are not those of the checkpoint.
    """
    data = parse_config(DataConfig, relocated(config["data"], written.data), f"{path}: data")
    encoder = relocated(config["encoder"], written.encoder)
    shared = parse_config(EncoderConfig, encoder, f"{path}: encoder")
    tasks = tasks_as_written(config, written, path, file)
    _refuse_other_columns(data, tasks, layout, path)
    recipe = Recipe(
        tasks=observed_tasks(tasks, layout),
        encoders=tuple(column.encoder or shared for column in data.strings),
        model=parse_config(ModelConfig, config["model"], f"{path}: model"),
        loss=parse_config(LossConfig, config["loss"], f"{path}: loss"),
        train=parse_config(TrainConfig, config["train"], f"{path}: train"),
    )
    return data, recipe


def _refuse_other_columns(
    data: DataConfig, tasks: Sequence[Task], layout: Layout, path: Path
) -> None:
    """Raise RunError where a checkpoint's config and its layout are not of the same columns."""
    trained = {task.column: (task.kind, task.transform) for task in tasks}
    pairs: dict[str, tuple[Any, Any]] = {
        "strings": ([c.name for c in data.strings], [spec.name for spec in layout.strings]),
        "numeric": ([c.column for c in data.features], [c.column for c in layout.numeric]),
        "categories": ([c.column for c in data.categories], [c for c, _ in layout.categories]),
        "tasks": (
            {each.column: trained.get(each.column) for each in layout.targets},
            {each.column: (each.kind, each.transform) for each in layout.targets},
        ),
    }
    for what, (in_config, in_layout) in pairs.items():
        if in_config != in_layout:
            raise RunError(
                f"{path} is not the checkpoint of a whole run: its config has {what}"
                f" {in_config!r:.200}, its layout {in_layout!r:.200}"
            )
