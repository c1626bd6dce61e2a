"""What a search was, what it found and what it cannot know, in plain words (Markdown)."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from embedcache.config.columns import NumericColumn
from embedcache.text import count_of, number, visible
from fusionnet.config.reward import RewardPenalty, RewardTerm
from fusionnet.design.candidates import Candidates
from fusionnet.design.figure import axis_title
from fusionnet.design.objectives import Objective
from fusionnet.design.search import Found
from fusionnet.trained.formula import Formula
from fusionnet.trained.run import TrainedRun

LONGEST_TEXT = 60  # of a material, in characters; top.csv has the whole

TITLE = "# Designs for "  # by which the text of a search is known


@dataclass(frozen=True)
class Searched:
    """A finished search, and how it was made."""

    run: TrainedRun
    table: str
    patient: str
    candidates: Candidates
    objectives: Sequence[Objective]
    formula: Formula
    pessimism: float
    found: Found
    top: pl.DataFrame  # as top.csv has it
    distance: float
    coverage: float | None  # of the intervals; None: the run has none
    rounded: bool  # whether all were judged in bf16, and what was kept again in fp32
    seconds: float


def of_table(name: str) -> str:
    """Return what a column of the table is called where its name is taken by one of ours."""
    return f"{name} of the table"


def described(searched: Searched) -> str:
    """Return the whole text."""
    patient = "the only context" if searched.patient == "" else searched.patient
    space = searched.candidates.space
    head = f"{TITLE}{space.group or 'row'} {_cell(patient)}"
    parts = [head, _how(searched), _what(searched), _unknown(searched)]
    return "\n\n".join(parts) + "\n"


def _how(searched: Searched) -> str:
    """Return what was searched."""
    candidates, found, run = searched.candidates, searched.found, searched.run
    space = candidates.space
    points = (
        f"{candidates.num_points:,} points of a Sobol sequence (seed {candidates.seed})"
        if candidates.levels is None
        else f"all combinations of {max(candidates.levels, default=1)} levels"
    )
    combinations = candidates.num_cells // space.num_materials
    rate = found.num_rows / max(searched.seconds, 1e-9)
    lines = [
        "## What was searched",
        "",
        f"{found.num_rows:,} designs in {searched.seconds:,.1f} s ({rate:,.0f} a second), by the"
        f" model of epoch {run.epoch} in `{run.folder}`: each of"
        f" {count_of(space.num_materials, 'material')} with each of"
        f" {count_of(combinations, 'choice')} at {points}, between what each material's own rows in"
        f" `{searched.table}` have:",
        "",
        "| variable | least and most of all materials | |",
        "|---|---|---|",
        *_variables(searched),
    ]
    lines += [f"| {', '.join(map(_cell, each))} | one of them is 1 | |" for each in space.choices]
    if space.num_left_out:
        left_out = count_of(space.num_left_out, "material")
        lines += ["", f"design.bounds leave out {left_out} of the table."]
    lines += ["", f"Reward: {_formula(searched)}."]
    if searched.rounded:
        lines += [
            "",
            "All were judged in bf16, which rounds to about three digits; the best of each material"
            " and choice, and the front, were judged again in fp32, and that is what is shown.",
        ]
    return "\n".join(lines)


def _variables(searched: Searched) -> list[str]:
    """Return a line of a table on each variable."""
    space = searched.candidates.space
    columns: dict[str, NumericColumn] = {each.column: each for each in searched.run.data.numeric}
    lines = []
    for v, name in enumerate(space.variables):
        unit = columns[name].unit
        least, most = number(float(space.low[:, v].min())), number(float(space.high[:, v].max()))
        how = "in its logarithm" if space.logarithmic[v] else "evenly"
        how = "whole numbers" if space.whole[v] else how
        lines.append(f"| {_cell(name)} | {least} to {most} {_cell(unit)} | {how} |")
    return lines


def _formula(searched: Searched) -> str:
    """Return the reward in words."""
    terms = [f"{term.weight:g} x {_named(term)}" for term, _ in searched.formula.terms]
    paid = [
        f"{each.penalty:g} where {_named(each)} is"
        f" {f'above {each.above:g}' if each.above is not None else f'below {each.below:g}'}"
        for each, _ in searched.formula.penalties
    ]
    if searched.pessimism:
        paid.append(f"{searched.pessimism:g} standard deviations of the reward (`doubt`)")
    return " + ".join(terms) + "".join(f" - {each}" for each in paid)


def _named(read: RewardTerm | RewardPenalty) -> str:
    return _cell(read.task if read.label is None else f"{read.task} {read.label}")


def _what(searched: Searched) -> str:
    """Return what was found."""
    found = searched.found
    wanted = count_of(len(found.top.number), "design")
    exact = (
        "Chosen among the best of each material and choice; a better one may have been left out."
    )
    if found.is_exact:
        exact = "No other of the designs would have been among them"
        exact += ", but for the rounding." if searched.rounded else "."
    lines = [
        "## What was found",
        "",
        f"The {wanted} of the greatest reward that differ: two of one material and choice are at"
        f" least {searched.distance:g} of a variable's range apart in some variable. {exact}",
        "",
        *_formulations(searched),
        "",
        "Their rewards, with parts, and predictions"
        + (f" with {searched.coverage:.0%} intervals:" if searched.coverage else ":"),
        "",
        *_predictions(searched),
        "",
        "Materials:",
        "",
        *_materials(searched),
        "",
        f"Pareto front: {count_of(len(found.front.number), 'design')}, which none of the others"
        " beats in one of these without losing in another:",
        "",
        *_front_lines(searched),
    ]
    return "\n".join(lines)


def _formulations(searched: Searched) -> list[str]:
    """Return the top designs as a table of what they are."""
    space = searched.candidates.space
    head = ["", "reward", "material", *space.variables, *["choice"] * bool(space.choices)]
    rows = []
    known = searched.top.columns
    names = {name: of_table(name) if of_table(name) in known else name for name in known}
    for row in searched.top.iter_rows(named=True):
        picked = [name for each in space.choices for name in each if row[names[name]]]
        cells = [row[name] for name in ("place", "reward", "material")]
        cells += [row[names[name]] for name in space.variables]
        cells += [", ".join(picked)] * bool(space.choices)
        rows.append([*cells, *("yes" if row[name] else "no" for name in ("known", "outside"))])
    return _table([*head, "known", "outside"], rows)


def _predictions(searched: Searched) -> list[str]:
    """Return the top designs as a table of the parts of their rewards, and of predictions."""
    top = searched.top
    parts = [name for name in ("reward", *searched.formula.names, "doubt") if name in top.columns]
    columns = [task.column for task in searched.run.tasks]
    rows = [
        [row["place"], *(row[name] for name in parts), *(_with_interval(row, c) for c in columns)]
        for row in top.iter_rows(named=True)
    ]
    return _table(["", *parts, *(f"predicted_{column}" for column in columns)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [list(head), *([_shown(value) for value in row] for row in rows)]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _with_interval(row: dict[str, object], column: str) -> str:
    """Return a prediction with its interval, where it has one."""
    text = _shown(row[f"predicted_{column}"])
    low, high = row.get(f"lower_{column}"), row.get(f"upper_{column}")
    return text if low is None or high is None else f"{text} ({_shown(low)} to {_shown(high)})"


def _shown(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _materials(searched: Searched) -> list[str]:
    """Return a line on each material of the top designs."""
    space = searched.candidates.space
    return [
        f"- {material}: {_cell(space.title(material), 2 * LONGEST_TEXT)}"
        for material in dict.fromkeys(searched.top["material"].to_list())
    ]


def _front_lines(searched: Searched) -> list[str]:
    """Return a line on each objective of the front."""
    lines = []
    for o, objective in enumerate(searched.objectives):
        values = searched.found.front_objectives[:, o]
        values = values if objective.more_is_better else -values
        least, most = number(float(values.min())), number(float(values.max()))
        lines.append(f"- {_cell(axis_title(objective))}: {least} to {most}")
    return lines


def _unknown(searched: Searched) -> str:
    """Return what nobody can know from this."""
    run, found = searched.run, searched.found
    group = searched.candidates.space.group
    lines = [
        f"- **The best of {found.num_rows:,} is too good to be true** (winner's curse): of so many"
        " predictions the greatest are those that err upwards most. Expect less than is shown here,"
        " and more doubt the higher a design stands.",
    ]
    if searched.coverage is not None:
        lines.append(
            f"- Intervals hold {searched.coverage:.0%} of labels on average over new values of"
            f" {run.calibration.unit_name if run.calibration else 'row'} like those of the"
            " validation rows. They promise nothing for designs that were picked because their"
            " predictions are great, nor for a patient whose rows trained the model."
        )
    else:
        lines.append("- The run has no intervals, so nobody says how far predictions may be off.")
    lines += [
        "- Bounds are those of the table: what lies beyond a material's own rows was not looked at,"
        " and whether a formulation between them can be made, nobody checked. Any choice is"
        " combined with any material.",
        "- Labels are what the table has: where they are simulated, so are these designs' outcomes;"
        " where they were observed, who was given what may have depended on the patient, and a"
        " prediction is no promise of an effect.",
        "- Polymers that are not in the table were not looked at; a design with `known` no has"
        " strings or categories that training never saw, with `outside` yes a number beyond the"
        " train rows.",
        "- The model is one judge. Let another measurement decide before anything is made"
        f" for {'a ' + group.removesuffix('_id') if group else 'anybody'}.",
    ]
    if run.standin:
        lines.append("- The encoder was a stand-in without published weights.")
    if run.note:
        lines.append(f"- The run says of itself: {_cell(run.note)}")
    return "\n".join(["## What this cannot know", "", *lines])


def _cell(text: str, longest: int | None = None) -> str:
    """Return text as a cell of a table."""
    return visible(text, longest).replace("|", "\\|")
