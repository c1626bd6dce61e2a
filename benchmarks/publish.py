"""What all benchmarks do with their results: one JSON, the same as a table in Markdown, and a picture, side by side under one name.

A quick run proves that a benchmark works; its numbers are no results. So it writes `<name>_quick.*`, which git ignores, and never touches what a full run
published.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.stamp import RESULTS
from fusionnet.train.runlog import write_json

# Apart in lightness too, so that they are told apart in grey: dark blue, orange, mid grey, light blue, pale.
COLORS = {"ours": "#c8641e", "plain": "#8d99a6", "dark": "#1f3a5f", "light": "#a9c4de", "pale": "#dfe4ea", "mid": "#5b7fa6"}
PHASE_COLORS = ("#101820", "#c8641e", "#1f3a5f", "#dfe4ea", "#5b7fa6", "#f0b48a", "#8d99a6", "#f4f4f2")
MARKERS = "osD^vPX*"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the two options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a small form of under two minutes that shows that the benchmark works; never published")
    made.add_argument("--json", type=Path, metavar="FILE", help="where to write; .md and .png lie beside it (benchmarks/results)")
    return made


def output_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return the JSON file that a run writes: the one asked for, or the published one, or for a quick run one that is never published."""
    return arguments.json or RESULTS / f"{name}{'_quick' if arguments.quick else ''}.json"


def publish(path: Path, found: dict[str, Any], text: str, draw: Callable[[dict[str, Any], Path], None] | None) -> None:
    """Write the results as JSON, Markdown and PNG, and print the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    if draw is not None:
        draw(found, path.with_suffix(".png"))
    print(text)


def heading(title: str, found: dict[str, Any], *remarks: str) -> list[str]:
    """Return the first lines of a result's text: what it is, how it was made, and where."""
    made = f"`{found['command']}` at {found['commit']}, {found['date']}; {machine(found)}, torch {found['versions']['torch']}."
    quick = ["**A quick run: it shows that the benchmark works. Its numbers are not results.**"] if found.get("quick") else []
    return [f"# {title}", "", *(line for part in ([made], quick, remarks) for line in part if line), ""]


def machine(found: dict[str, Any]) -> str:
    """Return the hardware in words."""
    hardware = found["hardware"]
    return f"{hardware['cores']} cores of {hardware['processor']}" + (f", {hardware['gpu']}" if hardware.get("gpu") else "")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]


def number(value: float | None) -> str:
    """Return a number with about three figures, as a reader wants it."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1e6:
        return f"{value:,.3g}" if size >= 1e9 else f"{value:,.0f}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3g}"


def axes_pair(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes in the house's look."""
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    for each in [axes] if columns == 1 else list(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure."""
    figure.savefig(path, dpi=150)
    plt.close(figure)


def tell(text: str) -> None:
    """Say on the terminal how far a run is."""
    print(text, file=sys.stderr, flush=True)
