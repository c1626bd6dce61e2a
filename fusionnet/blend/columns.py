"""What trees read of rows: numbers, categories one-hot, and strings by their features or one-hot.

What is kept of a column is decided on the train rows and saved with the trees.

Axes: B rows, S distinct strings, K features of a string, W columns that trees read of it, C columns
in all.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from pydantic import Field
from torch import Tensor

from embedcache.schema import Config
from fusionnet.rows.tensors import RowInputs

MOST_ONE_HOT = 255  # values of a column that have one of their own; rarer ones share none
Number = Annotated[int, Field(ge=0)]


class StringPart(Config):
    """What is read of one string column: some of its features, or which of some strings it is."""

    features: tuple[Number, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """W."""
        return len(self.features) + len(self.texts)

    def table(
        self, texts: Sequence[str], features: Float[Tensor, "S K"] | None
    ) -> Float32[Tensor, "S W"]:
        """Return what trees read of distinct strings."""
        number = {text: column for column, text in enumerate(self.texts)}
        one_hot = torch.zeros(len(texts), len(self.texts))
        for row, text in enumerate(texts):
            if text in number:
                one_hot[row, number[text]] = 1
        if features is None or not self.features:
            return one_hot
        return torch.cat([features.cpu().float()[:, list(self.features)], one_hot], dim=1)


class TreeColumns(Config):
    """The C columns that trees read, in this order."""

    num_numeric: Number
    categories: tuple[tuple[Number, ...], ...]  # codes with a column of their own
    strings: tuple[StringPart, ...]

    @property
    def num_columns(self) -> int:
        """C."""
        widths = [len(codes) for codes in self.categories]
        return self.num_numeric + sum(widths) + sum(part.width for part in self.strings)

    def selections(self, string: int, sets: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
        """Return columns in which one string column has fewer features: each set alone, and none.

        `sets` has the name of the set that each of its K features is of.
        """
        others = [self.num_numeric, *map(len, self.categories)]
        start = sum(others) + sum(part.width for part in self.strings[:string])
        own = [sets[feature] for feature in self.strings[string].features]
        set_of = np.full(self.num_columns, "", dtype=object)
        set_of[start : start + len(own)] = own
        names = sorted(set(own))
        kept = [(set_of == "") | (set_of == name) for name in names if len(names) > 1]
        kept += [set_of == ""]
        return [np.flatnonzero(each) for each in kept if 0 < each.sum() < self.num_columns]

    def matrix(
        self, inputs: RowInputs, tables: Sequence[Float[Tensor, "_ _"]]
    ) -> Float32[Tensor, "B C"]:
        """Return the columns of rows; `tables` are those of their distinct strings."""
        parts = [inputs.numeric.float()]
        for codes, category in zip(self.categories, inputs.category.unbind(1), strict=True):
            own = torch.tensor(codes, device=category.device)
            parts.append((category.unsqueeze(1) == own).float())
        columns = zip(tables, inputs.string_id.unbind(1), strict=True)
        parts += [table.to(index.device)[index] for table, index in columns]
        return torch.cat(parts, dim=1)


def tree_columns(
    inputs: RowInputs,
    texts: Sequence[Sequence[str]],
    features: Sequence[Float[Tensor, "_ _"] | None],
) -> TreeColumns:
    """Return what trees read, decided on these train rows.

    `texts` and `features` are those of the distinct strings, by string column. A column that has
    features is read by them, one without by which string it is.
    """
    strings = []
    for own, table, index in zip(texts, features, inputs.string_id.unbind(1), strict=True):
        codes = _frequent(index.cpu().numpy())
        if table is None:
            strings.append(StringPart(texts=tuple(own[code] for code in codes)))
            continue
        seen = torch.unique(index.cpu())
        strings.append(StringPart(features=distinct_orders(table.cpu()[seen].numpy())))
    categories = tuple(_frequent(code.cpu().numpy()) for code in inputs.category.unbind(1))
    return TreeColumns(
        num_numeric=inputs.numeric.shape[1], categories=categories, strings=tuple(strings)
    )


def _frequent(codes: Int[np.ndarray, " B"]) -> tuple[int, ...]:
    """Return the most frequent codes, in order."""
    values, counts = np.unique(codes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST_ONE_HOT]
    return tuple(int(value) for value in np.sort(values[most]))


def distinct_orders(table: Float[np.ndarray, "S K"]) -> tuple[int, ...]:
    """Return the columns that order the strings differently; to trees others are the same column.

    Columns with one value are left out: 21 strings have some 200 orders among 2,500 features.
    """
    seen: set[bytes] = set()
    kept = []
    for number, column in enumerate(table.T):
        rank = np.unique(column, return_inverse=True)[1].astype(np.int32)
        if rank.any() and (key := rank.tobytes()) not in seen:
            seen.add(key)
            kept.append(number)
    return tuple(kept)
