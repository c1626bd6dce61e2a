"""Started by `sweeps` in one process per rank by the deepspeed launcher: steps of the modes in
turns; rank 0 writes their seconds.
"""

import json
import sys
from pathlib import Path

from benchmarks.harness.stepper import Stepper, batch_of, world
from benchmarks.harness.timing import interleaved
from fusionnet.train.runlog import write_json

VARIANTS = {
    "per_step": ("per_step", []),
    "per_step_sharded": ("per_step", ["encoder.encode_sharding=shard"]),
    "per_microbatch": ("per_microbatch", []),
    "frozen": ("frozen", []),
}


def main() -> None:
    """The last argument is the request as JSON; the launcher puts its own before it."""
    request = json.loads(sys.argv[-1])
    turns = {}
    for name, (mode, extra) in VARIANTS.items():
        stepper = Stepper(
            Path(request["folder"]),
            mode,
            request["precision"],
            request["rows"],
            None,
            [*request["overrides"], *extra],
        )
        batch = batch_of(stepper.cache, request["rows"])
        turns[name] = lambda stepper=stepper, batch=batch: stepper.step(batch)
        turns[name]()
    measured = interleaved(turns, request["rounds"])
    if world().is_main:
        write_json(Path(request["output"]), measured)
    world().barrier()
    world().close()


if __name__ == "__main__":
    main()
