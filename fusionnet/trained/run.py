"""A trained run, loaded for prediction: no DeepSpeed, no raw table, no cache; the encoder only for
strings that the run has never seen.

The checkpoint decides what the model is. From the run's YAML file, which people edit, only what may
change after training is read: the reward, the goals, the note, and where the encoder lies now (its
digest is checked). Nothing is filled in: a checkpoint that lacks a weight is refused, and so is one
whose bytes changed, since torch writes a checksum of every tensor and does not read it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from embedcache.cache.layout import Layout
from embedcache.config import DataConfig, EncoderConfig, parse_config
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.errors import EncoderError, RunError
from embedcache.scaling import Scaling
from fusionnet.assemble import (
    AUTOCAST_DTYPES,
    Recipe,
    build_model,
    encoder_of_column,
    observed_tasks,
)
from fusionnet.config import LossConfig, ModelConfig, RewardConfig, RunConfig, Task, TrainConfig
from fusionnet.model.trainable import TrainableModel
from fusionnet.train.checkpoint import load_checkpoint

Moment = Literal["best", "final", "last"]
Precision = Literal["fp32", "bf16"]
MOST_REMEMBERED = 65_536  # vectors of new strings per column, about 160 MB at polyBERT's width
CONTENT = (
    "epoch",
    "model_state_dict",
    "records",
    "config",
    "layout",
    "scaling",
    "strings",
    "vectors",
    "identity",
)


@dataclass
class Memory:
    """What a run has encoded since it was loaded: its encoders, and new strings by column."""

    encoders: dict[str, StringEncoder] = field(default_factory=dict)
    vectors: dict[str, dict[str, Float[Tensor, " E"]]] = field(default_factory=dict)
    # new string -> its parts that the tokenizer does not know
    unknown: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedRun:
    """Everything that turns raw units into predictions, and what the run says of itself."""

    folder: Path
    name: str
    moment: Moment
    epoch: int
    config: dict[str, Any]
    data: DataConfig
    reward: RewardConfig
    note: str
    recipe: Recipe
    layout: Layout
    scaling: Scaling
    identity: dict[str, str]
    records: list[dict[str, Any]]
    model: TrainableModel  # network and loss; encoders are loaded when a new string asks for one
    strings: dict[str, dict[str, int]]  # per string column: text -> row of `vectors`
    vectors: dict[str, Float[Tensor, "_ _"]]
    encoder_state: dict[str, Tensor]
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that were trained, in the order of the outputs."""
        return self.recipe.tasks

    @property
    def standin(self) -> bool:
        """Whether any encoder was a stand-in without published weights."""
        return any(spec.standin for spec in self.layout.strings)

    @property
    def device(self) -> torch.device:
        """Where the model and the vectors are."""
        return next(self.model.network.parameters()).device

    @property
    def record(self) -> dict[str, Any]:
        """The log's record of the epoch that this checkpoint ends."""
        return self.records[self.epoch - 1]


