"""`python -m benchmarks` lists what there is; `python -m benchmarks NAME --help` says what each one
takes.
"""

import sys
from importlib import import_module

from fusionnet.commands.command import run_job

BENCHMARKS = {
    "throughput": (
        "one optimizer step at full size: naive per-row encoding against once per step, with the"
        " Amdahl bound"
    ),
    "profile": "where the time of a step goes, operation by operation and phase by phase",
    "encoder": "one encoder pass over the distinct strings: what each saving gives",
    "two_passes": (
        "memory and time of encoding many strings with graph: activations kept, or two passes"
        " within a budget"
    ),
    "kernels": "each kernel against eager PyTorch and torch.compile, forward and backward",
    "sweeps": (
        "the same step while one thing varies: distinct strings, their frequencies and length,"
        " micro-batch, ranks"
    ),
    "peers": (
        "the same training through PyTorch Frame, the Hugging Face Trainer, sentence-transformers"
        " and GradCache, side by side"
    ),
    "scaling": (
        "a cost model fitted on measured steps, checked on others, and projected to clusters"
    ),
    "quality": (
        "the model beside per-string means and gradient boosting, by patient and by left-out"
        " strings"
    ),
    "inference": (
        "rows per second and memory of evaluation and reward at full size, beside the machine's"
        " roofline"
    ),
    "algebra": (
        "what leaving out arithmetic that cannot matter gains, each against the plain form in"
        " one run"
    ),
    "stage1": "tables of a finished full-size run on the reference cohort",
    "build": (
        "phase 1 at size: a cache of 20 million rows, and 100,000 strings encoded by one rank"
        " and two"
    ),
    "store": (
        "the cache on disk: bytes, writing and reading against Parquet, NumPy and safetensors, and"
        " codecs"
    ),
    "readme": "write the results into README.md",
    "redraw": "write the texts and pictures of all published results anew from their JSON",
    "loading": (
        "the share of a step spent waiting for rows, resident and streamed, and the memory that"
        " streaming takes"
    ),
    "electrolyte": (
        "ionic conductivity of real polymer electrolytes: LoRA beside gradient boosting on the same"
        " folds"
    ),
}

STUDIES = ("inference", "profile", "build", "loading", "electrolyte")


def main() -> None:
    """List the benchmarks, or run one."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        print(
            "usage: python -m benchmarks NAME [--help]\n"
            + "\n".join(f"  {known:12} {what}" for known, what in BENCHMARKS.items())
        )
        sys.exit(0 if name in ("", "-h", "--help") else 2)
    room = "studies." if name in STUDIES else ""
    import_module(f"benchmarks.{room}{name}").main(sys.argv[2:])


if __name__ == "__main__":
    run_job(main)
