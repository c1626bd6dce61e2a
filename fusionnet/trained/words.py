"""A run in a few lines: what it predicts from what, and how well it did."""

from embedcache.text import count_of, number, visible
from fusionnet.metrics import main_metrics_of, title, unit_of
from fusionnet.trained.run import TrainedRun

_MOST = 8  # columns of a kind that are named


def described_run(run: TrainedRun) -> str:
    """Return what a run reads, predicts and reached, with units."""
    strings = [f"{spec.name} ({spec.num_strings:,} strings)" for spec in run.layout.strings]
    numbers = [_with_unit(column.column, column.unit) for column in run.layout.numeric]
    categories = [
        f"{column} ({len(values)} categories)" for column, values in run.layout.categories
    ]
    lines = [
        f"  predicts {_listed([_with_unit(task.column, task.unit) for task in run.tasks])}",
        f"  from     {_listed([*strings, *numbers, *categories])}",
        f"  epoch    {run.epoch} of {count_of(len(run.records), 'epoch')}, {run.moment}",
    ]
    for task in run.tasks:
        found = [
            f"{title(metric)} {number(run.record.get(f'{task.name}_{metric}'))}"
            f"{' ' + unit_of(task, metric) if unit_of(task, metric) else ''}"
            for metric in main_metrics_of(task)
        ]
        lines.append(f"  {'validation':10} {visible(task.column)}: {', '.join(found)}")
    lines.append(f"  folder   {run.folder}")
    return "\n".join(lines)


def _with_unit(column: str, unit: str) -> str:
    """Return a column with its unit, unless it says that itself: tg (K)."""
    says_it = not unit or unit in column
    return visible(column) if says_it else f"{visible(column)} ({visible(unit)})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
