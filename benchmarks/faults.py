"""What do the commands do when something goes wrong: killed, damaged files, senseless input, full
disks, two at once?

Each case takes a copy of a small project (table, encoder, cache, trained run), does one thing to
it, calls the commands that users call, and judges the end: a refusal in words, or the result of
the undisturbed commands; anything else breaks the promise. All choices follow from the seed. Cases
run in forks of one process that has imported everything, so that thousands are played in minutes.
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.harness.cells import Column, Table
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell
from benchmarks.harness.stamp import REPOSITORY, stamp
from benchmarks.injection.cases import BROKEN, KEPT, VERDICTS, Case
from benchmarks.injection.pool import Result, play
from benchmarks.injection.processes import FOR_ALL
from benchmarks.injection.scene import prepare
from embedcache.errors import UserError

# module of `benchmarks.injection`: what the README says is promised
PROMISES = {
    "kills": "a command killed at any moment goes on to the same result, bit for bit",
    "caches": "a damaged or forged cache is named",
    "runs": "a damaged run, or files of another, are named",
    "checkpoints": "a checkpoint is data: nothing in it runs, no NaN leaves it",
    "configs": "a value without sense is refused, and so is a file that is no config",
    "tables": "a wrong table is refused; from any other, the cache has its numbers",
    "names": "odd names go all the way, from the table to the report",
    "disks": "a full or read-only disk is said; with room again, the result is the same",
    "together": "two at once, or a signal: what is left is the work of one, whole",
    "launchers": "under deepspeed and torchrun, ranks end together and go on to the same bits",
    "folders": "nothing is deleted that was not the command's own",
    "predictions": "every row has its own finite predictions, and no file is overwritten unasked",
    "encoders": "an encoder folder is whole, finite, the one that was used, and runs no code",
}
QUICK_CASES = 6  # of each module


def main(words: list[str]) -> None:
    """Play the cases and write benchmarks/results/faults.*; fail where a promise was broken."""
    command = parser("faults", __doc__ or "")
    command.add_argument("--seed", type=int, default=0, help="of all choices (0)")
    command.add_argument("--only", nargs="+", choices=list(PROMISES), help="some attacks alone")
    command.add_argument("--cases", type=int, metavar="N", help="so many of each attack, drawn")
    command.add_argument("--case", type=int, metavar="NUMBER", help="one case of one attack again")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    command.add_argument("--keep", type=Path, metavar="DIR", help="keep broken cases' folders here")
    arguments = command.parse_args(words)
    partial = arguments.only or arguments.cases is not None or arguments.case is not None
    if partial and not (arguments.quick or arguments.json):
        raise UserError("a part of the cases is no result: give --quick, or --json FILE")
    if arguments.case is not None and len(arguments.only or ()) != 1:
        raise UserError("--case is the number of a case of one attack: give --only too")
    started = time.perf_counter()
    # not a TemporaryDirectory: each fork would delete it at its end
    folder = arguments.keep.resolve() if arguments.keep else Path(tempfile.mkdtemp())
    try:
        results = played(
            folder,
            arguments.seed,
            arguments.only or list(PROMISES),
            arguments.cases or (QUICK_CASES if arguments.quick else None),
            arguments.case,
            arguments.workers,
            keep=arguments.keep is not None,
        )
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    found = summed(results) | {
        **stamp(),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - started),
    }
    publish(output_path("faults", arguments), found, report)
    if found["broken"]:
        raise UserError(
            f"{len(found['broken'])} of {found['total']['tried']} cases broke a promise"
        )


def played(
    folder: Path,
    seed: int,
    modules: Sequence[str],
    most: int | None,
    case: int | None,
    workers: int,
    keep: bool = False,
    plant: Callable[[], None] | None = None,
) -> dict[str, list[Result]]:
    """Return how the cases of each module ended.

    `most` cases of each are drawn, all if it is None; `case` is the number of the only one.
    """
    os.environ.update(FOR_ALL)
    import_module("benchmarks.injection.warm")
    project = prepare(folder)
    results = {}
    for name in modules:
        cases = list(enumerate(cases_of(name, seed, project)))
        if case is not None:
            cases = [each for each in cases if each[0] == case]
        elif most is not None:
            cases = drawn(cases, most, Random(f"{seed}:{name}:some"))
        tell(f"{name}: {len(cases)} cases")
        results[name] = play(
            cases, project, folder / f"{name}-cases", workers, _told(name), plant, keep
        )
    return results


def cases_of(name: str, seed: int, project: Path) -> Iterator[Case]:
    """Yield the cases of a module, which follow from the seed and the version of the project."""
    module = import_module(f"benchmarks.injection.{name}")
    cases: Iterator[Case] = module.cases(Random(f"{seed}:{name}"), project)
    return cases


def drawn(cases: list[tuple[int, Case]], most: int, random: Random) -> list[tuple[int, Case]]:
    """Return so many of numbered cases at most, in their order."""
    return [
        cases[index] for index in sorted(random.sample(range(len(cases)), min(most, len(cases))))
    ]


def _told(name: str) -> Callable[[Result], None]:
    def tell_broken(result: Result) -> None:
        if result.verdict not in KEPT:
            tell(f"{name} {result.number} {result.verdict}: {result.label}\n  {result.reason}")

    return tell_broken


def summed(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Return the counts of each attack, of each promise, of all, and what broke."""
    ends = [(name, each) for name, found in results.items() for each in found]
    attacks = dict.fromkeys(each.attack for _, each in ends)
    return {
        "attacks": {
            attack: _counts(each for _, each in ends if each.attack == attack) for attack in attacks
        },
        "promises": {name: _counts(found) for name, found in results.items()},
        "total": _counts(each for _, each in ends),
        "broken": [
            {"module": name, **each._asdict(), "reason": each.reason.replace(f"{REPOSITORY}/", "")}
            for name, each in ends
            if each.verdict in BROKEN
        ],
    }


