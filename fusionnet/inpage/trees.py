"""Boosted trees for the page: eight bytes a node, and the same leaf for every row.

Rows are fp32, so a threshold may be: rounded down it parts them as before. A node's left child
comes next to it, as trees are written; of the right one the distance is kept. A leaf has its value
where others have their threshold.

Axes: B rows, C columns, N nodes, U distinct strings, W columns that trees read of a string.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fusionnet.blend.blend import Blend
from fusionnet.blend.forest import Forest
from fusionnet.inpage.arrays import ArrayWriter


def blend_arrays(
    blend: Blend, of_strings: Sequence[Float[Tensor, "_U _W"]], arrays: ArrayWriter
) -> dict[str, Any]:
    """Return the trees of all targets and the columns that they read.

    `of_strings` are the tables of the strings that are to be known, by string column.
    """
    return {
        "categories": [list(codes) for codes in blend.columns.categories],
        "strings": [arrays.numbers(table) for table in of_strings],
        "tasks": {
            name: {"share": task.share, "forest": _forest(task.forest, arrays)}
            for name, task in blend.tasks.items()
        },
    }


def _forest(forest: Forest, arrays: ArrayWriter) -> dict[str, Any]:
    given: Mapping[str, np.ndarray] = {
        name: each.cpu().numpy() for name, each in forest.tensors().items()
    }
    own, column = np.arange(len(given["column"])), given["column"]
    is_leaf = column < 0
    assert (given["left"] == own + 1)[~is_leaf].all(), "parents come before their left children"
    values = np.where(is_leaf, given["value"], _below(given["threshold"]))
    # a column, and by its last bit whether missing values go left
    code = np.where(is_leaf, -1, 2 * column + given["missing_left"])
    right = np.where(is_leaf, 0, given["right"] - own)
    return {
        "outputs": forest.num_outputs,
        "code": arrays.exact(code, "i16" if 2 * column.max(initial=0) + 1 < 2**15 else "i32"),
        "right": arrays.exact(right, "u16" if right.max(initial=0) < 2**16 else "i32"),
        "value": arrays.exact(values, "f32"),
        "root": arrays.exact(given["root"], "i32"),
    }


def _below(threshold: np.ndarray) -> np.ndarray:
    """Return the greatest fp32 numbers that are not above these."""
    near = threshold.astype(np.float32)
    lower = np.nextafter(near, np.float32(-np.inf))
    found: np.ndarray = np.where(near > threshold, lower, near)
    return found
