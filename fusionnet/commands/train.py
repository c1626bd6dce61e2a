"""Train a model from a cache.

python -m jobs.train --config C                    one process
deepspeed jobs/train.py --config C                 all GPUs of a machine (or torchrun, or srun:
                                                   see configs/launch/)
"""

import argparse
from pathlib import Path

from embedcache.cache.manifest import read_root
from fusionnet.commands.command import config_as_given, config_parser, importing, run_job
from fusionnet.experiment import load_experiment
from fusionnet.runfolder.claim import check_claim


def main() -> None:
    """Train, or describe what would be trained."""
    arguments = parse_arguments()
    experiment = load_experiment(arguments.config, arguments.overrides)
    config = config_as_given(arguments)
    read_root(Path(experiment.cache.path), config)
    if not arguments.summary:
        check_claim(experiment, arguments.resume, arguments.overwrite)
    with importing():
        from fusionnet.workflow.training import describe_experiment, train_experiment

    if arguments.summary:
        print(describe_experiment(experiment, config), end="")
    else:
        train_experiment(experiment, config, arguments.resume, arguments.overwrite)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = config_parser(__doc__ or "")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in run.dir from its last checkpoint (start it if there is none)",
    )
    earlier.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the files of an earlier run in run.dir when the first step is done",
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="print the model's parameter counts beside the specification's, and stop",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
