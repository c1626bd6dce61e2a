"""The strings of a run, explained one by one: shares of tokens and atoms, and a picture of each.

Axes: n rows, A atoms.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from embedcache.errors import EncoderError, TokenizerError
from embedcache.text import number
from fusionnet.config.tasks import Task
from fusionnet.evaluation.rows import RunRows
from fusionnet.explain.atoms import Structure, shares_of_atoms, structure_of
from fusionnet.explain.attribution import MOST_ROWS, TokenShares, attributed_tokens
from fusionnet.explain.drawing import Panel, drawn_structure
from fusionnet.explain.permutation import sample_of
from fusionnet.explain.saved import Attribution, ExplainedString
from fusionnet.trained.run import TrainedRun

NO_MODEL = "no language model reads these strings (encoder.mode: none): they enter by features"
NO_STRUCTURE = "no structure is drawn of a column of kind text; its tokens' shares are listed"
NO_ATOMS = "which of its characters is which of RDKit's atoms cannot be told, so it is not drawn"
MOST_WRITTEN_GAP = 1e9  # of a difference of nothing


class ExplainedStrings(NamedTuple):
    """What was found of strings."""

    strings: list[ExplainedString]
    pictures: dict[str, bytes]  # SVG by the file's name
    not_attributed: dict[str, str]  # why a column has no attributions


def explained_strings(
    run: TrainedRun,
    given: RunRows,
    chosen: Int[np.ndarray, " n"],
    tasks: list[Task],
    num_strings: int,
    progress: bool = True,
) -> ExplainedStrings:
    """Return what the tokens of strings do to the tasks, of each column the strings of most rows.

    Rows are the n chosen ones. A column whose encoder is not to be had has a reason instead.
    """
    found = ExplainedStrings([], {}, {})
    for column, spec in enumerate(run.layout.strings):
        if not spec.width:
            found.not_attributed[spec.column] = NO_MODEL
            continue
        ids = most_frequent(given.block.string_id[chosen, column], num_strings)
        bar = tqdm(ids, desc="strings", leave=False, disable=None if progress else True)
        try:
            for string_id in bar:
                rows = chosen[given.block.string_id[chosen, column] == string_id]
                name = f"atoms_{len(found.strings) + 1}.svg"
                text = given.texts[spec.name][string_id]
                sample = sample_of(run, given, evenly(rows, MOST_ROWS))
                shares = attributed_tokens(run, column, text, sample, tasks)
                one, picture = _explained(run, column, text, len(rows), shares, name)
                found.strings.append(one)
                if picture is not None:
                    found.pictures[name] = picture.encode()
        except (EncoderError, TokenizerError) as error:
            found.not_attributed[spec.column] = str(error)
    return found


def most_frequent(string_id: Int[np.ndarray, " n"], num_strings: int) -> list[int]:
    """Return the ids of the strings of most rows, the first in the table before others."""
    values, counts = np.unique(string_id, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:num_strings]
    return [int(each) for each in values[order]]


def evenly(rows: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """Return at most so many of the rows, evenly spread over them: over all groups, in a table."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _explained(
    run: TrainedRun, column: int, text: str, num_rows: int, shares: TokenShares, name: str
) -> tuple[ExplainedString, str | None]:
    """Return what is kept of one string, and its picture; None where there is none."""
    spec, kind = run.layout.strings[column], run.data.strings[column].kind
    structure = None if kind == "text" else structure_of(text)
    attributions = {
        readout.task.column: _attribution(shares, place, structure)
        for place, readout in enumerate(shares.readouts)
    }
    remark, picture = "", None
    if structure is not None:
        panels = [_panel(text, column, found) for column, found in attributions.items()]
        picture = drawn_structure(structure, panels)
    else:
        remark = NO_STRUCTURE if kind == "text" else NO_ATOMS
    kept = ExplainedString(
        column=spec.column,
        text=text,
        num_rows=num_rows,
        tokens=shares.spans.pieces,
        attributions=attributions,
        picture=None if picture is None else name,
        remark=remark,
    )
    return kept, picture


def _attribution(shares: TokenShares, place: int, structure: Structure | None) -> Attribution:
    """Return what one of the readouts' shares of tokens, and of atoms, are."""
    spans, readout, found = shares.spans, shares.readouts[place], shares.integrated
    of_tokens = found.shares[:, place].cpu().numpy()
    atoms, rest = None, {}
    if structure is not None:
        of_atoms = shares_of_atoms(structure, spans.spans, spans.pieces, of_tokens)
        atoms, rest = tuple(of_atoms.atoms.tolist()), of_atoms.rest
    return Attribution(
        of=readout.what,
        unit=readout.task.unit if readout.task.kind == "regression" else "",
        prediction=float(found.at_end[place]),
        masked=float(found.at_start[place]),
        gap=min(float(found.gap[place]), MOST_WRITTEN_GAP),
        num_points=found.num_points,
        is_complete=found.is_complete[place],
        tokens=tuple(of_tokens.tolist()),
        atoms=atoms,
        rest=rest,
    )


def _panel(text: str, column: str, found: Attribution) -> Panel:
    assert found.atoms is not None
    unit = f" {found.unit}" if found.unit else ""
    how_much = f"{found.of} {number(found.prediction)}{unit}, masked {number(found.masked)}{unit}"
    rest = sum(found.rest.values())
    remark = f"on atoms {sum(found.atoms):+.3g}{unit}, on none {rest:+.3g}{unit}"
    if found.rest:
        signs = sorted(found.rest, key=lambda sign: -abs(found.rest[sign]))
        remark += f": {'  '.join(signs)}"
    if not found.is_complete:
        remark = f"NOT TO BE TRUSTED: may miss {found.gap:.0%} of the difference; {remark}"
    return Panel((column, text, how_much), remark, np.array(found.atoms), unit)
