"""Calls that are answered together are answered as alone, whatever their neighbours ask."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from shared_fixtures import tiny_frame

from embedcache.errors import TableError, UserError
from fusionnet.serving import batching
from fusionnet.serving.answers import Answer, answers
from fusionnet.serving.batching import Batcher, Owner
from fusionnet.serving.limits import Limits
from fusionnet.serving.questions import Kind, Question, question_of
from fusionnet.serving.records import KnownColumns
from fusionnet.serving.refusals import InternalError
from fusionnet.trained.reward import RewardModel

FEATURES = ["smiles", "other", "kind", "x0", "x1", "x2"]
LIMITS = Limits()


def asking(
    model: RewardModel, num_rows: int, seed: int, kind: Kind = "predict", **options: Any
) -> Question:
    rows = tiny_frame(num_rows, seed=seed).select(FEATURES).to_dicts()
    body = {"rows": rows, **options}
    return question_of(kind, body, model, KnownColumns.of(model.run), LIMITS)


def broken(question: Question, **cells: Any) -> Question:
    """Return a question whose middle row has these cells."""
    middle = pl.int_range(pl.len()) == question.num_rows // 2
    columns = {
        name: pl.when(middle).then(pl.lit(value)).otherwise(pl.col(name))
        for name, value in cells.items()
    }
    changed = question.frame.with_columns(**columns)
    return replace(question, frame=changed)


def numbers(answer: Answer | UserError) -> np.ndarray:
    """Return the predictions or rewards of an answer, NaN where there is none."""
    assert isinstance(answer, Answer), answer
    rows = json.loads(answer.body)["rows"]
    names = [name for name in rows[0] if name.startswith("predicted") or name == "reward"]
    return np.array([[row[name] for name in names] for row in rows], dtype=float)


@pytest.mark.parametrize("kind", ["predict", "reward"])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 7, 2), (3, 64, 1, 129, 5)])
def test_joined_questions_are_answered_as_alone(
    reward_model: RewardModel, kind: Kind, sizes: Sequence[int]
) -> None:
    asked = [asking(reward_model, size, seed, kind) for seed, size in enumerate(sizes)]
    found = answers(reward_model, asked)
    for question, joined in zip(asked, found, strict=True):
        (alone,) = answers(reward_model, [question])
        assert len(numbers(joined)) == question.num_rows
        # rows are padded to a power of two, and sums of another size may round otherwise
        np.testing.assert_allclose(numbers(joined), numbers(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "cells", [{"x1": 900.0}, {"x0": 1e30}, {"kind": "z"}, {"smiles": "no polymer"}]
)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_bad_question_leaves_its_neighbours_alone(
    reward_model: RewardModel, cells: dict[str, Any], place: int
) -> None:
    asked = [asking(reward_model, 3, seed) for seed in range(7)]
    asked[place] = broken(asked[place], **cells)
    found = answers(reward_model, asked)
    bad = found.pop(place)
    (alone,) = answers(reward_model, [asked.pop(place)])
    assert isinstance(bad, TableError)
    assert str(bad) == str(alone)  # its own report, with its own row numbers
    assert "row 1" in str(bad)
    for question, joined in zip(asked, found, strict=True):
        (alone,) = answers(reward_model, [question])
        np.testing.assert_allclose(numbers(joined), numbers(alone), rtol=1e-6, atol=1e-6)


def test_skipping_and_refusing_can_be_asked_side_by_side(reward_model: RewardModel) -> None:
    skips = broken(asking(reward_model, 3, 1, on_invalid="skip"), x1=900.0)
    refuses = broken(asking(reward_model, 3, 2, on_invalid="refuse"), x1=900.0)
    found = answers(reward_model, [skips, asking(reward_model, 2, 3), refuses])
    assert np.isnan(numbers(found[0])).all(1).tolist() == [False, True, False]
    assert np.isfinite(numbers(found[1])).all()
    assert isinstance(found[2], TableError)


def test_unlike_questions_are_not_joined(reward_model: RewardModel) -> None:
    plain = asking(reward_model, 2, 1)
    assert plain.likeness == asking(reward_model, 5, 2, on_invalid="skip").likeness
    assert plain.likeness != asking(reward_model, 2, 1, kind="reward").likeness
    without = replace(plain, frame=plain.frame.drop("x0"))
    assert plain.likeness != without.likeness


class Held:
    """A stand-in for `answers` that waits, and notes what is asked together."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.free = threading.Semaphore(0)

    def __call__(self, model: RewardModel, questions: Sequence[Question]) -> list[Answer]:
        self.passes.append([question.num_rows for question in questions])
        self.begun.release()
        assert self.free.acquire(timeout=30)
        if any(question.num_rows == 13 for question in questions):
            raise RuntimeError("a defect")
        return [Answer(b"{}", question.num_rows) for question in questions]


