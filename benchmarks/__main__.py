"""`python -m benchmarks` lists what there is; `python -m benchmarks NAME --help` says what each
one takes.
"""

import os
import sys
from importlib import import_module
from types import ModuleType

from embedcache.errors import UserError
from fusionnet.commands.command import run_job

BENCHMARKS = {
    "throughput": "one optimizer step at full size: per-row encoding against once per step",
    "kernels": "each kernel against eager PyTorch and torch.compile, forward and backward",
    "gpu": "one step on a GPU in every mode, from Python and replayed from a CUDA graph",
    "sweeps": "the same step over distinct strings, frequencies, lengths, micro-batches, ranks",
    "peers": "the same training through PyTorch Frame, the Hugging Face Trainer and others",
    "scaling": "a cost model fitted on measured steps, checked on others, projected to clusters",
    "quality": "the model beside means and gradient boosting, by patients and by strings",
    "store": "the cache on disk against Parquet, NumPy and safetensors, and codecs",
    "faults": "commands killed, files damaged, disks full, senseless input: is the promise kept?",
    "stage1": "tables of a finished full-size run on the reference cohort",
}
STUDIES = {
    "profile": "where the time of a step goes, operation by operation and phase by phase",
    "inference": "rows per second and memory of evaluation and reward, beside the roofline",
    "calls": "calls of the reward per second at 1, 64 and 4,096 rows, from frames and tensors",
    "build": "a cache of 20 million rows, and 100,000 strings encoded by one rank and two",
    "loading": "the share of a step spent waiting for rows, resident and streamed, and memory",
    "endurance": "memory over ten thousand steps and ten million predicted rows",
    "defaults": "a newcomer's commands, nothing set, beside boosting on tables of all sizes",
    "worth": "what the defaults give beside the best that a user would pick, over several seeds",
    "coverage": "whether intervals and probabilities keep their promise on left-out groups",
    "policy": "what a policy finds in the reward, beside what the outcome model says it is worth",
    "design": "ten million designs for a new patient: seconds, memory, promised and true outcomes",
    "electrolyte": "ionic conductivity of real polymer electrolytes beside gradient boosting",
    "members": "an ensemble of eight members in one network: a step and a prediction against one",
    "serve": "the HTTP service under load: calls per second and p99, calls joined and one by one",
    "pretrain": "what pre-training brings: a frozen probe and neighbours, beside random weights",
    "mistakes": "mistakes reported of other tools: refused in words, or the right numbers?",
}
README = "texts and pictures of all results, benchmarks/README.md and README.md's block"


def main() -> None:
    """List the benchmarks, or run one."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        entries = {**BENCHMARKS, **STUDIES, "readme": README}
        print("usage: python -m benchmarks NAME [--help]")
        print("\n".join(f"  {known:12} {what}" for known, what in entries.items()))
        return
    os.environ["EMBEDCACHE_VECTORS"] = "off"  # what is timed, or killed, is to encode
    module_of(name).main(sys.argv[2:])


def module_of(name: str) -> ModuleType:
    """Return a benchmark's module."""
    if name not in (*BENCHMARKS, *STUDIES, "readme"):
        raise UserError(f"no benchmark {name}; python -m benchmarks lists what there is")
    return import_module(f"benchmarks.{'studies.' if name in STUDIES else ''}{name}")


if __name__ == "__main__":
    run_job(main)
