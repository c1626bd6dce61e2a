"""Write what was measured: texts and pictures of benchmarks/results, benchmarks/README.md and the
block of README.md, so that no number is typed.

A benchmark without a published result is named as not measured. Quick runs are never published, so
they never come here.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.__main__ import BENCHMARKS, STUDIES, module_of
from benchmarks.harness.publish import machine, number, table
from benchmarks.harness.stamp import REPOSITORY, RESULTS
from benchmarks.quality import ORACLE, SHOWN, mean_sd
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
        wanted[file.with_suffix(".md")] = module.as_markdown(found)
        if not arguments.check:
            module.draw(found, file.with_suffix(".png"))
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
    steps = [file for file in sorted(folder.glob("throughput_*.json")) if "_quick" not in file.stem]
    parts = [_throughput(steps)] if steps else [_absent("throughput")]
    for name, section in SECTIONS.items():
        file = folder / f"{name}.json"
        picture = (folder / f"{name}.png").is_file()
        parts.append(section(_read(file), picture) if file.is_file() else _absent(name))
    shown = {file.stem for file in steps} | SECTIONS.keys()
    others = [file.stem for file, _ in published(folder) if file.stem not in shown]
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


def _absent(name: str) -> str:
    return f"`python -m benchmarks {name}`: not measured."


def _picture(words: str, name: str, there: bool) -> list[str]:
    return ["", f"![{words}](results/{name}.png)"] if there else []


def _throughput(files: list[Path]) -> str:
    """Return the first result in full, and all of them beside each other."""
    first = _read(files[0])
    lines = [
        (
            f"One optimizer step of {first['batch_rows']:,} rows, 21 distinct strings, polyBERT's"
            f" size with LoRA, {first['precision']}, {machine(first)}"
            f" ([how](results/{files[0].stem}.md)):"
        ),
        "",
    ]
    cells = []
    for mode, result in first["modes"].items():
        extended = " (extended from small steps)" if result["extrapolated"] else ""
        hours = f"{first['stage1_hours'][mode]:,.1f}"
        cells.append(
            (
                f"{mode}{extended}",
                number(result["rows_per_s"]),
                number(result["step_s"]),
                f"{result['encoder_tokens_per_step']:,}",
                hours,
            )
        )
    lines += table(("mode", "rows/s", "step, s", "encoder tokens", "Stage 1, 15 epochs, h"), cells)
    lines += _picture(
        "Rows per second of each mode, and the share of each phase in a step",
        files[0].stem,
        files[0].with_suffix(".png").is_file(),
    )
    lines += [
        "",
        (
            "The same step, `per_step` beside encoding every row (padded to 128 as specified, with"
            " the share of Amdahl's bound; padded to the longest), and beside `frozen`, where"
            " encoding costs nothing:"
        ),
        "",
    ]
    header = (
        "precision, processor",
        "per_step, rows/s",
        "times as fast as padded to 128",
        "as padded to the longest",
        "times the time of frozen",
    )
    return "\n".join(lines + table(header, [_compared(file) for file in files]))


def _compared(file: Path) -> tuple[str, ...]:
    """Return a throughput result's line."""
    found = _read(file)
    speedup, share = found["speedup"], found["bound"]["naive_128"]["share_reached"]
    return (
        f"[{found['precision']}, {machine(found)}](results/{file.stem}.md)",
        number(found["modes"]["per_step"]["rows_per_s"]),
        f"{speedup['per_step_vs_naive_128']:,.0f} ({share:.0%} of the bound)",
        f"{speedup['per_step_vs_naive_longest']:,.0f}",
        f"{1 / speedup['per_step_vs_frozen']:.2f}",
    )


