"""Calls that arrive while the model works are answered together by its next pass.

Nobody waits for company: an idle model takes a call at once, and only a busy one lets calls
gather. One thread owns the model, so its threads and memories are never shared; the queue lives in
the event loop, which is one thread too, so nothing here is locked.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from embedcache.errors import UserError
from fusionnet.serving.answers import Answer, answers
from fusionnet.serving.limits import Limits
from fusionnet.serving.questions import Question
from fusionnet.serving.refusals import InternalError
from fusionnet.serving.told import told_error
from fusionnet.trained.reward import RewardModel

_LOG = logging.getLogger("fusionnet.serving")
Result = TypeVar("Result")


@dataclass
class _Call:
    question: Question
    answer: "asyncio.Future[Answer]"


@dataclass
class Counts:
    """What was answered since the start."""

    calls: int = 0
    rows: int = 0
    passes: int = 0


class Owner:
    """The thread that alone touches the model."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def result(self, work: Callable[[], Result]) -> Result | BaseException:
        """Return what the work returns, or what it raised: nothing of it ends the caller."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        await asyncio.wait({future})
        error = future.exception()
        return future.result() if error is None else error

    def close(self) -> None:
        """Wait for the work under way, and end the thread."""
        self._thread.shutdown(cancel_futures=True)


class Batcher:
    """A model's queue: `ask` it from the event loop that `run` runs in."""

    def __init__(self, model: RewardModel, owner: Owner, limits: Limits) -> None:
        self._model = model
        self._owner = owner
        self._limits = limits
        self._waiting: deque[_Call] = deque()
        self._arrived = asyncio.Event()
        self.counts = Counts()

    async def ask(self, question: Question) -> Answer:
        """Return a question's answer; raises the UserError that it has instead."""
        call = _Call(question, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._arrived.set()
        return await call.answer

    async def run(self) -> None:
        """Answer calls, oldest first, until cancelled."""
        while True:
            await self._arrived.wait()
            if self._waiting:
                await self._answer(self._next())
            else:
                self._arrived.clear()

    def _next(self) -> list[_Call]:
        """Take the oldest call from the queue, and those behind it that fit into its pass."""
        first = self._waiting.popleft()
        taken, left, num_rows = [first], deque[_Call](), first.question.num_rows
        for call in self._waiting:
            total = num_rows + call.question.num_rows
            is_like = call.question.likeness == first.question.likeness
            if is_like and total <= self._limits.batch_rows:
                taken.append(call)
                num_rows = total
            else:
                left.append(call)
        self._waiting = left
        return taken

    async def _answer(self, calls: Sequence[_Call]) -> None:
        """Answer calls together; if a defect fails them all, one by one."""
        questions = [call.question for call in calls]
        found = await self._owner.result(lambda: answers(self._model, questions))
        if isinstance(found, BaseException):
            if len(calls) > 1:
                for call in calls:
                    await self._answer([call])
                return
            _LOG.error("a call of %d rows failed:\n%s", questions[0].num_rows, told_error(found))
            found = [InternalError("the service failed to answer; its log says where")]
        self.counts.passes += 1
        for call, answer in zip(calls, found, strict=True):
            self._settle(call, answer)

    def _settle(self, call: _Call, answer: Answer | UserError) -> None:
        """Give a call its answer, unless nobody waits for it any more."""
        if call.answer.done():
            return
        if isinstance(answer, UserError):
            call.answer.set_exception(answer)
            return
        self.counts.calls += 1
        self.counts.rows += answer.num_rows
        call.answer.set_result(answer)
