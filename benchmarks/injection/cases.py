"""What a case is, and how its end is judged.

    detected   exit code 2 and one message `error: ...`: the user is told
    harmless   exit code 0, and the result is that of the undisturbed commands
    wrong      exit code 0, and the result is another one, or not finite, or something was executed
    lost       a file is gone or changed that was not the command's own
    traceback  anything else: a traceback, a crash, a code of its own, no message or several
    hang       the command did not end
    defect     the case itself failed, and says nothing of the command

Only the first two keep the promise.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.injection.processes import Done
from benchmarks.injection.scene import Scene

KEPT = ("detected", "harmless")
BROKEN = ("wrong", "lost", "traceback", "hang", "defect")
VERDICTS = (*KEPT, *BROKEN)
MESSAGE = re.compile(r"^(?:[\w./ -]+: )?error: ", re.MULTILINE)  # argparse names the program first
SHOWN_CHARACTERS = 600
SIGNALLED = (130, 143)  # ended by a signal, which was said


class Outcome(NamedTuple):
    """A verdict and what it rests on."""

    verdict: str
    reason: str = ""


class Case(NamedTuple):
    """One attack: its kind, what is done in words, and the doing."""

    attack: str
    label: str
    play: Callable[[Scene], Outcome]
    needs: Callable[[], object] | None = None  # made before it, in the project's folder, once


def judged(done: Done, differences: Callable[[], Sequence[str]]) -> Outcome:
    """Return the verdict on a command that should have been refused, or have changed nothing.

    `differences` compares its result with the undisturbed one.
    """
    told = f"{done.command}: {done.code}: {(done.err or done.out).strip()[-SHOWN_CHARACTERS:]}"
    if done.code is None:
        return Outcome("hang", told)
    if "Traceback (most recent call last)" in done.err:
        return Outcome("traceback", told)
    if done.code == 2:
        messages = len(MESSAGE.findall(done.err))
        return Outcome("detected" if messages == 1 else "traceback", told)
    if done.code != 0:
        return Outcome("traceback", told)
    found = list(differences())
    if found:
        return Outcome("wrong", f"{done.command}: 0, but {'; '.join(found)[:SHOWN_CHARACTERS]}")
    return Outcome("harmless")


def finished(done: Done, differences: Callable[[], Sequence[str]]) -> Outcome:
    """Return the verdict on a command that must succeed, such as the one after a kill.

    A refusal there is an earlier result that cannot be reached any more.
    """
    outcome = judged(done, differences)
    return outcome._replace(verdict="lost") if outcome.verdict == "detected" else outcome


def worst(*outcomes: Outcome) -> Outcome:
    """Return the gravest of several outcomes; among those that keep the promise, a detection."""
    order = [*BROKEN, "detected", "harmless"]
    return min(outcomes, key=lambda outcome: order.index(outcome.verdict))
