"""Write a trained run's best epoch into a new folder, for elsewhere.

safetensors: a folder without pickles that predicts as the run does, for fusionnet and the hub.
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

    print(export(arguments.run, arguments.to, arguments.out))


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument("--to", required=True, choices=["safetensors"])
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the folder to write, a new one"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
