"""The options by which commands name a run and labelled rows of which it is judged."""

import argparse
from pathlib import Path

from embedcache.config.split import SPLITS


def add_evaluated_rows(
    parser: argparse.ArgumentParser, written: str, named: str, table: str
) -> None:
    """Add --run, --split, --out, --checkpoint, --cache and --table.

    `written` says what the command writes, `named` how its file for validation rows is called,
    `table` what --table does.
    """
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help=f"others than test are written beside it: {named}, ...",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where {written} are written (unset: the run folder)",
    )
    parser.add_argument("--checkpoint", choices=["best", "final", "last"], default="best")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--cache",
        type=Path,
        metavar="PATH",
        help="where the run's cache lies now (unset: where it lay in training)",
    )
    source.add_argument("--table", type=Path, nargs="+", default=(), metavar="FILE", help=table)
