"""Make a stand-in encoder: a model folder as polyBERT's, with random weights.

It has polyBERT's architecture and tokenizer, so that everything runs on it unchanged.
"""

import argparse
import time
from pathlib import Path

from embedcache.config.encoder import ENCODER_SIZES, EncoderConfig
from fusionnet.commands.command import importing, run_job


def main() -> None:
    """Write the folder, load it as any encoder is loaded, and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--size",
        choices=ENCODER_SIZES,
        default="polybert",
        help="polybert: the published architecture; tiny: for tests",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    arguments = parser.parse_args()
    with importing():
        from embedcache.encoder.loading import load_encoder
        from embedcache.encoder.standin import write_standin
        from embedcache.encoder.tokenizer import load_tokenizer

    started = time.perf_counter()
    write_standin(arguments.out, arguments.size, arguments.seed)
    config = EncoderConfig(source=str(arguments.out))
    encoder, tokenizer = load_encoder(config), load_tokenizer(config)
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    print(
        f"{arguments.out}: {num_parameters:,} parameters, width {encoder.width}, {len(tokenizer)}"
        f" tokens, {time.perf_counter() - started:.1f} s\nThis is a stand-in: polyBERT's"
        " architecture and token ids with random weights. For chemistry use"
        " encoder.source=kuelumbus/polyBERT."
    )


if __name__ == "__main__":
    run_job(main)
