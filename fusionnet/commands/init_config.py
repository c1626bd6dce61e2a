"""Write a config for a table: look at its columns, guess what each is for, and say why.

python -m jobs.init_config mine.csv                    writes mine.yaml
python -m jobs.init_config mine.csv --target tg_C      ... to predict the column tg_C
python -m jobs.init_config mine.csv --encoder encoder  ... for an encoder at hand: counts its tokens

The config is accepted by build_cache as it stands; look at each line all the same.
"""

import argparse
import shlex
from pathlib import Path

from embedcache.errors import OutputError
from embedcache.files import atomic_write
from embedcache.table.kinds import no_table
from fusionnet.commands.command import importing, run_job


def main() -> None:
    """Write the config, and print what was guessed."""
    arguments = parse_arguments()
    out = arguments.out or Path(f"{arguments.table.name.partition('.')[0] or 'table'}.yaml")
    schema = out.parent / "fusionnet.schema.json" if arguments.schema else None
    if not arguments.table.exists():
        raise no_table(arguments.table, "the first argument")
    check_target(out, arguments.table, arguments.overwrite)
    with importing():
        from embedcache.guess.roles import Named
        from fusionnet.workflow.drafting import as_yaml, draft_config
        from fusionnet.workflow.schema import schema_text

    tokens = None
    if arguments.encoder is not None:
        with importing():
            from fusionnet.workflow.tokens import Tokens

        tokens = Tokens(arguments.encoder)
    named = Named(
        strings=named_or_none(arguments.string),
        numeric=named_or_none(arguments.numeric),
        categories=named_or_none(arguments.category),
        targets=named_or_none(arguments.target),
        group=arguments.group,
        ignored=tuple(arguments.ignore),
    )
    draft = draft_config(arguments.table, named, tokens)
    draft.check()
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((out, as_yaml(draft, arguments.schema)), (schema, schema_text())):
        if file is not None:
            with atomic_write(file) as partial:
                partial.write_text(text, encoding="utf-8")
    print(
        f"{draft.roles()}\n{draft.saving()}\n{out}: look at it, then\n{next_steps(out, draft.run)}"
    )


def next_steps(config: Path, run: str) -> str:
    """Return the commands that come after this one."""
    quoted = shlex.quote(str(config))
    return (
        f"  embedcache build --config {quoted}\n  fusionnet train --config {quoted}\n"
        f"  fusionnet evaluate --run {shlex.quote(run)}"
    )


def named_or_none(columns: list[str]) -> tuple[str, ...] | None:
    """Return the columns that a flag named; None where it was not given, and they are guessed."""
    return tuple(columns) or None


def check_target(out: Path, table: Path, overwrite: bool) -> None:
    """Raise OutputError where the config would take the place of something else."""
    if out.exists() and table.exists() and out.samefile(table):
        raise OutputError(f"{out} is the table itself; give the config another name with --out")
    if out.exists() and not overwrite:
        raise OutputError(
            f"{out} exists already; give another name with --out, or replace it with --overwrite"
        )
    if out.is_dir():
        raise OutputError(f"{out} is a folder; give a file's name as well")


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="a table in any format that data.path can have")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the config (unset: the table's name and .yaml)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a config that is there")
    for flag, what in (
        ("target", "a column to predict"),
        ("string", "a column that an encoder reads"),
        ("numeric", "a numeric feature"),
        ("category", "a categorical feature"),
    ):
        parser.add_argument(
            f"--{flag}",
            action="append",
            default=[],
            metavar="COLUMN",
            help=f"{what}; may be repeated (unset: guessed; set: those alone)",
        )
    parser.add_argument(
        "--group", metavar="COLUMN", help="whose values never straddle two splits (unset: guessed)"
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="COLUMN", help="a column that is not used"
    )
    parser.add_argument(
        "--encoder", metavar="SOURCE", help="folder or hub id (unset: polyBERT, which is not asked)"
    )
    parser.add_argument(
        "--schema",
        action="store_true",
        help="also write fusionnet.schema.json beside it, by which editors complete its keys",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_job(main)
