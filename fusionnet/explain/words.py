"""An explanation in words: what its numbers are, and what they do not mean."""

import math
from pathlib import Path
from typing import NamedTuple

from embedcache.text import NONE, count_of, number, text_table, visible
from fusionnet.explain.columnsets import SINGLE
from fusionnet.explain.figures import ranked
from fusionnet.explain.saved import (
    Attribution,
    ErrorOfTarget,
    Explained,
    ExplainedString,
    Increase,
)

MOST_TOKENS = 12  # of a string that is not drawn

NOT_CAUSES = (
    "It is of this model on these rows, and no causal effect: what matters to the outcome may not"
    " matter to the model, and what matters to the model need not cause anything. Columns that say"
    " the same share importance, so that each alone may have little; groups tell what their columns"
    " have together. A shuffled row may be one that never occurs."
)
NOT_CHEMISTRY = (
    "A share is relative to the same string with masked tokens, and of this one string: another"
    " baseline gives other shares, and in another string the atom has another. It is of this model"
    " and no effect of the atom in an experiment. The encoder mixes tokens, so a share is of all"
    " that a token did at its place. What the string's features (RDKit's, your own) do is not in"
    " it."
)


def importance_means(explained: Explained) -> str:
    """Return what the numbers of importance are."""
    rows = count_of(explained.num_rows, f"{explained.split} row")
    sampled = f"{explained.num_sampled:,} of {rows}"
    return (
        "How much larger the error is where a column's values are shuffled across rows: the mean of"
        f" {count_of(explained.repeats, 'shuffle')} of"
        f" {rows if explained.num_sampled == explained.num_rows else sampled}, its standard"
        f" deviation over shuffles, and the standard error over {explained.counted_by}."
    )


class Growth(NamedTuple):
    """A line of a table of importances: the growth of each shown error, and its two spreads."""

    name: str
    columns: tuple[str, ...]
    cells: list[str]  # three for each shown target


def growths(explained: Explained, single: bool) -> list[Growth]:
    """Return the lines of single columns, or of groups, the first target's largest first."""
    every = ranked(explained.importances, explained.shown[0])
    every += [each for each in explained.importances if each not in every]
    lines = []
    for each in (one for one in every if (one.kind in SINGLE) == single):
        cells = []
        for column in explained.shown:
            cells += _cells(each.increases.get(column), explained.errors[column].value)
        lines.append(Growth(each.name, each.columns, cells))
    return lines


def _cells(increase: Increase | None, error: float | None) -> list[str]:
    """Return a growth and its spreads, to four digits of the error that grows."""
    if increase is None:
        return [NONE, "", ""]
    decimals = min(8, max(0, 3 - math.floor(math.log10(error)))) if error else 4
    spreads = (increase.spread, increase.standard_error)
    return [
        f"{increase.mean:,.{decimals}f}",
        *("" if each is None else f"± {each:,.{decimals}f}" for each in spreads),
    ]


def error_in_words(column: str, error: ErrorOfTarget) -> str:
    """Return what the error of a target is: delta_EF_pct MAE [%] 0.906."""
    unit = f" [{error.unit}]" if error.unit else ""
    return f"{column} {error.name}{unit} {number(error.value)}"


def strings_in_words(explained: Explained) -> list[str]:
    """Return a line for each string and target: what was attributed, and how well it adds up."""
    lines = []
    for each in explained.strings:
        for column, found in each.attributions.items():
            lines.append(
                f"{each.column} {visible(each.text, 60)}: {attribution_in_words(column, found)}"
            )
        if each.remark:
            lines.append(f"{each.column} {visible(each.text, 60)}: {each.remark}")
    return lines


def attribution_in_words(column: str, found: Attribution) -> str:
    """Return what a string does to a target, and how well its tokens' shares add up."""
    unit = f" {found.unit}" if found.unit else ""
    text = (
        f"{column}, {found.of}: {number(found.prediction)}{unit}, masked"
        f" {number(found.masked)}{unit}"
    )
    if found.atoms is not None:
        text += f"; on atoms {sum(found.atoms):+.3g}, on none {sum(found.rest.values()):+.3g}"
    if found.is_complete:
        return f"{text}; shares miss at most {found.gap:.1%} of the difference"
    return f"{text}; NOT TO BE TRUSTED: shares may miss {found.gap:.0%} of the difference"


def tokens_in_words(string: ExplainedString, found: Attribution) -> str:
    """Return the tokens with the largest shares."""
    pairs = sorted(zip(string.tokens, found.tokens, strict=True), key=lambda each: -abs(each[1]))
    named = ", ".join(f"{token} {number(share)}" for token, share in pairs[:MOST_TOKENS])
    return f"Largest tokens: {named}"


def summary(explained: Explained, pictures: Path) -> str:
    """Return an explanation as text for a terminal."""
    heads = [error_in_words(column, explained.errors[column]) for column in explained.shown]
    lines = ["error as it is: " + "; ".join(heads), ""]
    for what, single in (("shuffled", True), ("shuffled together", False)):
        head = [what]
        for column in explained.shown:
            head += [f"{column} grows by", "shuffles", explained.counted_by]
        lines += [
            *text_table([head, *((each.name, *each.cells) for each in growths(explained, single))]),
            "",
        ]
    lines += [importance_means(explained), NOT_CAUSES, ""]
    lines += [f"{column}: no atoms: {why}" for column, why in explained.not_attributed.items()]
    if explained.strings:
        lines += [*strings_in_words(explained), NOT_CHEMISTRY, f"drawn in {pictures}"]
    return "\n".join(visible(part) for line in lines for part in line.split("\n"))
