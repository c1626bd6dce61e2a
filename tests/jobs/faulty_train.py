"""Run by test_rank_faults.py under a launcher: jobs.train, in which rank 1 fails in the third step,
or is told to stop in the second, or all have a weight that is infinite from the second on, or a
full disk from the seventh on. Arguments: how, then those of the job.
"""

import inspect
import os
import resource
import signal
import sys
from typing import Any

from embedcache.errors import UserError
from fusionnet.commands import train
from fusionnet.commands.command import run_job
from fusionnet.train import step

# the deepspeed launcher puts its own argument first
HOW = next(word for word in sys.argv if word in ("killed", "raises", "told", "full", "nan"))
sys.argv.remove(HOW)
take_step = step.optimizer_step


def failing_step(*arguments: Any) -> Any:
    """Fail on rank 1 in step 2; the other ranks go on into a collective operation and wait
    there.
    """
    number = arguments[inspect.getfullargspec(take_step).args.index("step")]
    if HOW == "full":
        if number == 6:  # the kernel refuses a larger file as a full disk does
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


if __name__ == "__main__":
    step.optimizer_step = failing_step
    run_job(train.main)
