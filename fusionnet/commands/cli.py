"""The console scripts `embedcache` and `fusionnet`: the commands by name, wherever it is installed.

From a checkout, `python -m jobs.NAME` runs the same modules; under a launcher, give it the module:
`torchrun --nproc-per-node 8 -m fusionnet.commands.train --config C`.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import PurePath

from fusionnet.commands.command import run_job

DISTRIBUTION = "embedcache-fusionnet"
EMBEDCACHE = {
    "build": ("build_cache", "build cache.zarr from a table, or add files to it"),
    "inspect": ("inspect_cache", "show what a cache holds and what it was built from"),
    "verify": ("verify_cache", "read every byte of a cache and compare it with what was written"),
    "vectors": ("vectors", "show, or delete, the vectors of strings that outlive caches"),
    "make-encoder": ("make_encoder", "fetch a published encoder, or write a stand-in"),
}
FUSIONNET = {
    "init": ("init_config", "write a config for a table: its columns' roles are guessed"),
    "train": ("train", "train a model from a cache"),
    "cross-validate": ("cross_validate", "train and evaluate one model per fold of one cache"),
    "evaluate": ("evaluate_model", "metrics, plots and an HTML report of a trained run"),
    "explain": ("explain", "what a trained run reads: columns, and atoms of its strings"),
    "predict": ("predict", "predictions, and the reward, for the rows of a table"),
    "export": ("export", "a trained run as safetensors, ONNX or a torch program, for elsewhere"),
    "serve": ("serve", "predictions, rewards and designs over HTTP"),
    "design": ("design", "search materials and formulations for one patient"),
    "make-corpus": ("make_corpus", "hypothetical polymers to pre-train an encoder on"),
    "pretrain-encoder": ("pretrain_encoder", "pre-train an encoder on strings alone"),
    "schema": ("schema", "print the JSON Schema of configs, for editors"),
    "examples": ("examples", "copy the example configs and launch scripts into a folder"),
}


def embedcache() -> None:
    """Run `embedcache COMMAND ...`."""
    _run("embedcache", EMBEDCACHE)


def fusionnet() -> None:
    """Run `fusionnet COMMAND ...`."""
    _run("fusionnet", FUSIONNET)


def _run(program: str, commands: dict[str, tuple[str, str]]) -> None:
    """Run the command that the arguments name, or say what there is."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"{program} {version(DISTRIBUTION)}")
        sys.exit(0)
    if name not in commands:
        lines = [f"  {known:14}{what}" for known, (_, what) in commands.items()]
        usage = f"usage: {program} COMMAND [--help] ...\n\n" + "\n".join(lines)
        if name in ("-h", "--help"):
            print(usage)
            sys.exit(0)
        print(f"{program}: there is no command {name}\n{usage}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [str(PurePath(sys.argv[0]).with_name(f"{program} {name}")), *sys.argv[2:]]
    run_job(import_module(f"fusionnet.commands.{commands[name][0]}").main)
