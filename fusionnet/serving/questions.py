"""What a request asks: rows, and what is wanted beside their predictions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, ValidationError

from embedcache.config.table import OnInvalid
from embedcache.errors import UserError
from embedcache.schema import Config, explained
from fusionnet.config.reward import Unseen
from fusionnet.serving.limits import Limits
from fusionnet.serving.records import KnownColumns, frame_of
from fusionnet.serving.refusals import RequestError, TooLargeError
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewards import check_pessimism
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.uncertain import calibration_of, check_uncertain, level_of

Kind = Literal["predict", "reward"]
ROWS, COLUMNS = "rows", "columns"  # keys of a body, one of which it has


class RewardOptions(Config):
    """What a request for rewards may say beside its rows."""

    on_invalid: OnInvalid = Field(
        default="refuse",
        description=(
            "rows that break a rule: refuse: the request is refused, with all of them; skip: they"
            " are answered with null and the reason"
        ),
    )
    pessimism: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        default=None,
        description=(
            "k: subtract k standard deviations of the reward: the members' spread, and of a string"
            " that training never saw what strings left out have shown; unset: as the run's config"
            " says"
        ),
    )
    unseen: Unseen | None = Field(
        default=None,
        description=(
            "strings and categories that training never saw: refuse: such a row breaks a rule;"
            " flag, allow: it has a reward, and known says so; unset: as the run's config says"
        ),
    )


class PredictOptions(Config):
    """What a request for predictions may say beside its rows."""

    coverage: float | None = Field(
        default=None,
        description=(
            "0.50, 0.51, ..., 0.99: add lower_<column> and upper_<column> of each number, between"
            " which this share of labels lies, and set_<column>_<class>, the classes that hold as"
            " many; a bound without an end is null"
        ),
    )
    uncertainty: bool = Field(
        default=False,
        description=(
            "add standard deviations: aleatoric_<column>, learnt noise, and epistemic_<column>, of"
            " an ensemble"
        ),
    )
    on_invalid: OnInvalid | None = Field(
        default=None,
        description=(
            "rows that break a rule: refuse: the request is refused, with all of them; skip: they"
            " are answered with null and the reason; unset: as the run's config says"
        ),
    )


OPTIONS: dict[Kind, type[PredictOptions] | type[RewardOptions]] = {
    "predict": PredictOptions,
    "reward": RewardOptions,
}


@dataclass(frozen=True)
class Question:
    """Rows of one request, and what is asked of them."""

    kind: Kind
    frame: pl.DataFrame  # of the columns that the run reads
    as_records: bool  # the answer's form, which is the question's
    on_invalid: OnInvalid
    asked: Mapping[str, Any]  # what `RewardModel.batches` is told beside that

    @property
    def num_rows(self) -> int:
        """How many rows are asked about."""
        return self.frame.height

    @property
    def likeness(self) -> tuple[Any, ...]:
        """Questions of one likeness can be answered together."""
        return (self.kind, *self.asked.items(), *self.frame.schema.items())


def question_of(
    kind: Kind, body: dict[str, Any], model: RewardModel, known: KnownColumns, limits: Limits
) -> Question:
    """Return what a body asks; raises RequestError with all that is wrong, TooLargeError."""
    options = _options(kind, body)
    _check_answerable(options, model)
    as_records = ROWS in body
    frame = frame_of(body[ROWS if as_records else COLUMNS], as_records, known, limits)
    _check_new_strings(model.run, frame, limits)
    on_invalid = options.on_invalid or model.run.data.on_invalid
    asked = options.model_dump(exclude={"on_invalid"})
    return Question(kind, frame, as_records, on_invalid, asked | {"reward": kind == "reward"})


def _options(kind: Kind, body: dict[str, Any]) -> PredictOptions | RewardOptions:
    """Return a body's options; raises RequestError for unknown keys and wrong values."""
    if (ROWS in body) == (COLUMNS in body):
        raise RequestError(
            'the body has to have either "rows", a list of objects, or "columns", an object of'
            f" lists; it has {'both' if ROWS in body else 'neither'}"
        )
    options = OPTIONS[kind]
    given = {name: value for name, value in body.items() if name not in (ROWS, COLUMNS)}
    try:
        return options.model_validate(given, strict=True)
    except ValidationError as error:
        raise RequestError("the options are wrong", explained(options, error)) from None


def _check_answerable(options: PredictOptions | RewardOptions, model: RewardModel) -> None:
    """Raise RequestError for what the run has not: a reward, intervals, uncertainties."""
    if isinstance(options, RewardOptions):
        with lacking("no reward that can be computed; ask /predict"):
            model.check_reward()
        with lacking("no doubt about its rewards that it could tell; ask with pessimism 0"):
            check_pessimism(model.run, options.pessimism)
        return
    if options.coverage is not None:
        level_of(options.coverage)
        with lacking("no intervals; ask without coverage"):
            calibration_of(model.run)
    if options.uncertainty:
        with lacking("learnt no uncertainty; ask without it"):
            check_uncertain(model.run)


@contextmanager
def lacking(what: str) -> Iterator[None]:
    """Say what a run has not in words for who asks: how to train one that has is not for them."""
    try:
        yield
    except UserError:
        raise RequestError(f"this run has {what}. See /schema for what it has") from None


def _check_new_strings(run: TrainedRun, frame: pl.DataFrame, limits: Limits) -> None:
    """Raise TooLargeError for more strings that training never saw than one request may have.

    Counted as they are written; those that were asked about before are remembered by the run, and
    count all the same.
    """
    for column in run.data.strings:
        if column.column in frame.columns and frame[column.column].dtype == pl.String:
            distinct = frame[column.column].unique().drop_nulls().to_list()
            num_new = sum(text not in run.strings[column.name] for text in distinct)
            if num_new > limits.new_strings:
                raise TooLargeError(
                    f"column '{column.column}' has {num_new:,} strings that the run was not trained"
                    f" on, and a request may have {limits.new_strings:,}: each is to be encoded;"
                    " send several requests"
                )
