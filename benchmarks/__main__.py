"""`python -m benchmarks` lists what there is; `python -m benchmarks NAME --help` says what each one takes."""

import sys
from importlib import import_module

from jobs.command import run_job

BENCHMARKS = {
    "throughput": "one optimizer step at full size: naive per-row encoding against once per step, with the Amdahl bound",
    "stage1": "tables of a finished full-size run on the reference cohort",
    "readme": "write the results into README.md",
    "loading": "the share of a step spent waiting for rows, resident and streamed, and the memory that streaming takes",
    "electrolyte": "ionic conductivity of real polymer electrolytes: LoRA beside gradient boosting on the same folds",
}


def main() -> None:
    """List the benchmarks, or run one."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [--help]\n" + "\n".join(f"  {known:12} {what}" for known, what in BENCHMARKS.items()))
        sys.exit(0 if name in ("", "-h", "--help") else 2)
    import_module(f"benchmarks.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    run_job(main)