def run_calls(model: RewardModel, held: Held, calls: Callable[..., Any], **limits: Any) -> Any:
    """Run `calls` beside a batcher that answers by `held`."""

    async def main() -> Any:
        owner = Owner()
        batcher = Batcher(model, owner, Limits(**limits))
        task = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(calls(batcher), 30)
        finally:
            task.cancel()
            owner.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "limits", "passes"),
    [
        ("predict", {}, [[1], [2, 3, 4]]),
        ("predict", {"batch_rows": 1}, [[1], [2], [3], [4]]),
        ("predict", {"batch_rows": 6}, [[1], [2, 3], [4]]),
        ("reward", {}, [[1], [2, 4], [3]]),
    ],
)
def test_calls_that_come_while_it_works_are_joined_up_to_the_limit(
    reward_model: RewardModel,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    limits: dict[str, int],
    passes: list[list[int]],
) -> None:
    held = Held()
    monkeypatch.setattr(batching, "answers", held)

    async def calls(batcher: Batcher) -> list[Answer]:
        first = asyncio.create_task(batcher.ask(asking(reward_model, 1, 1)))
        await asyncio.to_thread(held.begun.acquire)
        questions = (
            asking(reward_model, 2, 2),
            asking(reward_model, 3, 3, kind),
            asking(reward_model, 4, 4),
        )
        others = [asyncio.create_task(batcher.ask(question)) for question in questions]
        await asyncio.sleep(0.05)
        for _ in range(4):
            held.free.release()
        return list(await asyncio.gather(first, *others))

    found = run_calls(reward_model, held, calls, **limits)
    assert held.passes == passes
    assert [each.num_rows for each in found] == [1, 2, 3, 4]  # each has its own answer


def test_a_defect_in_one_call_fails_that_call_alone(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(batching, "answers", held)

    async def calls(batcher: Batcher) -> list[Any]:
        first = asyncio.create_task(batcher.ask(asking(reward_model, 1, 1)))
        await asyncio.to_thread(held.begun.acquire)
        others = [
            asyncio.create_task(batcher.ask(asking(reward_model, size, size))) for size in (2, 13)
        ]
        await asyncio.sleep(0.05)
        for _ in range(9):
            held.free.release()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        held.free.release()
        return [*found, await batcher.ask(asking(reward_model, 5, 5))]

    first, second, defect, later = run_calls(reward_model, held, calls)
    assert [each.num_rows for each in (first, second, later)] == [1, 2, 5]
    assert isinstance(defect, InternalError)


def test_a_call_that_nobody_waits_for_is_dropped(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    monkeypatch.setattr(batching, "answers", held)

    async def calls(batcher: Batcher) -> Answer:
        gone = asyncio.create_task(batcher.ask(asking(reward_model, 1, 1)))
        await asyncio.to_thread(held.begun.acquire)
        gone.cancel()
        held.free.release()
        held.free.release()
        return await batcher.ask(asking(reward_model, 2, 2))

    assert run_calls(reward_model, held, calls).num_rows == 2
