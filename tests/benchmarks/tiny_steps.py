"""Run by test_throughput.py: gradients, one turn per mode, a profile, two loops of training and a
fit of the quality study at tiny size, printed as JSON.
"""

import json
import sys
from pathlib import Path

from benchmarks.harness.gradients import gradient_errors
from benchmarks.harness.setting import make_setting
from benchmarks.peer_loops import make
from benchmarks.quality_fit import cached, fit
from benchmarks.studies import profile
from benchmarks.throughput import TINY, Turn


def main() -> None:
    folder = Path(sys.argv[1])
    make_setting(folder, TINY.encoder, TINY.rows_per_patient, overrides=TINY.overrides)
    found = {
        "gradient_error": gradient_errors(folder, overrides=TINY.overrides),
        "turns": {},
        "losses": {},
    }
    step = {
        "folder": str(folder),
        "precision": "fp32",
        "rows": 24,
        "micro_rows": 8,
        "overrides": TINY.overrides,
    }
    for loop in ("Hugging Face Trainer", "ours, per_step"):
        worker = make({**step, "loop": loop, "mode": "per_step"})
        found["losses"][loop] = [worker(None)["loss"] for _ in range(4)]
    spec = {
        "folder": str(folder),
        "precision": "fp32",
        "batch_rows": TINY.batch_rows,
        "naive_rows": TINY.naive_rows,
    }
    for mode in ("naive_128", "per_microbatch", "per_step", "prefix", "frozen"):
        turn = Turn({**spec, "mode": mode, "micro_rows": 16, "overrides": TINY.overrides})
        found["turns"][mode] = turn(None)
    found["profile"] = profile.run(profile.TINY, "fp32")
    found["quality"] = fit(
        cached(
            folder,
            [*TINY.overrides, "encoder.mode=frozen", "train.epochs=2", "train.batch_rows=64"],
        )
    )
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
