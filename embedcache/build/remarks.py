"""What a reader of the scores should know of the rows, gathered while they stream by.

Nothing of it makes a cache wrong, so it is said and not refused: test rows that are in train as
well, features that say nothing or whose values a few others flatten, categories that no train row
has, and values that look like missing ones.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from jaxtyping import Shaped, UInt64

from embedcache.build.statistics import ScalingFit
from embedcache.cache.layout import RowBlock
from embedcache.config.split import SPLITS
from embedcache.config.table import DataConfig
from embedcache.table.checks import MISSING
from embedcache.table.table import Table

MOST_HASHED = 1 << 24  # rows; of larger tables only a part is compared, chosen by the hash itself
_SEED = 0


class RowRemarks:
    """Counts equal rows across splits and train rows by category, block by block."""

    def __init__(self, data: DataConfig, table: Table, num_rows: int) -> None:
        """Start with no rows of the `num_rows` to come; `table` has the names of categories."""
        self._missing = list(_missing_in_words(data, table))
        self._categories = table.categories
        self._others = {column.column: column.other for column in data.categories}
        self._train_rows = [np.zeros(len(values), dtype=np.int64) for _, values in table.categories]
        self._one_in = -(-num_rows // MOST_HASHED)
        self._hashes: dict[str, list[UInt64[np.ndarray, "_ 2"]]] = defaultdict(list)

    def add(self, block: RowBlock) -> None:
        """Count one block of rows."""
        is_train = block.split == SPLITS.index("train")
        for k, counts in enumerate(self._train_rows):
            counts += np.bincount(block.category[is_train, k], minlength=len(counts))
        hashes = _hashes(block)
        chosen = hashes[:, 1] % np.uint64(self._one_in) == 0  # by inputs, of which copies agree
        for code, split in enumerate(SPLITS):
            self._hashes[split].append(hashes[chosen & (block.split == code)])

    def lines(self, fit: ScalingFit) -> list[str]:
        """Return the remarks, those on the features' statistics with them."""
        return [*self._duplicates(), *fit.remarks(), *self._missing, *self._untrained()]

    def _duplicates(self) -> Iterator[str]:
        """Yield lines on the validation and test rows that are in train, or whose inputs are."""
        train = np.concatenate(self._hashes["train"])
        equal: list[str] = []
        repeated: list[str] = []
        for split in SPLITS[1:]:
            rows = np.concatenate(self._hashes[split])
            is_equal, has_inputs = (np.isin(rows[:, k], train[:, k]) for k in (0, 1))
            for found, those in ((equal, is_equal), (repeated, has_inputs & ~is_equal)):
                count = int(those.sum()) * self._one_in
                if count:
                    found.append(f"{count:,} of {len(rows) * self._one_in:,} {split} rows")
        about = "" if self._one_in == 1 else f", estimated from one row in {self._one_in}"
        if equal:
            yield (
                f"{' and '.join(equal)} have an equal row in train (strings, features and"
                f" labels){about}: their scores are those of memory; take copies out of the table,"
                " or keep them together by data.group"
            )
        if repeated:
            yield (
                f"{' and '.join(repeated)} have the strings and features of a train row, with"
                f" another label{about}: measured again; their scores say little of new inputs,"
                " unless data.group keeps them together"
            )

    def _untrained(self) -> Iterator[str]:
        """Yield a line on the categories of each column that no train row has."""
        for (column, values), counts in zip(self._categories, self._train_rows, strict=True):
            unseen = [value for value, rows in zip(values, counts, strict=True) if not rows]
            if unseen:
                shown = ", ".join(map(repr, unseen[:3])) + (", ..." if len(unseen) > 3 else "")
                yield (
                    f"category column '{column}': no train row has {shown:.200}"
                    f"{_of_other(self._others.get(column), unseen)}; the network learns nothing of"
                    f" {'them' if len(unseen) > 1 else 'it'}"
                )


def _missing_in_words(data: DataConfig, table: Table) -> Iterator[str]:
    """Yield a line on each column with a value that says that there is none, and is not asked for.

    `str` makes "nan" of what pandas has for a missing value, and SQL's tools write "NULL".
    """
    asked = {column.column for column in data.categories if column.values is not None}
    named = [(f"category column '{name}'", values) for name, values in table.categories]
    named = [each for each, c in zip(named, table.categories, strict=True) if c.column not in asked]
    named += [
        (f"string column '{column.column}'", table.strings[column.name].text)
        for column in data.strings
        if column.kind == "text"
    ]
    named += [
        (f"target column '{target.column}'", target.classes)
        for target in table.targets
        if target.classes is not None
    ]
    wanted = {c.if_null for c in data.categories} | {c.if_null for c in data.strings}
    wanted |= {column.other for column in data.categories}
    for what, values in named:
        found = [value for value in values if value.lower() in MISSING and value not in wanted]
        if found:
            yield (
                f"{what} has the value {', '.join(map(repr, found))}: if that stands for a missing"
                " one, list it in data.null_values"
            )


def _of_other(other: str | None, unseen: list[str]) -> str:
    """Return what it means that the category of unknown values is not trained."""
    return ", the category of unknown values" if other is not None and other in unseen else ""


def _hashes(block: RowBlock) -> UInt64[np.ndarray, "N 2"]:
    """Return hashes of each row's strings, features and labels, and of the first two alone.

    A missing value equals another.
    """
    inputs = {"s": block.string_id, "n": block.numeric, "c": block.category}
    return np.stack([_hashed({**inputs, "t": block.targets}), _hashed(inputs)], axis=1)


def _hashed(parts: Mapping[str, Shaped[np.ndarray, "N _"]]) -> UInt64[np.ndarray, " N"]:
    columns = {
        f"{name}{k}": values[:, k] for name, values in parts.items() for k in range(values.shape[1])
    }
    return pl.DataFrame(columns).hash_rows(_SEED).to_numpy()
