"""Pre-train an encoder on polymers' strings alone, and write it as a model folder.

python -m jobs.pretrain_encoder --corpus psmiles.txt --out encoder --minutes 60
deepspeed jobs/pretrain_encoder.py --corpus psmiles.txt --out encoder --epochs 20

Each chain counts once, whatever its spellings. What is learned: masked tokens (mlm), the order of
strings by RDKit's descriptors (ranks), or both.
"""

import argparse
from pathlib import Path

from embedcache.config.encoder import ENCODER_SIZES
from embedcache.errors import ConfigError
from embedcache.schema import parse_config
from fusionnet.commands.command import importing, run_job

_SETTINGS = ("objective", "size", "minutes", "epochs", "seed", "lr", "batch_tokens", "precision")


def main() -> None:
    """Train, write the folder, and say what it is."""
    arguments = parse_arguments()
    if not 0 < arguments.held_out <= 0.5 or not 8 <= arguments.longest <= 512:
        raise ConfigError("--held-out is a share of at most 0.5, --longest from 8 to 512 tokens")
    if arguments.processes < 0:
        raise ConfigError("--processes is 0 (all cores) or more")
    with importing():
        from fusionnet.pretrain.prepared import Wanted
        from fusionnet.pretrain.processes import num_cores
        from fusionnet.pretrain.run import pretrain_encoder
        from fusionnet.pretrain.settings import Settings

    given = {name: getattr(arguments, name) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    if "epochs" not in given:
        given.setdefault("minutes", 60.0)
    settings = parse_config(Settings, given, "the command line")
    wanted = Wanted(
        files=tuple(arguments.corpus),
        with_ranks=settings.objective != "mlm",
        held_out_share=arguments.held_out,
        longest=arguments.longest,
        seed=settings.seed,
        skip_invalid=arguments.skip_invalid,
    )
    pretrain_encoder(
        arguments.out,
        wanted,
        settings,
        arguments.source,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        processes=arguments.processes or num_cores(),
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--corpus", required=True, nargs="+", type=Path, metavar="FILE", help="PSMILES, one a line")
    add("--out", required=True, type=Path, metavar="DIR", help="the model folder to write")
    first = parser.add_mutually_exclusive_group()
    sizes = "of fresh weights: small (unset), 4 layers; polybert, as published; tiny, for tests"
    first.add_argument("--size", choices=ENCODER_SIZES, help=sizes)
    going_on = "an encoder of polyBERT's architecture to go on from: a folder or hub id"
    first.add_argument("--from", dest="source", metavar="DIR", help=going_on)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="of training (60, if no epochs are given)")
    length.add_argument("--epochs", type=int, help="passes over the corpus, instead of minutes")
    add("--objective", choices=("mlm", "ranks", "both"), help="what is learned (both)")
    add("--seed", type=int, help="of weights, order, masks, and what is held out (0)")
    add("--lr", type=float, help="peak learning rate (1e-3)")
    add("--batch-tokens", type=int, help="tokens of an optimizer step, about (1,024)")
    add("--precision", choices=("fp32", "bf16"), help="of products (fp32)")
    add("--held-out", type=float, default=0.02, help="share of polymers to evaluate on (0.02)")
    add("--longest", type=int, default=160, help="tokens; longer strings are left out (160)")
    add("--processes", type=int, default=0, help="that prepare the corpus; 0: all cores (0)")
    add("--skip-invalid", action="store_true", help="leave out lines that are no repeat unit")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint, if there is one"
    )
    earlier.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoint of an unfinished training"
    )
    add("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher's
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
