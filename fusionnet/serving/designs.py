"""Designs for one patient, who is given as a row: the service names no patient of its table.

A search takes seconds, so it has a thread and a limit of its own, and predictions go on meanwhile.
The space is that of the table that the run's config names, read when the first search asks for it.
"""

import asyncio
import json
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, ValidationError

from embedcache.schema import Config, explained
from embedcache.text import count_of
from fusionnet.design.candidates import Candidates, sequence
from fusionnet.design.deriving import from_rows, read_rows
from fusionnet.design.objectives import objectives_of
from fusionnet.design.search import Judge, search
from fusionnet.design.space import FormulationSpace
from fusionnet.serving.answers import Answer
from fusionnet.serving.batching import Owner
from fusionnet.serving.limits import Limits
from fusionnet.serving.questions import lacking
from fusionnet.serving.records import KnownColumns, frame_of
from fusionnet.serving.refusals import RequestError, TooLargeError
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewards import check_pessimism

COVERAGE = 0.9
NOT_HERE = "table of designs here: the one that it was trained on is not on this machine"


class DesignOptions(Config):
    """What a request for designs says."""

    patient: dict[str, Any] = Field(
        description="a row of what is fixed of the patient; what is chosen is not read from it"
    )
    candidates: Annotated[int, Field(ge=1)] = Field(
        default=20_000, description="how many designs are judged, spread over the space"
    )
    top: Annotated[int, Field(ge=1, le=100)] = Field(
        default=10, description="how many of the most rewarded that differ are answered"
    )
    distance: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.5,
        description="how far two formulations of a material differ at least, in shares of bounds",
    )
    pessimism: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        default=None, description="as for /reward"
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(
        default=0, description="of the designs that are judged"
    )


class Designer:
    """What answers requests for designs, one at a time."""

    def __init__(self, model: RewardModel, known: KnownColumns, limits: Limits) -> None:
        self._model, self._known, self._limits = model, known, limits
        self._space: FormulationSpace | None = None
        self._owner = Owner()
        self._searching = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a search is under way."""
        return self._searching.locked()

    async def ask(self, body: dict[str, Any]) -> Answer | BaseException:
        """Return the designs that a body asks for, or what was raised instead."""
        async with self._searching:
            return await self._owner.result(lambda: self._answer(body))

    def close(self) -> None:
        """Wait for the search under way, and end the thread."""
        self._owner.close()

    def _answer(self, body: dict[str, Any]) -> Answer:
        model, options = self._model, _options(body, self._limits)
        with lacking("no reward that can be computed; ask /predict"):
            model.check_reward()
        with lacking("no doubt about its rewards that it could tell; ask with pessimism 0"):
            check_pessimism(model.run, options.pessimism)
        context = frame_of([options.patient], True, self._known, self._limits)
        space = self._space_of_run()
        _check_count(space, options)
        rewarder = model.on_strings(space.distinct, options.pessimism, unseen="allow")
        candidates = sequence(space, options.candidates, options.seed)
        judge = Judge(candidates, space.context(context), objectives_of(model.run), rewarder)
        found = search(judge, None, options.distance, options.top)
        designs = candidates.designs(found.top.cell, found.top.share)
        frame = space.frame(context, *designs)
        said = self._said(frame, options)
        return Answer(self._as_json(frame, said, found.num_rows), frame.height)

    def _space_of_run(self) -> FormulationSpace:
        if self._space is None:
            with lacking(NOT_HERE):
                self._space = from_rows(self._model.run, read_rows(self._model.run))
        return self._space

    def _said(self, frame: pl.DataFrame, options: DesignOptions) -> pl.DataFrame:
        """Return all that the run says of designs, in fp32 and with its intervals."""
        calibration = self._model.run.calibration
        coverage = COVERAGE if calibration is not None and calibration.scores else None
        batches = self._model.batches(
            frame, reward=True, coverage=coverage, pessimism=options.pessimism
        )
        return pl.concat(batches)

    def _as_json(self, frame: pl.DataFrame, said: pl.DataFrame, num_judged: int) -> bytes:
        """Return designs, each as a row that can be asked about, beside what is said of it."""
        run = self._model.run
        head = json.dumps({"run": run.name, "run_id": run.run_id, "epoch": run.epoch})
        both = pl.DataFrame(
            [
                pl.Series("place", np.arange(1, frame.height + 1)),
                frame.to_struct("row"),
                said.to_struct("said"),
            ]
        )
        return f'{head[:-1]}, "judged": {num_judged}, "designs": {both.write_json()}}}'.encode()


def _options(body: dict[str, Any], limits: Limits) -> DesignOptions:
    """Return what a body asks; raises RequestError, TooLargeError for too many candidates."""
    try:
        options = DesignOptions.model_validate(body, strict=True)
    except ValidationError as error:
        raise RequestError("the options are wrong", explained(DesignOptions, error)) from None
    if options.candidates > limits.candidates:
        raise TooLargeError(
            f"candidates is {options.candidates:,}, and a request may have"
            f" {limits.candidates:,}; fusionnet design judges millions"
        )
    return options


def _check_count(space: FormulationSpace, options: DesignOptions) -> None:
    """Raise RequestError for fewer candidates than there are materials and choices."""
    least = Candidates(space, 1, options.seed).num_cells
    if options.candidates < least:
        raise RequestError(
            f"candidates is {options.candidates:,}, and there are"
            f" {count_of(space.num_materials, 'material')} with their choices, {least:,} in all;"
            f" ask for {least:,} or more"
        )
