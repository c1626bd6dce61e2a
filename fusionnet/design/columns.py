"""How the run reads its rows: what a context, the given part of a design, is to the network.

Axes: B rows, F numeric features, K category columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from embedcache.errors import DesignError
from embedcache.table.spelling import spelled_rows
from embedcache.text import nearest


@dataclass(frozen=True)
class Context:
    """What is given of one patient (B = 1), or of the patient of each design."""

    numeric: Float32[np.ndarray, "B F"]  # raw units; NaN is a missing value, 0 what is chosen
    category: Int64[np.ndarray, "B K"]  # as the run codes them; 0 what is chosen

    def take(self, rows: Int64[np.ndarray, " _"]) -> "Context":
        """Return the contexts at these positions."""
        return Context(self.numeric[rows], self.category[rows])


@dataclass(frozen=True)
class RunColumns:
    """The run's inputs, in their order."""

    strings: Mapping[str, str]  # name of each string column -> the table's column
    features: tuple[str, ...]  # all F, with those that only say that a value is missing
    vocabularies: Mapping[str, tuple[str, ...]]  # category column -> its values
    others: Mapping[str, str]  # category column -> the category of unknown values
    # numeric column that may have no value -> what that stands for; None: the run's own filling
    fillings: Mapping[str, float | None]
    indicators: Mapping[str, str]  # feature that is 1 where a column has no value -> that column

    def context(self, frame: pl.DataFrame, fixed: tuple[str, ...]) -> Context:
        """Return the fixed columns of a table, a row each.

        Raises DesignError for a column or a value that is missing or unknown.
        """
        absent = [name for name in fixed if name not in frame.columns]
        if absent:
            raise DesignError(
                f"the context lacks column '{absent[0]}'{nearest(absent[0], frame.columns)}; it"
                f" needs {', '.join(fixed)}"
            )
        numeric = np.zeros((frame.height, len(self.features)), dtype=np.float32)
        category = np.zeros((frame.height, len(self.vocabularies)), dtype=np.int64)
        for f, name in enumerate(self.features):
            source = self.indicators.get(name, name)
            if source in fixed:
                found = _numbers(frame, source)
                numeric[:, f] = self._filled(found, name) if source == name else np.isnan(found)
        for k, name in enumerate(self.vocabularies):
            if name in fixed:
                category[:, k] = self.codes(name, frame[name])
        return Context(numeric, category)

    def codes(self, name: str, values: pl.Series) -> Int64[np.ndarray, " B"]:
        """Return the codes of a category column's values, by their spelling."""
        text = pl.select(spelled_rows(pl.lit(values.cast(pl.String)))).to_series()
        known = {value: code for code, value in enumerate(self.vocabularies[name])}
        other = known.get(self.others.get(name, ""))
        found = [known.get(value, other) for value in text.to_list()]
        if None in found:
            value = text[found.index(None)]
            raise DesignError(
                f"column '{name}' has the value {value!r:.80}, which is none of the run's"
                f" {', '.join(known):.400}"
            )
        return np.array(found, dtype=np.int64)

    def _filled(self, found: Float64[np.ndarray, " B"], name: str) -> Float64[np.ndarray, " B"]:
        """Return numbers without missing ones, but for those that the run itself fills."""
        missing = np.isnan(found)
        if missing.any() and name not in self.fillings:
            raise DesignError(
                f"the context's column '{name}' has no value in row {missing.argmax()}, and the"
                " run's config does not say what a missing one stands for (if_null)"
            )
        if np.isinf(found).any():
            raise DesignError(
                f"the context's column '{name}' is infinite in row {np.isinf(found).argmax()}"
            )
        value = self.fillings.get(name)
        return found if value is None else np.where(missing, value, found)


def _numbers(frame: pl.DataFrame, name: str) -> Float64[np.ndarray, " B"]:
    """Return a column of numbers, NaN where there is none."""
    dtype = frame.schema[name]
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise DesignError(f"the context's column '{name}' has type {dtype}, expected numbers")
    return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