def load_run(
    folder: str | Path,
    moment: Moment = "best",
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> TrainedRun:
    """Return a run from its folder, frozen and in evaluation mode; raises RunError where it is
    missing, incomplete or damaged.

    Executes no code from the files and leaves the random state of the process alone. `precision` is
    that of the network's products: bf16 rounds predictions to about three digits, and is faster on
    GPUs and on CPUs that have instructions for it (`precision.multiplies_bf16`).
    """
    folder = Path(folder)
    name, written = _read_config(folder)
    _check_device(device)
    path = folder / f"{name}_{moment}.pt"
    checkpoint = _read_checkpoint(path)
    config = checkpoint["config"]
    try:
        layout, scaling = (
            Layout.model_validate_json(checkpoint["layout"]),
            Scaling.from_json(checkpoint["scaling"]),
        )
    except (ValidationError, TypeError, ValueError) as error:
        raise RunError(f"{path} does not say what its columns are: {error}") from None
    data, recipe = _recipe_of(config, written, layout, folder)
    state = checkpoint["model_state_dict"]
    model = _build(recipe, layout, scaling, device, precision)
    _load_weights(
        model, {key: value for key, value in state.items() if not key.startswith("encoders.")}, path
    )
    return TrainedRun(
        folder=folder,
        name=name,
        moment=moment,
        epoch=checkpoint["epoch"],
        config=config,
        data=data,
        reward=parse_config(
            RewardConfig, written.get("reward", {}), f"{folder}/{name}_config.yaml: reward"
        ),
        note=parse_config(
            RunConfig, written.get("run", {}), f"{folder}/{name}_config.yaml: run"
        ).note,
        recipe=recipe,
        layout=layout,
        scaling=scaling,
        identity=checkpoint["identity"],
        records=checkpoint["records"],
        model=model.eval().requires_grad_(False),
        strings={
            column: {text: place for place, text in enumerate(texts)}
            for column, texts in checkpoint["strings"].items()
        },
        vectors={column: table.to(device) for column, table in checkpoint["vectors"].items()},
        encoder_state={key: value for key, value in state.items() if key.startswith("encoders.")},
    )


def vectors_of_all_strings(
    run: TrainedRun, column: str, texts: Sequence[str]
) -> Float[Tensor, "U E"]:
    """Return the run's vectors of all these prepared strings, in their order.

    Known ones come from the run, new ones through its encoder with its trained LoRA weights, once.
    """
    known, table, learned = (
        run.strings[column],
        run.vectors[column],
        run.memory.vectors.setdefault(column, {}),
    )
    new = [text for text in dict.fromkeys(texts) if text not in known]
    missing = [text for text in new if text not in learned]
    if missing:
        learned.update(zip(missing, _encode_new(run, column, missing).to(table), strict=True))
    place = {**known, **{text: len(known) + number for number, text in enumerate(new)}}
    if new:
        table = torch.cat([table, torch.stack([learned[text] for text in new])])
    for text in list(learned)[: max(0, len(learned) - MOST_REMEMBERED)]:
        del learned[text]
    return table[
        torch.tensor([place[text] for text in texts], dtype=torch.int64, device=table.device)
    ]


def trained_encoder(run: TrainedRun, column: str) -> StringEncoder:
    """Return the encoder of a string column with the run's LoRA weights; raises EncoderError where
    it is not the encoder that was trained.
    """
    names = [spec.name for spec in run.layout.strings]
    number = names.index(column)
    config, spec, key = (
        run.recipe.encoders[number],
        run.layout.strings[number],
        encoder_of_column(run.recipe, names)[number],
    )
    if key in run.memory.encoders:
        return run.memory.encoders[key]
    if encoding_key(config) != spec.encoding:
        raise EncoderError(
            f"{config.source} is not the encoder that run {run.folder} was trained with (weights,"
            " tokenizer or pooling differ)"
        )
    encoder = load_encoder(config)
    if run.recipe.mode != "frozen":
        with _own_random_state():
            add_lora(encoder, config.lora)
        prefix = f"encoders.{key}."
        _load_weights(
            encoder,
            {
                name.removeprefix(prefix): value
                for name, value in run.encoder_state.items()
                if name.startswith(prefix)
            },
            run.folder,
        )
    run.memory.encoders[key] = encoder.requires_grad_(False).eval().to(run.device)
    return run.memory.encoders[key]


def _encode_new(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U E"]:
    """Return the vectors of strings that the run has never seen, in the precision in which the
    known ones were encoded.
    """
    config = run.recipe.encoders[[spec.name for spec in run.layout.strings].index(column)]
    try:
        encoder = trained_encoder(run, column)
        tokens, unknown = tokenize(load_tokenizer(config), texts, encoder.max_length)
    except EncoderError as error:
        raise EncoderError(
            f"{len(texts)} '{column}' strings are new to run {run.folder}, e.g. {texts[0]!r:.120},"
            f" and need its encoder: {error}\nIf the encoder lies elsewhere now, set encoder.source"
            f" in {run.folder / run.name}_config.yaml; strings that the run was trained on need"
            " none"
        ) from None
    run.memory.unknown.update(unknown)
    dtype = None if run.recipe.mode == "frozen" else AUTOCAST_DTYPES[run.recipe.train.precision]
    with torch.autocast(run.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return torch.from_numpy(encode_all(encoder, tokens))


def _read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a run's name and its YAML file's mapping as it is now."""
    files = sorted(folder.glob("*_config.yaml"))
    if not files:
        raise RunError(
            f"{folder} is not a run folder: it has no *_config.yaml; train first with: deepspeed"
            " jobs/train.py --config ..."
        )
    if len(files) > 1:
        raise RunError(
            f"{folder} holds more than one run: {', '.join(file.name for file in files)}; keep one"
            " of them in a folder"
        )
    try:
        written = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{files[0]} is not valid YAML: {error}") from None
    if not isinstance(written, dict):
        raise RunError(f"{files[0]} must hold a mapping, as jobs.train wrote it")
    return files[0].name.removesuffix("_config.yaml"), written


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a training checkpoint whose bytes are those that were written."""
    content = load_checkpoint(path)
    lacking = [key for key in CONTENT if key not in content]
    if lacking:
        raise RunError(
            f"{path} is not the checkpoint of a whole run: it lacks {', '.join(lacking)}"
        )
    return content


def _build(
    recipe: Recipe,
    layout: Layout,
    scaling: Scaling,
    device: torch.device | str,
    precision: Precision,
) -> TrainableModel:
    """Return the model without encoders, its weights still to be loaded."""
    chosen = Recipe(
        recipe.tasks,
        recipe.encoders,
        recipe.model,
        recipe.loss,
        recipe.train.model_copy(update={"precision": precision}),
    )
    with _own_random_state():
        return build_model(chosen, layout, scaling, device, live=False)


def _check_device(device: torch.device | str) -> None:
    """Raise RunError for a device that this machine does not have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        raise RunError(
            f"device '{device}' cannot be used on this machine: {str(error).splitlines()[0]}"
        ) from None


def _own_random_state() -> AbstractContextManager[None]:
    """Return a context whose draws (initial weights, which are overwritten) do not move the
    caller's random numbers.
    """
    return torch.random.fork_rng(
        devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    )


def _load_weights(module: torch.nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Load all trainable parameters; raises RunError unless there is exactly one of the right shape
    for each.
    """
    own = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    wrong = [f"{name} is missing" for name in own if name not in state] + [
        f"{name} has no place in this model" for name in state if name not in own
    ]
    wrong += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise RunError(
            f"the weights in {origin} do not fit the run's config: {'; '.join(wrong[:4])}"
            + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def _recipe_of(
    config: dict[str, Any], written: dict[str, Any], layout: Layout, folder: Path
) -> tuple[DataConfig, Recipe]:
    """Return the columns and the recipe as they were trained, with goals and encoder sources as
    they are written now.
    """
    data = parse_config(
        DataConfig, _relocated(config["data"], written.get("data")), f"{folder}: data"
    )
    shared = parse_config(
        EncoderConfig, _relocated(config["encoder"], written.get("encoder")), f"{folder}: encoder"
    )
    recipe = Recipe(
        tasks=observed_tasks(_tasks(config["tasks"], written.get("tasks", []), folder), layout),
        encoders=tuple(column.encoder or shared for column in data.strings),
        model=parse_config(ModelConfig, config["model"], f"{folder}: model"),
        loss=parse_config(LossConfig, config["loss"], f"{folder}: loss"),
        train=parse_config(TrainConfig, config["train"], f"{folder}: train"),
    )
    return data, recipe


def _tasks(
    trained: list[dict[str, Any]], written: list[dict[str, Any]], folder: Path
) -> list[Task]:
    """Return the tasks as they were trained, with the goals as they are written now."""
    goals = {task.get("name"): task.get("goals", {}) for task in written if isinstance(task, dict)}
    return [
        parse_config(Task, {**task, "goals": goals.get(task["name"], {})}, f"{folder}: tasks")
        for task in trained
    ]


def _relocated(trained: dict[str, Any], written: Any) -> dict[str, Any]:
    """Return a config as it was trained, but with every encoder's `source` as it is written now."""
    if not isinstance(written, dict):
        return trained
    moved = (
        {**trained, "source": written.get("source", trained["source"])}
        if "source" in trained
        else dict(trained)
    )
    for key in ("strings", "encoder"):
        old, new = trained.get(key), written.get(key)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            moved[key] = [_relocated(mine, theirs) for mine, theirs in zip(old, new, strict=True)]
        elif isinstance(old, dict):
            moved[key] = _relocated(old, new)
    return moved
