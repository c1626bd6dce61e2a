"""Search materials and formulations for one patient, by the reward of a trained run.

All materials of the table with all choices, at points between each material's own values: the best
that differ, the Pareto front, a picture, and in plain words what this cannot know.
"""

import argparse
from pathlib import Path

from fusionnet.commands.command import importing, run_job
from fusionnet.trained.folder import find_checkpoint
from fusionnet.workflow.outputs import check_file, check_files


def main() -> None:
    """Search what the arguments ask for; write and print what was found."""
    arguments = parse_arguments()
    find_checkpoint(arguments.run, arguments.checkpoint)
    with importing():
        from fusionnet.design.words import described
        from fusionnet.workflow.designing import (
            FILES,
            DesignRequest,
            check_not_foreign,
            design,
            out_folder,
        )

    out = arguments.out or out_folder(arguments.patient)
    check_files(out, FILES, "name another folder with --out DIR")
    check_not_foreign(out)
    for source in filter(None, (arguments.patients, arguments.table)):
        for name in FILES:
            check_file(out / name, source)
    request = DesignRequest(
        patient=arguments.patient,
        table=arguments.table,
        patients=arguments.patients,
        num_candidates=arguments.candidates,
        num_levels=arguments.grid,
        weights=dict(arguments.weights),
        pareto=arguments.pareto,
        num_top=arguments.top,
        distance=arguments.distance,
        pessimism=arguments.pessimism,
        seed=arguments.seed,
    )
    searched = design(
        arguments.run,
        request,
        out,
        arguments.checkpoint,
        arguments.device,
        None if arguments.precision == "auto" else arguments.precision,
        progress=True,
    )
    print(described(searched), end="")
    print(f"written: {', '.join(str(out / name) for name in FILES)}")


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--patient",
        required=True,
        metavar="NAME",
        help="the value of data.group to design for; without data.group the row of the table",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="the rows that bound formulations (unset: the table of the run's config)",
    )
    parser.add_argument(
        "--patients",
        type=Path,
        metavar="FILE",
        help="what is fixed of each patient, a row each (unset: as the table has it)",
    )
    _add_search(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where tables, picture and text are written (unset: design_NAME)",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help=(
            "of the search; after bf16 what is kept is judged again in fp32 (auto: bf16 where the"
            " device has it in hardware)"
        ),
    )
    return parser.parse_args()


def _add_search(parser: argparse.ArgumentParser) -> None:
    """Add what is searched, and by what."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--candidates", type=int, default=10_000_000, metavar="N", help="designs (10000000)"
    )
    size.add_argument(
        "--grid",
        type=int,
        metavar="LEVELS",
        help="all combinations of so many levels of each variable instead",
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        default={},
        metavar="TASK=W,...",
        help="weights of the reward's terms, where not as in the run's config: ef=0.5,opt=0.3",
    )
    parser.add_argument(
        "--pareto",
        type=lambda text: [each.strip() for each in text.split(",")],
        default=(),
        metavar="TASK,...",
        help=(
            "what the front is of (unset: the tasks of the reward's terms); -TASK where less is"
            " better (--pareto=-toxicity,ef)"
        ),
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="designs to show (10)")
    parser.add_argument(
        "--distance",
        type=float,
        default=0.5,
        metavar="D",
        help=(
            "how far two designs of one material and choice must be apart in some variable, as a"
            " share of its range (0.5); more than 1: each material and choice once"
        ),
    )
    parser.add_argument(
        "--pessimism",
        type=float,
        metavar="K",
        help="subtract K standard deviations of the reward (unset: as the run's config)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the points (0)")


def _weights(text: str) -> dict[str, float]:
    """Return the weights of TASK=W,TASK=W."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise argparse.ArgumentTypeError(
                f"expected TASK=NUMBER,..., such as ef=0.5,opt=0.3 (got {text!r:.80})"
            )
    return found


if __name__ == "__main__":
    run_job(main)
