"""Predict, and optionally reward, the rows of a table in raw units.

Input columns are kept, predictions added as predicted_<column>.
"""

import argparse
import time
from pathlib import Path

from embedcache.text import visible
from fusionnet.commands.command import importing, run_job
from fusionnet.trained.folder import find_checkpoint, tables_of
from fusionnet.workflow.outputs import check_file


def main() -> None:
    """Check the whole input, predict it batch by batch, and publish the output by rename."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, arguments.checkpoint)
    check_file(arguments.output, arguments.input, tables_of(arguments.run))
    with importing():
        from fusionnet.trained.reward import RewardModel
        from fusionnet.workflow.predicting import write_scores

    started = time.perf_counter()
    model = RewardModel.load(
        arguments.run, arguments.device, arguments.checkpoint, arguments.precision
    )
    added = [f"predicted_{task.column}" for task in model.run.tasks] + ["reward"] * arguments.reward
    means = write_scores(model, arguments.input, arguments.output, added, arguments.reward)
    num_rows = means.pop("rows")
    seconds = time.perf_counter() - started
    print(
        f"{arguments.output}: {num_rows:,} rows in {seconds:.1f} s; means: "
        + ", ".join(f"{visible(name)} {mean:.4g}" for name, mean in means.items())
    )
    for meaning in model.run.meanings:
        print(visible(f"predictions of {meaning}"))
    for column, new in model.run.memory.vectors.items():
        if new:
            print(
                f"{len(new):,} distinct '{column}' strings were in no training row; their"
                " predictions extrapolate"
            )
    for text, parts in list(model.run.memory.unknown.items())[:10]:
        print(visible(f"the tokenizer does not know {', '.join(parts)} in {text:.120}"))


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="rows to predict, .parquet or .csv",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="the table to write, .parquet or .csv",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument(
        "--reward",
        action="store_true",
        help="add the column reward (the run's config says what it is)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 rounds to about three digits; faster only where the device has it in hardware",
    )
    arguments = parser.parse_args()
    if arguments.output.suffix.lower() not in (".parquet", ".csv"):
        parser.error(f"{arguments.output} ends in neither .parquet nor .csv")
    return arguments


if __name__ == "__main__":
    run_job(main)
