"""Make a corpus to pre-train on: hypothetical polymers, of the fragments of known ones.

Known polymers are cut where chemists make bonds (BRICS), and the fragments bound to each other
anew. Each string is a valid repeat unit in the canonical form of its chain, and comes once.
"""

import argparse
from pathlib import Path

from embedcache.errors import CorpusError
from fusionnet.commands.command import importing, run_job


def main() -> None:
    """Write the corpus and say what it was made of."""
    arguments = parse_arguments()
    if arguments.number < 1 or arguments.longest < 1 or arguments.processes < 0:
        raise CorpusError("--number and --longest are 1 or more, --processes 0 (all cores) or more")
    if not 0 <= arguments.seed < 2**32:
        raise CorpusError(f"--seed {arguments.seed} is not between 0 and 4,294,967,295")
    with importing():
        from fusionnet.pretrain.corpus import make_corpus
        from fusionnet.pretrain.lines import check_suffix, polymers_of_files
        from fusionnet.pretrain.processes import num_cores

    check_suffix(arguments.out)
    processes = arguments.processes or num_cores()
    known = polymers_of_files(arguments.polymers, processes, skip_invalid=arguments.skip_invalid)
    made = make_corpus(
        known, arguments.out, arguments.number, arguments.seed, processes, arguments.longest
    )
    print(
        f"{arguments.out}: {made.num_strings:,} polymers of {made.num_fragments:,} fragments of"
        f" {made.num_known:,} known ones, {arguments.out.stat().st_size / 1e6:.1f} MB;"
        f" {made.seconds:.1f} s, {made.num_strings / made.seconds:,.0f} strings/s,"
        f" {100 * made.num_strings / made.num_tries:.0f} of 100 tries new and valid"
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--polymers",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="known polymers, one PSMILES a line (also .gz)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="what to write: .txt or .txt.gz"
    )
    parser.add_argument("--number", required=True, type=int, help="of polymers to make")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal files (0)")
    parser.add_argument(
        "--longest", type=int, default=160, metavar="CHARACTERS", help="of a string (160)"
    )
    parser.add_argument(
        "--processes", type=int, default=0, help="0: as many as there are cores (0)"
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="leave out lines that are no repeat unit"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
