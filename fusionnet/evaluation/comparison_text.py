"""Two runs beside each other as plain text, for the terminal and the report."""

from embedcache.text import number, text_table, visible
from fusionnet.evaluation.comparison import Comparison, Difference
from fusionnet.metrics import title

HEADS = ("target", "metric", "this run", "other", "difference", "low", "high", "in favour", "")


def comparison_summary(found: Comparison, main: dict[str, tuple[str, ...]]) -> str:
    """Return every difference, and what the main metrics say of each target in a sentence."""
    lines = ["", f"against {found.against}: {rows_in_words(found)}"]
    if found.remark:
        lines.append(f"NOTE  {found.remark}.")
    lines += [f"not compared: {column}, {why}" for column, why in found.left_out.items()]
    lines += text_table(comparison_rows(found), num_left=2)
    lines += [what_differences_mean(found), *sentences(found, main)]
    return "\n".join(visible(line) for line in lines)


def comparison_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Return one row of cells per metric of each target, below their head."""
    return [
        HEADS,
        *(
            (
                column,
                metric,
                *map(number, (each.own, each.other, each.difference)),
                *(number(value, none="") for value in (each.low, each.high)),
                "" if each.in_favour is None else f"{each.in_favour:.1%}",
                each.verdict,
            )
            for column, metrics in found.differences.items()
            for metric, each in metrics.items()
        ),
    ]


def rows_in_words(found: Comparison) -> str:
    """Return what the runs are compared on."""
    of = "" if found.unit == "row" else f" of {found.num_units:,} {found.unit}"
    return (
        f"{found.num_rows:,} rows{of}; its checkpoint '{found.against_checkpoint}' (epoch"
        f" {found.against_epoch})"
    )


def what_differences_mean(found: Comparison) -> str:
    """Return what the intervals of differences are, and what they do not mean, in words."""
    if found.reason:
        return f"low, high: none, {found.reason}; no difference can be told from chance."
    unit = "rows" if found.unit == "row" else f"values of {found.unit}"
    return (
        f"low, high: {found.level:.0%} intervals of the difference, this run less the other, from"
        f" drawing the {found.num_units:,} {unit} anew {found.replicates:,} times for both"
        " (bootstrap). In favour: the share of these draws in which this run is better. Of twenty"
        " metrics without a difference one is called better or worse by chance, and another seed"
        " of either training may differ by more."
    )


def sentences(found: Comparison, main: dict[str, tuple[str, ...]]) -> list[str]:
    """Return a sentence for each main metric of each target; `main` names them by column."""
    if found.reason:
        return []
    return [
        f"{column} {title(metric)}: {_in_words(each)}"
        for column, metrics in found.differences.items()
        for metric in main[column]
        if (each := metrics.get(metric)) is not None and each.difference is not None
    ]


def _in_words(found: Difference) -> str:
    """Return what a difference says of this run."""
    if found.low is None or found.high is None:
        return "the runs cannot be told apart, as too few units have it"
    low, high = number(found.low), number(found.high)
    if found.verdict == "undecided":
        return f"the runs cannot be told apart (difference {low} to {high})"
    return f"this run is {found.verdict} than the other (difference {low} to {high})"
