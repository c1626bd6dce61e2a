"""Write a trained run's best epoch into a new folder, for elsewhere.

safetensors: a folder without pickles that predicts as the run does, for fusionnet and the hub.
onnx, torch: the network as a program (ONNX, torch.export) of rows in raw units, which needs nothing
of fusionnet; its strings are those that the run was trained on.
"""

import argparse
from pathlib import Path

from fusionnet.commands.command import importing, run_job
from fusionnet.trained.folder import find_checkpoint


def main() -> None:
    """Check what there is, and write the folder."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, "best")
    with importing():
        from fusionnet.workflow.exporting import export

    print(export(arguments.run, arguments.to, arguments.out, not arguments.without_trees))


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument("--to", required=True, choices=["safetensors", "onnx", "torch"])
    parser.add_argument(
        "--without-trees",
        action="store_true",
        help=(
            "of a blend, the network alone, without calibration: programs hold no trees, and are"
            " refused without this"
        ),
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write, a new one"
    )
    arguments = parser.parse_args()
    if arguments.without_trees and arguments.to == "safetensors":
        parser.error("--without-trees is for onnx and torch: safetensors hold the trees too")
    return arguments


if __name__ == "__main__":
    run_job(main)
