"""One spelling for what names something, whatever file it comes from.

A code that a CSV writes as 007 is 7 in the frame that pandas makes of the same file, and 7.0 once a
cell of its column is empty; True, TRUE and true are one truth. Categories, groups and facets are
compared in one spelling, so that the same table means the same in every format. `values.spelled` is
the same rule in Python.
"""

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from embedcache.values import DECIMAL, WHOLE


def spelled_rows(text: pl.Expr) -> pl.Expr:
    """Return a text column in the spelling that all formats share."""
    text = text.str.strip_chars()
    lower = text.str.to_lowercase()
    number = text.str.replace(f"^{WHOLE}$", "${1}${2}").str.replace(f"^{DECIMAL}$", "${1}${2}")
    is_truth = (lower == "true") | (lower == "false")
    return pl.when(is_truth).then(lower).otherwise(number)


def as_spelled(
    frame: pl.LazyFrame, schema: Mapping[str, Any], keys: Collection[str], texts: Collection[str]
) -> frozenset[str]:
    """Return which columns need no spelling: `keys` that name something, `texts` without blanks.

    Columns that `schema` does not have, or that are of another type, are passed over.
    """
    whole = {name for name in keys if name in schema and _is_whole(schema[name])}
    text = {name for name in {*keys, *texts} if schema.get(name) == pl.String}
    if not text:
        return frozenset(whole)
    odd = frame.select(
        (wanted(pl.col(name)) != pl.col(name)).any().alias(name)
        for name in sorted(text)
        for wanted in [spelled_rows if name in keys else _stripped]
    )
    found = odd.collect(engine="streaming").row(0, named=True)
    return frozenset(whole) | {name for name in text if not found[name]}


def _stripped(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars()


def _is_whole(dtype: Any) -> bool:
    return dtype.is_integer() or dtype == pl.Boolean
