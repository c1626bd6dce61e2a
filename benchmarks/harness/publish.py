"""What all benchmarks do with their results: one JSON, the same as a table in Markdown, and a
picture, side by side under one name.

A quick run proves that a benchmark works; its numbers are no results. So it writes
`<name>_quick.*`, which git ignores, and never touches what a full run published.
"""

import argparse
import json
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.harness.stamp import RESULTS
from fusionnet.train.runlog import write_json

matplotlib.use("Agg")


# Apart in lightness too, so that they are told apart in grey: dark blue, orange, mid grey, light
# blue, pale.
COLORS = {
    "ours": "#c8641e",
    "plain": "#8d99a6",
    "dark": "#1f3a5f",
    "light": "#a9c4de",
    "pale": "#dfe4ea",
    "mid": "#5b7fa6",
}
PHASE_COLORS = (
    "#101820",
    "#c8641e",
    "#1f3a5f",
    "#dfe4ea",
    "#5b7fa6",
    "#f0b48a",
    "#8d99a6",
    "#f4f4f2",
)
MARKERS = "osD^vPX*"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the two options that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=description.splitlines()[0]
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help=(
            "a small form of under two minutes that shows that the benchmark works; never published"
        ),
    )
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to write; .md and .png lie beside it (benchmarks/results)",
    )
    return made


def output_path(name: str, arguments: argparse.Namespace) -> Path:
    """Return the JSON file that a run writes: the one asked for, or the published one, or for a
    quick run one that is never published.
    """
    return arguments.json or RESULTS / f"{name}{'_quick' if arguments.quick else ''}.json"


def publish(
    path: Path,
    found: dict[str, Any],
    as_markdown: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Write the results as JSON, Markdown and PNG, and print the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    render(path, found, as_markdown, draw)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def render(
    path: Path,
    found: dict[str, Any],
    as_markdown: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Write what people read beside a result's JSON: Markdown and PNG."""
    path.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
    draw(found, path.with_suffix(".png"))


def with_kept(
    output: Path, key: str, fresh: Mapping[str, Any], order: Iterable[str]
) -> dict[str, Any]:
    """Return the parts of a result that this run made and, for those it was not asked for, what the
    file has.

    Read when a run ends, so that two runs side by side may each add their part.
    """
    kept = json.loads(output.read_text())[key] if output.is_file() else {}
    return {
        name: fresh.get(name, kept.get(name)) for name in order if name in fresh or name in kept
    }


def heading(title: str, found: dict[str, Any], *remarks: str) -> list[str]:
    """Return the first lines of a result's text: what it is, how it was made, and where."""
    made = (
        f"`{found['command']}` at {found['commit']}, {found['date']}; {machine(found)}, torch"
        f" {found['versions']['torch']}."
    )
    quick = (
        ["**A quick run: it shows that the benchmark works. Its numbers are not results.**"]
        if found.get("quick")
        else []
    )
    return [
        f"# {title}",
        "",
        *(line for part in ([made], quick, remarks) for line in part if line),
        "",
    ]


def machine(found: dict[str, Any]) -> str:
    """Return the hardware in words."""
    hardware = found["hardware"]
    threads = hardware.get("threads", hardware["cores"])
    fewer = (
        "" if threads == hardware["cores"] else f" ({threads} thread{'s' if threads > 1 else ''})"
    )
    gpu = hardware.get("gpu")
    # beside a GPU, how the CPU multiplies hardly matters
    beside = f", {gpu}" if gpu else " (bf16 emulated)" if hardware.get("emulates_bf16") else ""
    return f"{hardware['cores']} cores{fewer} of {hardware['processor']}{beside}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    return [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
    ]


def number(value: float | None) -> str:
    """Return a number with about three figures, as a reader wants it."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1e6:
        return f"{value:,.3g}" if size >= 1e9 else f"{value:,.0f}"
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3g}"
    )


class Panel(NamedTuple):
    """One quantity of several things."""

    title: str
    unit: str  # what the axis says
    # by name: a value, or a value with the low and high end of its spread
    bars: Mapping[str, float | tuple[float, float, float]]
    limits: Mapping[str, float] = {}  # lines across all bars, by name


def draw_bars(path: Path, panels: Sequence[Panel], ours: Container[str] = ()) -> None:
    """Draw panels of horizontal bars side by side, those named in `ours` in the house's colour;
    names that all panels share are written once.
    """
    shared = len({tuple(panel.bars) for panel in panels}) == 1
    most = max(len(panel.bars) for panel in panels)
    # inches that the longest takes beyond the usual
    names = 0.07 * max(0, max(len(name) for panel in panels for name in panel.bars) - 40)
    figure, axes = axes_pair(
        {1: 8.0, 2: 11.0}.get(len(panels), 4.2 * len(panels)) + names,
        1.5 + 0.38 * most,
        columns=len(panels),
    )
    for place, (each, panel) in enumerate(zip(np.atleast_1d(axes), panels, strict=True)):
        draw_panel(each, panel, ours)
        if place and shared:
            each.set_yticklabels([])
    save(figure, path)


def draw_panel(axes: Any, panel: Panel, ours: Container[str] = ()) -> None:
    """Draw one panel's bars, each with its spread and value, and its limits, which the axis
    names.
    """
    names = list(panel.bars)[::-1]
    spreads = [
        value if isinstance(value, tuple) else (value, value, value)
        for value in (panel.bars[name] for name in names)
    ]
    middle, low, high = np.array(spreads, dtype=np.float64).T
    axes.barh(
        names,
        middle,
        height=0.7,
        color=[COLORS["ours" if name in ours else "light"] for name in names],
    )
    if any(isinstance(value, tuple) for value in panel.bars.values()):
        axes.errorbar(
            middle,
            names,
            xerr=np.clip([middle - low, high - middle], 0, None),
            fmt="none",
            ecolor="black",
            elinewidth=0.9,
            capsize=2,
        )
    # a line behind a number would hide it
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    for name, value, end in zip(names, middle, high, strict=True):
        axes.annotate(
            number(value),
            (end, name),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox=box,
        )
    said = []
    for (name, value), (style, word) in zip(
        panel.limits.items(), (("--", "dashed"), (":", "dotted")), strict=False
    ):
        axes.axvline(value, color=COLORS["dark"], linewidth=1.2, linestyle=style)
        said.append(f"{word}: {name}, {number(value)}")
    axes.set_xlim(0, 1.2 * max([*high, *panel.limits.values()]))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(False, axis="y")
    axes.set_xlabel("\n".join([panel.unit, *([", ".join(said)] if said else [])]), fontsize=9)
    axes.set_title(panel.title, fontsize=10)


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
