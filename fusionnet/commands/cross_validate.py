"""Cross-validate: train and evaluate one model per fold, over one cache, in one process.

The cache is built if it is not there. Folds are those of the config's split, whichever strategy
assigns them; the predictions of their test rows together are out-of-fold predictions of the table
(out_of_fold.parquet).
"""

import argparse
import json

from fusionnet.commands.command import config_as_given, config_parser, importing, run_job
from fusionnet.experiment import load_experiment


def main() -> None:
    """Cross-validate the experiment that the arguments name, and print its metrics."""
    arguments = parse_arguments()
    experiment = load_experiment(arguments.config, arguments.overrides)
    with importing():
        from fusionnet.workflow.cross_validating import cross_validate

    found = cross_validate(
        experiment,
        config_as_given(arguments),
        arguments.resume,
        arguments.overwrite,
        with_baselines=not arguments.no_baselines,
        verbose=not arguments.json,
    )
    print(json.dumps(found.to_json(), indent=1) if arguments.json else found.summary())


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = config_parser(__doc__ or "")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume",
        action="store_true",
        help="go on in run.dir: finished folds are not done again (start if there is nothing)",
    )
    earlier.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the files of an earlier cross-validation in run.dir",
    )
    parser.add_argument(
        "--no-baselines",
        action="store_true",
        help="leave out what the model is to beat: means and boosting, fitted in seconds per fold",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
