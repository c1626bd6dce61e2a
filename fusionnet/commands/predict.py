"""Predict, and optionally reward, the rows of a table in raw units.

Input columns are kept, predictions added as predicted_<column>, and what is to be known of each:
known (training saw its strings and categories), outside (of the train rows' range), reason.
Intervals and uncertainties on request.
"""

import argparse
import time
from pathlib import Path

from embedcache.text import count_of, visible
from fusionnet.commands.command import importing, run_job
from fusionnet.trained.folder import find_checkpoint, tables_of
from fusionnet.workflow.outputs import TABLE_KINDS, check_file


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
    written = write_scores(
        model,
        arguments.input,
        arguments.output,
        arguments.reward,
        arguments.on_invalid,
        dict(arguments.csv),
        arguments.coverage,
        arguments.uncertainty,
        arguments.pessimism,
        arguments.unseen,
    )
    seconds = time.perf_counter() - started
    means = ", ".join(f"{visible(name)} {mean:.4g}" for name, mean in written.means.items())
    print(
        f"{arguments.output}: {written.num_rows:,} rows in {seconds:.1f} s"
        + (f"; means: {means}" if written.num_rows > written.num_invalid else "")
    )
    for count, what in (
        (written.num_invalid, "break a rule of the config and are predicted as null"),
        (written.num_unknown, "have a string or a category that training never saw (known: false)"),
        (written.num_outside, "have a number outside of the train rows' range (outside: true)"),
    ):
        if count:
            print(f"{count_of(count, 'row')} of {written.num_rows:,} {what}; see the column reason")
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
        help="rows to predict, in any format that data.path can have",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help=f"the table to write: {', '.join(TABLE_KINDS)}",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument(
        "--reward",
        action="store_true",
        help=(
            "add the column reward (the run's config says what it is), reward_<task> and"
            " penalty_<task>, what it is the sum of"
        ),
    )
    parser.add_argument(
        "--pessimism",
        type=float,
        metavar="K",
        help=(
            "subtract K standard deviations of the reward, the column doubt: how far an ensemble's"
            " are apart, and of new strings what strings left out have shown (default:"
            " reward.pessimism of the run's config)"
        ),
    )
    parser.add_argument(
        "--unseen",
        choices=["refuse", "flag"],
        help=(
            "strings and categories that training never saw: such a row breaks a rule, or is"
            " rewarded, with known: false (default: reward.unseen of the run's config)"
        ),
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help=(
            "add lower_<column> and upper_<column> of each number, between which this share of"
            " labels lies, e.g. 0.9, and set_<column>_<class>, the classes that hold as many"
        ),
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help=(
            "add standard deviations: aleatoric_<column>, learnt noise (loss: beta_nll), and"
            " epistemic_<column>, of an ensemble (model.members)"
        ),
    )
    parser.add_argument(
        "--on-invalid",
        choices=["refuse", "skip"],
        help=(
            "rows that break a rule of the config: refuse the table, or predict null for them"
            " (default: data.on_invalid of the run's config)"
        ),
    )
    parser.add_argument(
        "--csv",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="how a text file is written, where not as the run's config says, e.g. --csv decimal=,",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 rounds to about three digits; faster only where the device has it in hardware",
    )
    arguments = parser.parse_args()
    if arguments.output.suffix.lower() not in TABLE_KINDS:
        parser.error(f"{arguments.output} ends in none of {', '.join(TABLE_KINDS)}")
    for flag in ("pessimism", "unseen"):
        if getattr(arguments, flag) is not None and not arguments.reward:
            parser.error(f"--{flag} is of rewards: add --reward, or leave it out")
    return arguments


def _setting(text: str) -> tuple[str, str]:
    """Return the key and the value of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE, such as decimal=, (got {text!r:.80})"
        )
    return key, value


if __name__ == "__main__":
    run_job(main)