def _sweeps(found: dict[str, Any], picture: bool) -> str:
    curve = found["sweeps"].get("strings")
    if curve is None:
        return _absent("sweeps --only strings")
    middle = curve["points"][len(curve["points"]) // 2]
    lines = [
        (
            f"Speed-up against distinct strings (made ones, {middle['tokens'] / middle['x']:.0f}"
            f" tokens each), steps of {found['rows']:,} rows, {found['precision']} ([all"
            f" sweeps](results/sweeps.md)):"
        ),
        "",
    ]
    points = curve["points"]
    header = ("distinct strings", *(f"{point['x']:,}" for point in points))
    rows = [
        (
            "times as fast as padded to 128",
            *(number(point["speedup_vs_naive_128"]["median"]) for point in points),
        ),
        (
            "times as fast as batches of like length",
            *(number(point["speedup_vs_naive_bucketed"]["median"]) for point in points),
        ),
    ]
    lines += [*table(header, rows), ""]
    for law in ("uniform", "zipf"):
        if law in found["sweeps"]:
            place = found["sweeps"][law]["stops_paying"]["1.1"]
            where = (
                "does not stop paying at any number that was measured"
                if place is None
                else f"stops paying at {number(place)} distinct strings in the step"
            )
            words = "equally likely strings" if law == "uniform" else "strings by Zipf's law"
            lines.append(
                f"With {words} (encoder of {found['sweeps'][law]['encoder']} size) it {where} (less"
                " than 1.1 x)."
            )
    return "\n".join(
        lines
        + _picture("Speed-up against distinct strings, with Amdahl's bound", "sweeps", picture)
    )


def _peers(found: dict[str, Any], picture: bool) -> str:
    cells = [
        (name, f"{result['rows']:,}", number(result["rows_per_s"]["median"]))
        for name, result in found["loops"].items()
    ]
    absent = (
        f" Not installed, not measured: {', '.join(found['absent'])}." if found["absent"] else ""
    )
    lines = [
        (
            f"The same training in other people's loops, {found['precision']}; equal weights, rows"
            f" and micro-batches, losses compared at every step ([how](results/peers.md)); whole"
            f" batch: the step that Stage 1 takes.{absent}"
        ),
        "",
        *table(("loop", "rows of a step", "rows/s"), cells),
    ]
    return "\n".join(lines)


def _scaling(found: dict[str, Any], picture: bool) -> str:
    held = found["held_out_error"]
    return (
        "A cost model fitted on measured steps predicts steps that it never saw with a median"
        f" error of {held['median']:.0%} (largest {held['largest']:.0%}); [what it projects for"
        f" clusters and large tables](results/scaling.md) rests on assumed GPU rates, stated"
        " there."
    )


def _stage1(found: dict[str, Any], picture: bool) -> str:
    lines = [
        (
            "Stage 1 at full size as specified (447,480 rows, 15 epochs,"
            f" {found['train']['precision']}, {found['hardware']['cores']} cores): {_took(found)}."
            " Test patients that training never saw ([epochs and all"
            f" metrics](results/stage1.md)):"
        ),
        "",
    ]
    return "\n".join(lines + _goals(found["metrics"]))


def _stage1_modality(found: dict[str, Any], picture: bool) -> str:
    settings = {name.removeprefix("model."): value for name, value in found["changed"].items()}
    words = {
        name: (
            " ".join(f"{key} {each:g}" for key, each in value.items())
            if isinstance(value, dict)
            else value
        )
        for name, value in settings.items()
    }
    changed = ", ".join(f"{name} {value}" for name, value in words.items())
    share = found["metrics"]["oracle_share"]["delta_EF_pct"]["r2"]
    lines = [
        (
            f"The same with `configs/stage1_modality.yaml` ({changed}): {_took(found)}, R2"
            f" {share:.1%} of the oracle's ([all](results/stage1_modality.md)):"
        ),
        "",
    ]
    return "\n".join(lines + _goals(found["metrics"]))


def _took(found: dict[str, Any]) -> str:
    return f"**{found['seconds'] / 60:.0f} min**, {found['peak_rss_bytes'] / 2**30:.2f} GiB"


def _goals(metrics: dict[str, Any]) -> list[str]:
    """Return the metrics that have goals, as a table."""
    lines = ["| target | metric | value | goal | noise-free oracle |", "|---|---|---|---|---|"]
    for target, goals in metrics["goals"].items():
        for metric, goal in goals.items():
            verdict = "pass" if goal["reached"] else "**missed**"
            lines.append(
                f"| {target} | {metric} | {metrics['test'][target][metric]:.3f} | {goal['goal']:g}"
                f" {verdict} | {metrics['oracle'][target][metric]:.3f} |"
            )
    return lines


def _quality(found: dict[str, Any], picture: bool) -> str:
    shown = [f"{column} {metric}" for column, metric in SHOWN if metric != "r2"]
    splits = found["splits"]
    cells = []
    for model in next(iter(splits.values()))["models"]:
        scores = [
            mean_sd(split["models"][model][key]) for split in splits.values() for key in shown
        ]
        cells.append(
            (
                model,
                *(
                    "undefined" if score is None else f"{score[0]:.3f} ± {score[1]:.3f}"
                    for score in scores
                ),
            )
        )
    best = []
    for split in splits.values():
        for key in shown:
            scores = {
                model: mean_sd(values[key])
                for model, values in split["models"].items()
                if model != ORACLE
            }
            better = min if key.endswith("mae") else max
            best.append(
                better(
                    (model for model, score in scores.items() if score is not None),
                    key=lambda model: scores[model],
                    default="none",
                )
            )
    header = ("model", *(f"{split}: {key}" for split in splits for key in shown))
    lines = [
        (
            f"Quality beside baselines: reference cohort scaled down, {found['seeds']} seeds that"
            " deal patients or strings anew, mean ± standard deviation on test rows"
            f" ([how](results/quality.md)):"
        ),
        "",
        *table(header, [*cells, ("best model", *best)]),
    ]
    return "\n".join(
        lines
        + _picture(
            "Error of all models and baselines, on patients and on strings that training never saw",
            "quality",
            picture,
        )
    )


def _electrolyte(found: dict[str, Any], picture: bool) -> str:
    splits = found["splits"].values()
    models = dict.fromkeys(model for split in splits for model in split["models"])
    cells = [
        (model, *(_error_and_r2(split["models"].get(model)) for split in splits))
        for model in models
    ]
    best = [
        min(split["models"], key=lambda model: split["models"][model]["mae"]) for split in splits
    ]
    lines = [
        (
            "Real table: ionic conductivity of polymer electrolytes, log10 S/cm, stand-in encoder,"
            " mean absolute error ± standard deviation over seeds, and R2, on test rows"
            " ([how](results/electrolyte.md))."
        ),
        "",
        *table(
            (
                "model",
                *(f"{name} ({split['seeds']} seeds)" for name, split in found["splits"].items()),
            ),
            [*cells, ("least error", *best)],
        ),
    ]
    return "\n".join(
        lines
        + _picture(
            "Error of all models and baselines on polymer electrolytes", "electrolyte", picture
        )
    )


def _error_and_r2(score: dict[str, float] | None) -> str:
    if score is None:
        return "not measured"
    spread = f" ± {score['mae_sd']:.2f}" if "mae_sd" in score else ""
    return f"{score['mae']:.2f}{spread}, R2 {score['r2']:.2f}"


SECTIONS: dict[str, Callable[[dict[str, Any], bool], str]] = {
    "sweeps": _sweeps,
    "peers": _peers,
    "scaling": _scaling,
    "stage1": _stage1,
    "stage1_modality": _stage1_modality,
    "quality": _quality,
    "electrolyte": _electrolyte,
}
