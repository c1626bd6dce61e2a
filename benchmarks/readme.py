"""Write the measured numbers of benchmarks/results into the README, so that none is typed."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.stamp import RESULTS
from benchmarks.throughput import MODES
from embedcache.errors import UserError

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- results: written by `python -m benchmarks readme` -->", "<!-- end of results -->"


def main(words: list[str]) -> None:
    """Replace the README's part between the two marks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks readme", description=__doc__)
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args(words)
    text = arguments.readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{arguments.readme} lacks the marks {START} and {END}")
    before, after = text.split(START)[0], text.split(END)[1]
    arguments.readme.write_text(f"{before}{START}\n{results()}\n{END}{after}", encoding="utf-8")


def results() -> str:
    """Return the section's text."""
    stage1, electrolyte = _read("stage1.json"), _read("electrolyte.json")
    steps = [_read(file.name) for file in sorted(RESULTS.glob("throughput_*.json"))]
    return "\n\n".join([*(_throughput(step) for step in steps), _stage1(stage1), _electrolyte(electrolyte)])


def _throughput(found: dict[str, Any]) -> str:
    bound = found["bound"]["naive_128"]
    lines = [
        f"One optimizer step of {found['batch_rows']:,} rows, 21 distinct strings, polyBERT's size with LoRA, {found['precision']}, "
        f"{found['hardware']['cores']} cores of {found['hardware']['processor']} ([how](benchmarks/results/throughput_{found['precision']}.md)):",
        "",
        "| mode | rows/s | step, s | encoder tokens | Stage 1, 15 epochs, h |",
        "|---|---|---|---|---|",
    ]
    for mode in MODES:
        result = found["modes"][mode]
        rate = f"{result['rows_per_s']:,.0f}" if result["rows_per_s"] >= 100 else f"{result['rows_per_s']:.1f}"
        extended = " (extended from small steps)" if result["extrapolated"] else ""
        lines.append(f"| {mode}{extended} | {rate} | {result['step_s']:,.2f} | {result['encoder_tokens_per_step']:,} | {found['stage1_hours'][mode]:,.1f} |")
    lines += [
        "",
        f"`per_step` is {found['speedup']['per_step_vs_naive_128']:,.0f} x as fast as naive padded to 128 ({bound['share_reached']:.0%} of Amdahl's bound) and "
        f"{found['speedup']['per_step_vs_naive_longest']:,.0f} x as fast as padded to the longest; it takes {1 / found['speedup']['per_step_vs_frozen']:.2f} x "
        "the time of `frozen`, where encoding costs nothing.",
    ]
    return "\n".join(lines)


def _stage1(found: dict[str, Any]) -> str:
    metrics = found["metrics"]
    lines = [
        f"Stage 1 at full size (447,480 rows, 15 epochs, {found['train']['precision']}, {found['hardware']['cores']} cores): "
        f"**{found['seconds'] / 60:.0f} min**, {found['peak_rss_bytes'] / 2**30:.2f} GiB. "
        "Test patients that training never saw ([epochs and all metrics](benchmarks/results/stage1.md)):",
        "",
        "| target | metric | value | goal | noise-free oracle |",
        "|---|---|---|---|---|",
    ]
    for target, goals in metrics["goals"].items():
        for metric, goal in goals.items():
            verdict = "pass" if goal["reached"] else "**missed**"
            lines.append(
                f"| {target} | {metric} | {metrics['test'][target][metric]:.3f} | {goal['goal']:g} {verdict} | {metrics['oracle'][target][metric]:.3f} |"
            )
    return "\n".join(lines)


def _electrolyte(found: dict[str, Any]) -> str:
    lines = [
        "Real table: ionic conductivity of polymer electrolytes, log10 S/cm, stand-in encoder, mean absolute error and R2 on test rows "
        "([how](benchmarks/results/electrolyte.md)).",
        "",
        "| model | " + " | ".join(found["splits"]) + " |",
        "|---|" + "---|" * len(found["splits"]),
    ]
    for model in next(iter(found["splits"].values()))["models"]:
        cells = [split["models"][model] for split in found["splits"].values()]
        lines.append(f"| {model} | " + " | ".join(f"{cell['mae']:.2f}, R2 {cell['r2']:.2f}" for cell in cells) + " |")
    best = [min(split["models"], key=lambda model: split["models"][model]["mae"]) for split in found["splits"].values()]
    lines.append("| least error | " + " | ".join(best) + " |")
    return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    if not (RESULTS / name).is_file():
        raise UserError(f"there is no benchmarks/results/{name}: run that benchmark first")
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
