"""The sections of benchmarks/README.md: one function per benchmark, from its result to Markdown."""

from collections.abc import Callable
from typing import Any

from benchmarks.faults import promised
from benchmarks.harness.cells import Column, Table, gib, mean_and_sd, named, number, rendered
from benchmarks.harness.publish import machine
from benchmarks.injection.cases import BROKEN
from benchmarks.quality import KEYS, ORACLE, mean_sd
from benchmarks.studies.defaults import beside_boosting
from benchmarks.studies.defaults import report as defaults_report


def absent(name: str) -> str:
    """Return that a benchmark has no published result."""
    return f"`python -m benchmarks {name}`: not measured."


def _paragraphs(*blocks: str | Table) -> str:
    """Return paragraphs and tables in Markdown."""
    texts = [each if isinstance(each, str) else "\n".join(rendered(each)) for each in blocks]
    return "\n\n".join(text for text in texts if text)


def _picture(words: str, name: str, there: bool) -> str:
    return f"![{words}](results/{name}.png)" if there else ""


def throughput(results: dict[str, dict[str, Any]], with_picture: bool) -> str:
    """Return the first result in full, and all of them beside each other."""
    name, first = next(iter(results.items()))
    hours = first["stage1_hours"]
    columns = (
        Column("mode", _mode),
        Column("rows/s", "rows_per_s"),
        Column("step, s", "step_s"),
        Column("encoder tokens", "encoder_tokens_per_step"),
        Column("Stage 1, 15 epochs, h", lambda row: hours[row["name"]], ",.1f"),
    )
    return _paragraphs(
        f"One optimizer step of {first['batch_rows']:,} rows, 21 distinct strings, polyBERT's size"
        f" with LoRA, {first['precision']}, {machine(first)} ([how](results/{name}.md)):",
        Table(columns, named(first["modes"])),
        _picture(
            "Rows per second of each mode, and the share of each phase in a step",
            name,
            with_picture,
        ),
        "The same step, `per_step` beside encoding every row (padded to 128 as specified, with the"
        " share of Amdahl's bound; padded to the longest), and beside `frozen`, where encoding"
        " costs nothing:",
        Table(COMPARED, [{**found, "stem": stem} for stem, found in results.items()]),
    )


def _mode(row: dict[str, Any]) -> str:
    return row["name"] + (" (extended from small steps)" if row["extrapolated"] else "")


def _padded(row: dict[str, Any]) -> str:
    share = row["bound"]["naive_128"]["share_reached"]
    return f"{row['speedup']['per_step_vs_naive_128']:,.0f} ({share:.0%} of the bound)"


COMPARED = (
    Column(
        "precision, processor",
        lambda row: f"[{row['precision']}, {machine(row)}](results/{row['stem']}.md)",
    ),
    Column("per_step, rows/s", "modes.per_step.rows_per_s"),
    Column("times as fast as padded to 128", _padded),
    Column("as padded to the longest", "speedup.per_step_vs_naive_longest", ",.0f"),
    Column("times the time of frozen", lambda row: 1 / row["speedup"]["per_step_vs_frozen"], ".2f"),
)


