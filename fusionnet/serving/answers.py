"""Questions of one likeness answered by one pass of the model, each as if it were alone."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from embedcache.config.table import OnInvalid
from embedcache.errors import UserError
from embedcache.table.reader import frame_source
from fusionnet.serving.questions import COLUMNS, ROWS, Question
from fusionnet.trained.formula import formula_of
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.rewards import check_pessimism, reward_names
from fusionnet.trained.run import TrainedRun

NAME = "the request"  # as a table's report calls it
MARKS = ("known", "outside", "reason")  # beside predictions and rewards


class Answer(NamedTuple):
    """What a question is answered with."""

    body: bytes  # JSON
    num_rows: int


def answers(model: RewardModel, questions: Sequence[Question]) -> list[Answer | UserError]:
    """Return for each question its answer, or the error that it would have had alone.

    All rows are one frame. Rows that break a rule are skipped in it, and a question that wants them
    refused is asked again alone, for its report. Whatever fails for all, such as a feature beyond
    fp32, is narrowed down by halves, so that a bad question costs its neighbours little.
    """
    frame = pl.concat([question.frame for question in questions], how="vertical")
    alone = len(questions) == 1
    try:
        found = _found(model, questions[0], frame, questions[0].on_invalid if alone else "skip")
    except UserError as error:
        if alone:
            return [error]
        half = len(questions) // 2
        return answers(model, questions[:half]) + answers(model, questions[half:])
    finally:
        model.run.memory.unknown.clear()  # a command would print it; here it would grow
    result: list[Answer | UserError] = []
    start = 0
    for question in questions:
        own = found.slice(start, question.num_rows)
        start += question.num_rows
        if not alone and question.on_invalid == "refuse" and own["known"].null_count():
            result += answers(model, [question])
        else:
            result.append(_answer(model, question, own))
    return result


def _found(
    model: RewardModel, like: Question, frame: pl.DataFrame, on_invalid: OnInvalid
) -> pl.DataFrame:
    """Return predictions, or rewards, of a frame's rows."""
    source = frame_source(frame.lazy(), model.run.data, name=NAME)
    found = pl.concat(model.batches(source, on_invalid=on_invalid, **like.asked))
    if like.kind == "predict":
        return found
    return found.select(*reward_columns_of(model.run, like.asked["pessimism"]), *MARKS)


def reward_columns_of(run: TrainedRun, pessimism: float | None) -> list[str]:
    """Return the columns of rewards: the reward, its terms and penalties, and with pessimism doubt.

    A pessimism that is unset is that of the run's config.
    """
    return reward_names(formula_of(run), check_pessimism(run, pessimism))


def _answer(model: RewardModel, question: Question, found: pl.DataFrame) -> Answer:
    """Return rows of predictions as JSON, in the question's form.

    What is not finite is null: the bound of an interval that has no end, and all of a row that
    breaks a rule.
    """
    run = model.run
    head = json.dumps({"run": run.name, "run_id": run.run_id, "epoch": run.epoch})
    key, values = ROWS, found.write_json()
    if not question.as_records:  # one record of lists
        key, values = COLUMNS, found.select(pl.all().implode()).write_json()[1:-1]
    return Answer(f'{head[:-1]}, "{key}": {values}}}'.encode(), question.num_rows)
