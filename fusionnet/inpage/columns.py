"""What a page needs to make a row: features with their ranges, strings, categories, rows to start
from.

Texts are shown by the script as text, never as markup; here they lose control characters.

Axes: F numeric features, C string columns, G category columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from embedcache.scaling import scored
from embedcache.text import visible
from fusionnet.trained.run import TrainedRun

LONGEST_TEXT = 200  # of a string or category as a page shows it


class Start(NamedTuple):
    """A row of the table that the sliders may start from."""

    name: str
    numeric: Sequence[float | None]  # F raw values; None is missing
    strings: Sequence[str]  # C texts
    categories: Sequence[int]  # G codes


def features_of(run: TrainedRun) -> list[dict[str, Any]]:
    """Return the numeric features: what standardises each, and between what it lies."""
    scaling = run.scaling
    indicator = {
        number + 1 for number, column in enumerate(run.layout.numeric) if column.fill == "indicator"
    }
    return [
        {
            "column": visible(column.column),
            "unit": visible(column.unit),
            "group": visible(column.feature_group),
            "low": scaling.low[place],
            "high": scaling.high[place],
            "least": column.low,
            "most": column.high,
            "middle": scaling.knots[place][len(scaling.knots[place]) // 2],
            "whole": all(value == round(value) for value in scaling.knots[place]),
            "fill": scaling.fill[place],
            "is_indicator": place in indicator,
            "transform": column.transform,
            "quantile": _quantile(scaling.knots[place]) if column.transform == "quantile" else None,
            "mean": scaling.mean[place],
            "std": scaling.std[place],
        }
        for place, column in enumerate(run.layout.numeric)
    ]


def _quantile(knots: Sequence[float]) -> dict[str, list[float]]:
    values, scores = scored(knots, torch.zeros(0, 0, dtype=torch.float64))
    return {"values": values.tolist(), "scores": scores.tolist()}


def strings_of(
    run: TrainedRun,
    texts: Mapping[str, Sequence[str]],
    names: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
    """Return the string columns; `names` are what the table calls some columns' strings."""
    return [
        {
            "column": visible(spec.column),
            "options": [
                visible(_named(text, names.get(spec.name, {})), LONGEST_TEXT)
                for text in texts[spec.name]
            ],
            "num_strings": spec.num_strings,
            "untrained": list(run.scaling.untrained_strings.get(spec.name, ())),
        }
        for spec in run.layout.strings
    ]


def _named(text: str, names: Mapping[str, str]) -> str:
    return f"{names[text]}: {text}" if text in names else text


def categories_of(run: TrainedRun) -> list[dict[str, Any]]:
    """Return the category columns; `other` stands for what training never saw."""
    others = {column.column: column.other for column in run.data.categories}
    return [
        {
            "column": visible(column),
            "options": [visible(value, LONGEST_TEXT) for value in values],
            "other": values.index(others[column]) if others.get(column) in values else None,
            "untrained": list(run.scaling.untrained_categories.get(column, ())),
        }
        for column, values in run.layout.categories
    ]


def starts_of(
    run: TrainedRun, texts: Mapping[str, Sequence[str]], starts: Sequence[Start]
) -> list[dict[str, Any]]:
    """Return the rows to start from, those whose strings are on the page."""
    place = {
        spec.name: {text: row for row, text in enumerate(texts[spec.name])}
        for spec in run.layout.strings
    }
    columns = [place[spec.name] for spec in run.layout.strings]
    return [
        {
            "name": visible(start.name, LONGEST_TEXT),
            "numeric": list(start.numeric),
            "strings": [own[text] for own, text in zip(columns, start.strings, strict=True)],
            "categories": list(start.categories),
        }
        for start in starts
        if all(text in own for own, text in zip(columns, start.strings, strict=True))
    ]
