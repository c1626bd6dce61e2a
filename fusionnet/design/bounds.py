"""Materials of a table, and between which values each of them has been.

Axes: M materials, V variables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from embedcache.errors import ConfigError, DesignError
from embedcache.text import count_of
from fusionnet.trained.run import TrainedRun


class Bounds(NamedTuple):
    """The materials, sorted by their values, and their bounds."""

    materials: pl.DataFrame  # M rows, a column per part of a material
    low: Float64[np.ndarray, "M V"]
    high: Float64[np.ndarray, "M V"]
    logarithmic: tuple[bool, ...]
    whole: tuple[bool, ...]
    num_left_out: int


def bounds_of(
    run: TrainedRun, rows: pl.LazyFrame, parts: Sequence[str], variables: Sequence[str]
) -> Bounds:
    """Return each material's range of each variable in the table, narrowed by `design.bounds`.

    `parts` are the columns of `rows` that tell materials apart. Raises ConfigError for bounds of
    what is no variable, or beyond all rows; DesignError where a material has no value of a
    variable, or none is left.
    """
    columns = [pl.col(f"numeric:{name}") for name in variables]
    wanted = [
        pl.len(),
        *(column.min().alias(f"low:{v}") for v, column in enumerate(columns)),
        *(column.max().alias(f"high:{v}") for v, column in enumerate(columns)),
        *((column == column.round()).all().alias(f"whole:{v}") for v, column in enumerate(columns)),
    ]
    by_material = rows.group_by(parts).agg(*wanted).sort(parts) if parts else rows.select(wanted)
    found = by_material.filter(pl.col("len") > 0).collect(engine="streaming")
    low, high, whole = (
        _matrix(found, [f"{kind}:{v}" for v in range(len(variables))])
        for kind in ("low", "high", "whole")
    )
    _refuse_empty(found.select(parts), low, variables)
    low, high = _narrowed(run, low, high, variables)
    is_whole = whole.all(0)
    low[:, is_whole], high[:, is_whole] = np.ceil(low[:, is_whole]), np.floor(high[:, is_whole])
    left = (low <= high).all(1)
    if not left.any():
        raise DesignError(
            f"no material of {count_of(len(low), 'material')} has rows between design.bounds of"
            f" {run.folder / run.name}_config.yaml; make them wider"
        )
    low, high = low[left], high[left]
    transform = {column.column: column.transform for column in run.data.numeric}
    return Bounds(
        materials=found.filter(pl.Series(left)).select(parts),
        low=low,
        high=high,
        logarithmic=tuple(
            transform[name] in ("log10", "log1p") and bool((low[:, v] > 0).all())
            for v, name in enumerate(variables)
        ),
        whole=tuple(is_whole.astype(bool).tolist()),
        num_left_out=int((~left).sum()),
    )


def _matrix(frame: pl.DataFrame, names: Sequence[str]) -> Float64[np.ndarray, "M V"]:
    """Return columns side by side, NaN where there is no value; there may be none."""
    columns = [frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in names]
    return np.array(columns, dtype=np.float64).reshape(len(names), frame.height).T.copy()


def _refuse_empty(
    materials: pl.DataFrame, low: Float64[np.ndarray, "M V"], variables: Sequence[str]
) -> None:
    """Raise DesignError where a material has no value of a variable, hence no bounds."""
    if not len(low):
        raise DesignError("the table has no rows, so there is nothing to choose from")
    for m, v in np.argwhere(np.isnan(low))[:1].tolist():
        which = ", ".join(map(str, materials.row(m))) if materials.width else "the only material"
        raise DesignError(
            f"'{variables[v]}' has no value in any row of {which:.200}, so nothing bounds it; take"
            " these rows away, or leave it out of design.variables"
        )


def _narrowed(
    run: TrainedRun,
    low: Float64[np.ndarray, "M V"],
    high: Float64[np.ndarray, "M V"],
    variables: Sequence[str],
) -> tuple[Float64[np.ndarray, "M V"], Float64[np.ndarray, "M V"]]:
    """Return bounds inside of those of the config; lower ones are above where nothing is left."""
    file = f"{run.folder / run.name}_config.yaml"
    low, high = low.copy(), high.copy()
    for name, (least, most) in run.design.bounds.items():
        if name not in variables:
            raise ConfigError(
                f"{file}: design.bounds are of '{name}', which is not among what may be chosen:"
                f" {', '.join(variables) or 'nothing is'}"
            )
        v = list(variables).index(name)
        # the table's values are float32
        lowest, highest = low[:, v].min(), high[:, v].max()
        if np.float32(least) < np.float32(lowest) or np.float32(most) > np.float32(highest):
            raise ConfigError(
                f"{file}: design.bounds of '{name}' are {least:g} to {most:g}, the table's values"
                f" {lowest:.6g} to {highest:.6g}; bounds narrow these: beyond, a model guesses"
            )
        low[:, v], high[:, v] = np.maximum(low[:, v], least), np.minimum(high[:, v], most)
    return low, high
