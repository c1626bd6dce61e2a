"""Make an encoder's folder: a stand-in with random weights, or a pickled encoder as safetensors.

A stand-in has polyBERT's architecture and tokenizer, so that everything runs on it unchanged.
`--from-pickle` converts a model whose weights are a pickle alone, without running what is in it.
"""

import argparse
import time
from pathlib import Path

from embedcache.config.encoder import ENCODER_SIZES, EncoderConfig
from embedcache.schema import parse_config
from fusionnet.commands.command import importing, run_job


def main() -> None:
    """Write the folder, load it as any encoder is loaded, and say what it is."""
    arguments = parse_arguments()
    with importing():
        from embedcache.encoder.conversion import convert_encoder
        from embedcache.encoder.loading import load_encoder
        from embedcache.encoder.standin import write_standin
        from embedcache.encoder.tokenizer import load_tokenizer

    started = time.perf_counter()
    if arguments.from_pickle is None:
        write_standin(arguments.out, arguments.size or "polybert", arguments.seed)
        note = (
            "This is a stand-in: polyBERT's architecture and token ids with random weights. For"
            " chemistry use encoder.source=kuelumbus/polyBERT."
        )
    else:
        given = {"source": arguments.from_pickle, "revision": arguments.revision}
        convert_encoder(parse_config(EncoderConfig, given, "--from-pickle"), arguments.out)
        note = f"These are the weights of {arguments.from_pickle}; set encoder.source to the folder"
    config = EncoderConfig(source=str(arguments.out), tokenizer="any")
    encoder, tokenizer = load_encoder(config), load_tokenizer(config)
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    print(
        f"{arguments.out}: {num_parameters:,} parameters, width {encoder.width}, {len(tokenizer)}"
        f" tokens, {time.perf_counter() - started:.1f} s\n{note}"
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--size",
        choices=ENCODER_SIZES,
        help="of a stand-in: polybert (unset), the published architecture; tiny: for tests",
    )
    kind.add_argument(
        "--from-pickle",
        metavar="SOURCE",
        help="a model folder or hub id with pytorch_model.bin, to be written as safetensors",
    )
    parser.add_argument("--revision", help="of a hub id to convert")
    parser.add_argument("--seed", type=int, default=0, help="of a stand-in's random weights")
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
