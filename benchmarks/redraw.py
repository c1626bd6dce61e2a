"""The Markdown and the picture of every published result, written anew from its JSON: for when only
their looks changed.
"""

import argparse
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness.publish import render
from benchmarks.harness.stamp import RESULTS
from embedcache.errors import UserError


def main(words: list[str]) -> None:
    """Redraw all results of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks redraw", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    for file, module in published(parser.parse_args(words).results):
        render(file, json.loads(file.read_text()), module.as_markdown, module.draw)
        print(file.with_suffix(".png"))


def published(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the JSON files that full runs left, each with the benchmark that wrote it."""
    for file in sorted(folder.glob("*.json")):
        if not file.stem.endswith("_quick"):
            name = max(
                (
                    name
                    for name in BENCHMARKS
                    if file.stem == name or file.stem.startswith(f"{name}_")
                ),
                key=len,
                default=None,
            )
            if name is None:
                raise UserError(f"{file}: no benchmark writes such a file")
            yield file, import_module(f"benchmarks.{name}")
