"""What becomes of mistakes that people reported of other tools: dirty files, odd frames, slips in a
config?

Each is made here as it was reported there, by the commands that users call, in a folder of its own
and in forks of one process. The end is judged by code: one message that names what is wrong, or
numbers that are those of the clean table.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness.cells import Column, Table
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import stamp
from benchmarks.injection.cases import Case
from benchmarks.injection.pool import play as play_all
from benchmarks.injection.processes import FOR_ALL
from benchmarks.injection.scene import prepare
from benchmarks.mistakes import configs, frames, polymers, strings, tables, texts
from benchmarks.mistakes.kinds import Mistake, play
from embedcache.errors import UserError

QUICK = 8  # every so many of the mistakes


def main(words: list[str]) -> None:
    """Make the mistakes and write benchmarks/results/mistakes.*; fail where one ended badly."""
    command = parser("mistakes", __doc__ or "")
    command.add_argument(
        "--strings", type=Path, metavar="FILE", help="PSMILES, one a line (made by code)"
    )
    command.add_argument("--only", metavar="TEXT", help="those whose name holds this")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = command.parse_args(words)
    if arguments.only is not None and not (arguments.quick or arguments.json):
        raise UserError("some of the mistakes are no result: give --quick, or --json FILE")
    given = arguments.strings and arguments.strings.read_text(encoding="utf-8").split()
    chosen = mistakes(given)
    if arguments.only is not None:
        chosen = [each for each in chosen if arguments.only in each.name]
    elif arguments.quick:
        chosen = chosen[::QUICK]
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp())  # a TemporaryDirectory would be deleted by each fork
    try:
        ends = played(folder, chosen, arguments.workers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {
        "mistakes": ends,
        **stamp(),
        "quick": arguments.quick,
        "drawn": given is not None,
        "seconds": round(time.perf_counter() - started),
    }
    publish(output_path("mistakes", arguments), found, report)
    wrong = [each["name"] for each in ends if each["wrong"]]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(ends)} mistakes ended badly: {'; '.join(wrong)}")


def mistakes(given: Sequence[str] | None = None) -> list[Mistake]:
    """Return all mistakes; the last is a whole table, with given strings or made ones."""
    found = [
        each for module in (texts, tables, strings, frames, configs) for each in module.MISTAKES
    ]
    units = list(given or polymers.made_strings(polymers.NUM_STRINGS))
    return [*found, polymers.mistake(units)]


def played(folder: Path, chosen: Sequence[Mistake], workers: int) -> list[dict[str, Any]]:
    """Return how each mistake ended, in their order."""
    os.environ.update(FOR_ALL)
    import_module("benchmarks.injection.warm")
    project = prepare(folder)
    cases = [Case("mistake", each.name, partial(play, each)) for each in chosen]
    results = play_all(enumerate(cases), project, folder / "cases", workers)
    ends = []
    for mistake, result in zip(chosen, results, strict=True):
        answer = {"expected": mistake.expected.verdict, "wrong": [result.reason]}
        if result.verdict in ("harmless", "wrong"):  # else the case itself failed
            answer = json.loads(result.reason)
        end = {"name": mistake.name, "source": mistake.source, **answer}
        ends.append({**end, "seconds": result.seconds})
        if end["wrong"]:
            tell(f"{mistake.name}: {'; '.join(end['wrong'])}\n  said: {end.get('told')}")
    return ends


def report(found: dict[str, Any]) -> Report:
    """Return what is to be read and seen of the ends."""
    ends = found["mistakes"]
    bad = sum(bool(each["wrong"]) for each in ends)
    kinds = dict.fromkeys(each["expected"] for each in ends)
    bars = {kind: sum(each["expected"] == kind for each in ends) for kind in kinds}
    units = "drawn from published ones" if found["drawn"] else "made by code"
    return Report(
        title="Mistakes that were reported of other tools, made here",
        remarks=[
            f"{len(ends)} mistakes in {found['seconds']} s, {bad} of them ended otherwise than they"
            " should. Refused: exit code 2 and one message, which names what is wrong. As the clean"
            " table: every number stored or predicted is that of the table without the mistake."
            f" Strings of the last table: {units}.",
        ],
        blocks=[
            Table(COLUMNS, ends),
            *(_printed(each) for each in ends if each.get("printed")),
        ],
        drawings=[Panel("mistakes", "made", bars)],
    )


def _cell(text: str) -> str:
    """Return text as a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _printed(end: dict[str, Any]) -> str:
    """Return all that the commands of one mistake printed."""
    commands = end["command"].split("; ")
    texts = [f"$ {word}\n{out.strip()}" for word, out in zip(commands, end["printed"], strict=True)]
    return f"What was printed of {end['name']}:\n\n```\n" + "\n\n".join(texts) + "\n```"


COLUMNS = (
    Column("mistake", lambda end: _cell(end["name"])),
    Column("reported in", "source"),
    Column("command", lambda end: f"`{_cell(end.get('command', ''))}`"),
    Column("expected", lambda end: end.get("expected", "")),
    Column("answer", lambda end: _cell(end.get("told", ""))),
    Column("verdict", lambda end: "**not so**" if end["wrong"] else "so"),
)
