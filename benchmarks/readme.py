"""Write what was measured: texts and pictures of benchmarks/results, benchmarks/README.md and the
block of README.md, so that no number is typed.

A benchmark without a published result is named as not measured. Quick runs are never published, so
they never come here.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.__main__ import BENCHMARKS, STUDIES, module_of
from benchmarks.harness.publish import markdown, picture
from benchmarks.harness.stamp import REPOSITORY, RESULTS
from benchmarks.readme_sections import SECTIONS, absent, throughput
from embedcache.errors import UserError

START, END = "<!-- results: written by `python -m benchmarks readme` -->", "<!-- end of results -->"
GRADIENT_TEST = "tests/embedcache/live/test_step.py"


def main(words: list[str]) -> None:
    """Redraw all results and replace the two READMEs' parts between the marks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readme", description=__doc__.split(":")[0]
    )
    parser.add_argument(
        "--root", type=Path, default=REPOSITORY, help="a checkout: README.md and benchmarks/"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a text would change"
    )
    arguments = parser.parse_args(words)
    folder = arguments.root / RESULTS.relative_to(REPOSITORY)
    texts = {
        arguments.root / "README.md": headline(folder),
        arguments.root / "benchmarks" / "README.md": results(folder),
    }
    wanted = {file: _between_marks(file, text) for file, text in texts.items()}
    for file, module in published(folder):
        found = _read(file)
        report = module.report(found)
        wanted[file.with_suffix(".md")] = markdown(report, found)
        if not arguments.check:
            picture(report, file)
    for file, text in wanted.items():
        if not arguments.check:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{file} does not hold what the results say; write it with:"
                " python -m benchmarks readme"
            )


def published(folder: Path) -> Iterator[tuple[Path, ModuleType]]:
    """Yield the JSON files that full runs left, each with the benchmark that wrote it."""
    for file in sorted(folder.glob("*.json")):
        if file.stem.endswith("_quick"):
            continue
        names = [
            name
            for name in (*BENCHMARKS, *STUDIES)
            if file.stem == name or file.stem.startswith(f"{name}_")
        ]
        if not names:
            raise UserError(f"{file}: no benchmark writes such a file")
        yield file, module_of(max(names, key=len))


def _between_marks(file: Path, text: str) -> str:
    """Return a README with the text between its marks."""
    old = file.read_text(encoding="utf-8")
    if START not in old or END not in old:
        raise UserError(f"{file} lacks the marks {START} and {END}")
    return f"{old.split(START)[0]}{START}\n{text}\n{END}{old.split(END)[1]}"


def headline(folder: Path = RESULTS) -> str:
    """Return the three numbers of the top README, with links from the repository's root."""
    link = RESULTS.relative_to(REPOSITORY)
    lines = []
    step, stage1 = folder / "throughput_bf16.json", folder / "stage1.json"
    if step.is_file():
        found = _read(step)
        lines.append(
            f"- **{found['speedup']['per_step_vs_naive_128']:,.0f} x** the rows per second of"
            f" padded per-row encoding, {found['precision']}, {found['hardware']['cores']} cores"
            f" ([throughput]({link}/{step.stem}.md))"
        )
    lines.append(f"- gradients of per-row encoding, exact to **1e-5** ([test]({GRADIENT_TEST}))")
    if stage1.is_file():
        found = _read(stage1)
        lines.append(
            f"- Stage 1, 447,480 rows, 15 epochs: **{found['seconds'] / 60:.0f} min** on"
            f" {found['hardware']['cores']} cores ([all metrics]({link}/{stage1.stem}.md))"
        )
    return "\n".join(lines)


def results(folder: Path = RESULTS) -> str:
    """Return the section of benchmarks/README.md, with links from there."""
    found = {file.stem: _read(file) for file, _ in published(folder)}
    steps = {name: result for name, result in found.items() if name.startswith("throughput_")}
    pictures = {file.stem for file in folder.glob("*.png")}
    parts = [throughput(steps, min(steps) in pictures) if steps else absent("throughput")]
    for name, section in SECTIONS.items():
        there = name in pictures
        parts.append(section(found[name], there) if name in found else absent(name))
    others = [name for name in found if name not in steps.keys() | SECTIONS.keys()]
    if others:
        links = ", ".join(f"[{name}](results/{name}.md)" for name in others)
        parts.append(f"Also measured: {links}.")
    return "\n\n".join(parts)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found.get("quick"):
        raise UserError(
            f"{file} is of a quick run, whose numbers are no results; run the full form: python -m"
            f" benchmarks {file.stem.split('_')[0]}"
        )
    return found