def _sweeps(found: dict[str, Any], with_picture: bool) -> str:
    """Return the curve over distinct strings, and where the speed-up ends."""
    if "strings" not in found["sweeps"]:
        return absent("sweeps --only strings")
    points = found["sweeps"]["strings"]["points"]
    middle = points[len(points) // 2]
    columns = [Column("distinct strings", lambda row: row[0])]
    columns += [
        Column(f"{point['x']:,}", lambda row, point=point: point[f"speedup_vs_{row[1]}"]["median"])
        for point in points
    ]
    rows = (
        ("times as fast as padded to 128", "naive_128"),
        ("times as fast as batches of like length", "naive_bucketed"),
    )
    kinds = (("uniform", "equally likely strings"), ("zipf", "strings by Zipf's law"))
    return _paragraphs(
        f"Speed-up against distinct strings (made ones, {middle['tokens'] / middle['x']:.0f} tokens"
        f" each), steps of {found['rows']:,} rows, {found['precision']} ([all"
        " sweeps](results/sweeps.md)):",
        Table(columns, rows),
        "\n".join(
            _stops_paying(found["sweeps"][name], words)
            for name, words in kinds
            if name in found["sweeps"]
        ),
        _picture("Speed-up against distinct strings, with Amdahl's bound", "sweeps", with_picture),
    )


def _stops_paying(sweep: dict[str, Any], strings: str) -> str:
    distinct = sweep["stops_paying"]["1.1"]
    where = (
        "does not stop paying at any number that was measured"
        if distinct is None
        else f"stops paying at {number(distinct)} distinct strings in the step"
    )
    return f"With {strings} (encoder of {sweep['encoder']} size) it {where} (less than 1.1 x)."


def _peers(found: dict[str, Any], with_picture: bool) -> str:
    columns = (
        Column("loop", "name"),
        Column("rows of a step", "rows"),
        Column("rows/s", "rows_per_s.median"),
    )
    names = ", ".join(found["absent"])
    absent = f" Not installed, not measured: {names}." if names else ""
    return _paragraphs(
        f"The same training in other people's loops, {found['precision']}; equal weights, rows and"
        " micro-batches, losses compared at every step ([how](results/peers.md)); whole batch: the"
        f" step that Stage 1 takes.{absent}",
        Table(columns, named(found["loops"])),
    )


def _scaling(found: dict[str, Any], with_picture: bool) -> str:
    held = found["held_out_error"]
    compared = {row["name"]: row for row in found["compared"]}

    def off(name: str) -> float:
        return compared[name]["measured"] / compared[name]["projected"]

    return (
        "A cost model fitted on measured steps predicts steps that it never saw with a median"
        f" error of {held['median']:.0%} (largest {held['largest']:.0%}). [What it projects for"
        " GPUs](results/scaling.md) rests on rates stated there; on one H100 a step replayed from a"
        f" CUDA graph took {off('step replayed, training'):.1f} to"
        f" {off('step replayed, benchmark'):.1f} times the projected time, and one taken from"
        f" Python {off('step from Python'):.0f} times."
    )


def _stage1(found: dict[str, Any], with_picture: bool) -> str:
    return _paragraphs(
        "Stage 1 at full size as specified (447,480 rows, 15 epochs,"
        f" {found['train']['precision']}, {found['hardware']['cores']} cores): {_took(found)}. Test"
        " patients that training never saw ([epochs and all metrics](results/stage1.md)):",
        _goals(found["metrics"]),
    )


def _stage1_modality(found: dict[str, Any], with_picture: bool) -> str:
    changed = ", ".join(
        f"{name.removeprefix('model.')} {_setting(value)}"
        for name, value in found["changed"].items()
    )
    share = found["metrics"]["oracle_share"]["delta_EF_pct"]["r2"]
    return _paragraphs(
        f"The same with `configs/stage1_modality.yaml` ({changed}): {_took(found)}, R2 {share:.1%}"
        " of the oracle's ([all](results/stage1_modality.md)):",
        _goals(found["metrics"]),
    )


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {each:g}" for key, each in value.items())
    return str(value)


def _took(found: dict[str, Any]) -> str:
    return f"**{found['seconds'] / 60:.0f} min**, {gib(found['peak_rss_bytes'])} GiB"


def _goals(metrics: dict[str, Any]) -> Table:
    """Return the metrics that have goals, as a table."""
    columns = (
        Column("target", "target"),
        Column("metric", "metric"),
        Column("value", "value", ".3f"),
        Column("goal", lambda row: f"{row['goal']:g} {'pass' if row['reached'] else '**missed**'}"),
        Column("noise-free oracle", "oracle", ".3f"),
    )
    rows = [
        {
            "target": target,
            "metric": metric,
            "value": metrics["test"][target][metric],
            "oracle": metrics["oracle"][target][metric],
            **goal,
        }
        for target, goals in metrics["goals"].items()
        for metric, goal in goals.items()
    ]
    return Table(columns, rows)


def _quality(found: dict[str, Any], with_picture: bool) -> str:
    """Return the metrics of all models on both splits, and which is best."""
    splits = found["splits"]
    shown = [(split, key) for split in splits for key in KEYS if not key.endswith(" r2")]
    columns = [Column("model", lambda model: model)]
    rows = [*next(iter(splits.values()))["models"], "best model"]
    for split, key in shown:
        scores = {model: mean_sd(own[key]) for model, own in splits[split]["models"].items()}
        cells = {model: _score(score) for model, score in scores.items()}
        cells["best model"] = _best(scores, key)
        columns.append(Column(f"{split}: {key}", cells.__getitem__))
    return _paragraphs(
        f"Quality beside baselines: reference cohort scaled down, {found['seeds']} seeds that split"
        " patients or strings anew, mean ± standard deviation on test rows"
        " ([how](results/quality.md)):",
        Table(columns, rows),
        _picture(
            "Error of all models and baselines, on patients and on strings that training never saw",
            "quality",
            with_picture,
        ),
    )


def _score(score: tuple[float, float] | None) -> str:
    return "undefined" if score is None else mean_and_sd(score)


def _best(scores: dict[str, tuple[float, float] | None], key: str) -> str:
    """Return the model of the least error or the largest score; the oracle is no model."""
    means = {
        model: score[0] for model, score in scores.items() if score is not None and model != ORACLE
    }
    better = min if key.endswith("mae") else max
    return better(means, key=means.__getitem__, default="none")


def _electrolyte(found: dict[str, Any], with_picture: bool) -> str:
    """Return the error of all models on both splits, and which is least."""
    splits = found["splits"]
    names = dict.fromkeys(model for split in splits.values() for model in split["models"])
    columns = [Column("model", lambda model: model)]
    for name, split in splits.items():
        models = split["models"]
        cells = {model: _error_and_r2(models.get(model)) for model in names}
        cells["least error"] = min(models, key=lambda model, models=models: models[model]["mae"])
        columns.append(Column(f"{name} ({split['seeds']} seeds)", cells.__getitem__))
    return _paragraphs(
        "Real table: ionic conductivity of polymer electrolytes, log10 S/cm, stand-in encoder, mean"
        " absolute error ± standard deviation over seeds, and R2, on test rows"
        " ([how](results/electrolyte.md)).",
        Table(columns, [*names, "least error"]),
        _picture(
            "Error of all models and baselines on polymer electrolytes", "electrolyte", with_picture
        ),
    )


def _defaults(found: dict[str, Any], with_picture: bool) -> str:
    """Return the errors of all defaults on each table, and how far they are from boosting."""
    (table,) = [block for block in defaults_report(found).blocks if isinstance(block, Table)]
    tables = found["tables"].values()
    won = sum(beside_boosting(each) < 0 for each in tables)
    return _paragraphs(
        "All defaults: mean absolute error of test rows after `fusionnet init`, build and train,"
        " with nothing set, stand-in encoder ([how](results/defaults.md)). They beat the better"
        f" boosting on {won} of {len(tables)} tables.",
        table,
        _picture("Errors of all defaults beside means and boosting", "defaults", with_picture),
    )


def _error_and_r2(score: dict[str, float] | None) -> str:
    if score is None:
        return "not measured"
    return f"{mean_and_sd((score['mae'], score.get('mae_sd')), '.2f')}, R2 {score['r2']:.2f}"


def _faults(found: dict[str, Any], with_picture: bool) -> str:
    """Return what is promised when something goes wrong, and how often it was tried."""
    total = found["total"]
    broken = sum(total[verdict] for verdict in BROKEN)
    return _paragraphs(
        f"{total['tried']:,} faults injected into the commands, seed {found['seed']}; promises"
        f" broken: {broken} ([every attack](results/faults.md)).",
        promised(found),
    )


SECTIONS: dict[str, Callable[[dict[str, Any], bool], str]] = {
    "sweeps": _sweeps,
    "peers": _peers,
    "scaling": _scaling,
    "stage1": _stage1,
    "stage1_modality": _stage1_modality,
    "quality": _quality,
    "electrolyte": _electrolyte,
    "defaults": _defaults,
    "faults": _faults,
}