def _counts(results: Any) -> dict[str, int]:
    verdicts = Counter(each.verdict for each in results)
    return {"tried": verdicts.total(), **{name: verdicts[name] for name in VERDICTS}}


def report(found: dict[str, Any]) -> Report:
    """Return what is to be read and seen of the counts."""
    counts = [{"name": name, **count} for name, count in found["attacks"].items()]
    counts.append({"name": "together", **found["total"]})
    broken = [
        f"- `--only {each['module']} --case {each['number']}`: {each['verdict']}: {each['label']}"
        for each in found["broken"]
    ]
    bars = {name: count["tried"] for name, count in found["attacks"].items()}
    return Report(
        title="Faults injected into the commands, and how they ended",
        remarks=[
            f"Seed {found['seed']}, {found['seconds'] / 60:.0f} minutes. Detected: exit code 2 and"
            " one message. Harmless: the result is that of the undisturbed commands, bit for bit."
            " Wrong: exit code 0 and another result, a number that is none, or code that was"
            " executed. Lost: a file is gone that was not the command's own. Traceback: anything"
            " else that ends. Defect: the case itself failed.",
        ],
        blocks=[
            Table(COUNTED, counts),
            *(["Broken promises:", "\n".join(broken)] if broken else []),
        ],
        drawings=[Panel("cases", "tried", bars)],
    )


COUNTED = (Column("attack", "name"), *(Column(name, name) for name in ("tried", *VERDICTS)))


def promised(found: dict[str, Any]) -> Table:
    """Return the README's table: promise, test, count, result."""
    rows = [
        {"name": name, **found["promises"][name]} for name in PROMISES if name in found["promises"]
    ]
    columns = (
        Column("promise", lambda row: PROMISES[row["name"]]),
        Column("test", lambda row: f"[{row['name']}](injection/{row['name']}.py)"),
        Column("cases", "tried"),
        Column("refused in words", "detected"),
        Column("same result", "harmless"),
        Column("broken", lambda row: sum(row[verdict] for verdict in BROKEN)),
    )
    return Table(columns, rows)
