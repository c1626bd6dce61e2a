"""What all benchmarks do with their results: one JSON, the same as a table in Markdown, and a
picture, side by side under one name.

A benchmark declares what is to be read and seen of its result (`Report`); this file renders it.
A quick run proves that a benchmark works; its numbers are no results. So it writes
`<name>_quick.*`, which git ignores, and never touches what a full run published.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.cells import Table, rendered
from benchmarks.harness.pictures import Drawing, draw
from benchmarks.harness.stamp import RESULTS
from fusionnet.train.runlog import write_json


class Report(NamedTuple):
    """What is to be read and seen of a result."""

    title: str
    remarks: Sequence[str]  # how it was measured, below the command
    blocks: Sequence[str | Table]  # paragraphs, headings and tables
    drawings: Sequence[Drawing]
    size: tuple[float, float] | None = None  # of the picture in inches; unset: by its bars
    made: str | None = None  # how it was made; unset: by the stamped command


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the two options that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=" ".join(description.split("\n\n")[0].split()),
    )
    quick = "a small form of under two minutes that shows that the benchmark works; never published"
    made.add_argument("--quick", action="store_true", help=quick)
    where = "where to write; .md and .png lie beside it (benchmarks/results)"
    made.add_argument("--json", type=Path, metavar="FILE", help=where)
    return made


def output_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return the JSON file that a run writes.

    The one asked for, or the published one, or for a quick run one that is never published.
    """
    return arguments.json or RESULTS / f"{name}{'_quick' if arguments.quick else ''}.json"


def publish(path: Path, found: dict[str, Any], report: Callable[[dict[str, Any]], Report]) -> None:
    """Write the results as JSON, Markdown and PNG, and print the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    made = report(found)
    text = markdown(made, found)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(made, path)
    print(text)


def markdown(report: Report, found: dict[str, Any]) -> str:
    """Return a result's text: what it is, how it was made, and where; then its tables."""
    made = report.made or f"`{found['command']}` at {found['commit']}, {found['date']}"
    lines = [
        f"# {report.title}",
        "",
        f"{made}; {machine(found)}, torch {found['versions']['torch']}.",
    ]
    if found.get("quick"):
        lines.append(
            "**A quick run: it shows that the benchmark works. Its numbers are not results.**"
        )
    lines += report.remarks
    for block in report.blocks:
        lines += ["", *([block] if isinstance(block, str) else rendered(block))]
    return "\n".join(lines) + "\n"


def picture(report: Report, path: Path) -> None:
    """Write the picture beside a result's JSON."""
    draw(path.with_suffix(".png"), report.drawings, report.size)


def with_kept(
    output: Path, key: str, fresh: Mapping[str, Any], order: Iterable[str]
) -> dict[str, Any]:
    """Return the parts of a result: what this run made, and else what the file has.

    Read when a run ends, so that two runs side by side may each add their part.
    """
    kept = json.loads(output.read_text())[key] if output.is_file() else {}
    both = {**kept, **fresh}
    return {name: both[name] for name in order if name in both}


def machine(found: dict[str, Any]) -> str:
    """Return the hardware in words."""
    hardware = found["hardware"]
    cores, gpu = hardware["cores"], hardware.get("gpu")
    threads = hardware.get("threads", cores)
    fewer = "" if threads == cores else f" ({threads} thread{'s' if threads > 1 else ''})"
    # beside a GPU, how the CPU multiplies hardly matters
    beside = f", {gpu}" if gpu else " (bf16 emulated)" if hardware.get("emulates_bf16") else ""
    return f"{cores} cores{fewer} of {hardware['processor']}{beside}"


def tell(text: str) -> None:
    """Say on the terminal how far a run is."""
    print(text, file=sys.stderr, flush=True)
