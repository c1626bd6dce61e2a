"""Run by the tests as one of some ranks: jobs.train, in which rank 1 fails in the third step,
or is killed while it loads, or is told to stop in the second or in the third batch of a validation,
or all have a weight that is infinite from the second step on, or a full disk from the 19th on.
Arguments: how, then those of the job.
"""

import inspect
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

from embedcache.errors import UserError
from fusionnet.commands import train
from fusionnet.commands.command import run_job
from fusionnet.train import step, validation
from fusionnet.workflow import training

# the deepspeed launcher puts its own argument first
HOWS = ("killed", "loading", "raises", "told", "validating", "full", "nan")
HOW = next(word for word in sys.argv if word in HOWS)
sys.argv.remove(HOW)
take_step, batches = step.optimizer_step, validation.forward_batches
make_trainer = training.make_trainer


def failing_step(*arguments: Any) -> Any:
    """Fail on rank 1 in step 2; the other ranks go on into a collective operation and wait
    there.
    """
    number = arguments[inspect.getfullargspec(take_step).args.index("step")]
    if HOW == "full":
        if number == 18:  # the kernel refuses a larger file as a full disk does
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    elif HOW == "nan" and number == 1:
        arguments[0].model.network.projection.weight.data[0] = float("inf")
    elif HOW == "told" and number == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    elif HOW in ("killed", "raises") and number == 2 and os.environ["RANK"] == "1":
        if HOW == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("rank 1 has had enough")
    return take_step(*arguments)


def told_batches(*arguments: Any) -> Iterator[Any]:
    """Tell rank 1 to stop in the third batch of a validation."""
    for number, outputs in enumerate(batches(*arguments)):
        if HOW == "validating" and number == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        yield outputs


def failing_load(*arguments: Any, **named: Any) -> Any:
    """Kill rank 1 when it has joined the others and is to make its model."""
    if HOW == "loading" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return make_trainer(*arguments, **named)


if __name__ == "__main__":
    training.make_trainer = failing_load
    validation.forward_batches = told_batches
    step.optimizer_step = failing_step
    run_job(train.main)
