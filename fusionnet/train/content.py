"""What a checkpoint holds, checked when it is read: kinds, sizes, and that numbers are finite.

A checkpoint runs no code and its bytes are known to be those that were written, but by whom nobody
knows: it may be made by hand, or by a script that lost a key. What everything that reads one relies
on is said here once. Keys that are not named here are let through.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from embedcache.errors import RunError
from fusionnet.config.train import VAL_LOSS
from fusionnet.train.checkpoint import load_checkpoint

MOST_NAMED = 4  # problems in one message


class _Part(BaseModel):
    """A part of a checkpoint: no value is made from another kind of value."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


def _finite(value: Tensor) -> Tensor:
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"is of {value.dtype} on device {value.device}, expected dense floating-point numbers"
        )
    if not value.isfinite().all():
        raise ValueError("holds NaN or infinity")
    return value


Numbers = Annotated[Tensor, AfterValidator(_finite)]
Count = Annotated[int, Field(ge=0)]


class Record(_Part):
    """What the log says of an epoch, as far as it is computed with."""

    epoch: Count
    train_loss: float
    val_loss: float | None  # None: no validation row has a label


class NamedTask(_Part):
    """A task of the config; its other keys are judged where it is built."""

    name: str
    column: str


class Strategy(_Part):
    """How the rows were split."""

    strategy: str


class Length(_Part):
    """How long the run was to be; its other keys are judged where they are used."""

    epochs: Annotated[int, Field(ge=1)]
    monitor: str = VAL_LOSS


class Place(_Part):
    """Where the cache lay in training."""

    path: str


class Settings(_Part):
    """The config that the run was trained with; its parts are judged where they are built."""

    data: dict[str, Any]
    encoder: dict[str, Any]
    loss: dict[str, Any]
    train: Length
    tasks: Annotated[list[NamedTask], Field(min_length=1)]
    split: Strategy
    cache: Place


class Optimizer(_Part):
    """AdamW's state by parameter, and that of the loss scaler in fp16."""

    step: Count
    exp_avg: dict[str, Numbers]
    exp_avg_sq: dict[str, Numbers]
    loss_scaler: dict[str, bool | int | float]


class Predicting(_Part):
    """What predicting needs of a checkpoint."""

    run_id: str
    epoch: Count
    step: Count
    model_state_dict: dict[str, Numbers]
    records: list[Record]
    config: Settings
    layout: str
    scaling: str
    strings: dict[str, list[str]]
    vectors: dict[str, Numbers]
    identity: dict[str, str]
    saving: str = ""  # what a step encodes instead of what, in words

    @model_validator(mode="after")
    def _parts_belong_together(self) -> "Predicting":
        if [record.epoch for record in self.records] != list(range(1, self.epoch + 1)):
            raise ValueError(f"records must be those of epochs 1 to {self.epoch}")
        if self.strings.keys() != self.vectors.keys():
            raise ValueError("strings and vectors must be of the same columns")
        for column, texts in self.strings.items():
            vectors = self.vectors[column]
            if vectors.dim() != 2 or len(vectors) != len(texts):
                raise ValueError(
                    f"vectors of '{column}' are {list(vectors.shape)}, expected one row for each of"
                    f" {len(texts)} strings"
                )
            if len(set(texts)) < len(texts):
                raise ValueError(f"strings of '{column}' are not distinct")
        return self


class Content(Predicting):
    """The whole of a checkpoint."""

    optimizer_state_dict: dict[str, Any]
    # infinite before the first epoch, and where no validation row has a label
    best_val_loss: Annotated[float, Field(allow_inf_nan=True)]
    epoch_losses: Numbers | None
    epoch_seconds: float
    gradient_norm: Annotated[float, Field(allow_inf_nan=True)]  # of an fp16 step that is skipped
    order: str


def read_content(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, of the kinds and sizes that its readers rely on.

    Raises RunError where it is missing, damaged, or not what training writes.
    """
    content = load_checkpoint(path)
    check_content(Content, content, path)
    return content


def check_content(kind: type[Predicting], content: Mapping[str, Any], path: Path) -> None:
    """Raise RunError unless a file's content is of the kinds and sizes that readers rely on."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lacking = [_where(each) for each in problems if each["type"] == "missing"]
        wrong = [f"it lacks {', '.join(lacking)}"] if lacking else []
        wrong += [_explain(each) for each in problems if each["type"] != "missing"]
        raise RunError(f"{path} is not the checkpoint of a whole run: {_first(wrong)}") from None


def check_weights(
    module: nn.Module, state: Mapping[str, Tensor], origin: Path | str
) -> dict[str, nn.Parameter]:
    """Return a module's trainable parameters by name.

    Raises RunError unless `state` has exactly one of the right shape for each.
    """
    own = {
        name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
    }
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not part of this model" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise RunError(f"the weights in {origin} do not fit the run's config: {_first(wrong)}")
    return own


def check_moments(module: nn.Module, state: Mapping[str, Any], origin: Path) -> None:
    """Raise RunError unless this is what AdamW keeps of a module's trainable parameters."""
    if not state:
        raise RunError(
            f"{origin} has no state of the optimizer, as best and final checkpoints have none: it"
            " predicts, but training cannot go on from it. Put the run's own file back, or train"
            " anew with --overwrite"
        )
    try:
        optimizer = Optimizer.model_validate(state)
    except ValidationError as error:
        wrong = [_explain(each) for each in error.errors(include_url=False, include_input=False)]
        raise RunError(f"{origin} has no state of the optimizer: {_first(wrong)}") from None
    for moments in (optimizer.exp_avg, optimizer.exp_avg_sq):
        check_weights(module, moments, f"{origin} (moments of the optimizer)")


def _first(wrong: list[str]) -> str:
    more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    return "; ".join(wrong[:MOST_NAMED]) + more


def _where(problem: Any) -> str:
    return ".".join(f"{step!s:.80}" for step in problem["loc"])


def _explain(problem: Any) -> str:
    what = problem["msg"].removeprefix("Value error, ")
    return f"{_where(problem)}: {what}" if problem["loc"] else what
