"""One spelling for what names something, whatever file it comes from.

A code that a CSV writes as 007 is 7 in the frame that pandas makes of the same file, and 7.0 once a
cell of its column is empty; True, TRUE and true are one truth. Categories, groups and facets are
compared in one spelling, so that the same table means the same in every format. `values.spelled` is
the same rule in Python.
"""

import polars as pl

from embedcache.values import DECIMAL, WHOLE


def spelled_rows(text: pl.Expr) -> pl.Expr:
    """Return a text column in the spelling that all formats share."""
    text = text.str.strip_chars()
    lower = text.str.to_lowercase()
    number = text.str.replace(f"^{WHOLE}$", "${1}${2}").str.replace(f"^{DECIMAL}$", "${1}${2}")
    is_truth = (lower == "true") | (lower == "false")
    return pl.when(is_truth).then(lower).otherwise(number)
