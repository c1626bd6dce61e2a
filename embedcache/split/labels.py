"""Which labels of each target occur in each split, and in each fold.

A kind of labels is a class; of a regression target all labels are of one kind.

Axes: N rows, K kinds of labels of a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int8, Int16

from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn

ANY: tuple[str, ...] = ("",)
BINARY: tuple[str, ...] = ("negative", "positive")


def kinds_of(target: TargetColumn) -> tuple[str, ...]:
    """Return the kinds of labels that a target has, in words."""
    if target.kind == "binary":
        return BINARY
    return tuple(map(repr, target.classes or ())) if target.has_codes else ANY


@dataclass
class LabelTally:
    """Marks the kinds of labels that are there."""

    kinds: dict[str, tuple[str, ...]]  # by target
    num_folds: int
    in_split: dict[str, Bool[np.ndarray, "3 K"]] = field(init=False)
    in_fold: dict[str, Bool[np.ndarray, "folds K"]] = field(init=False)

    def __post_init__(self) -> None:
        """Start with none."""
        sizes = {name: len(kinds) for name, kinds in self.kinds.items()}
        self.in_split = {name: np.zeros((3, size), dtype=bool) for name, size in sizes.items()}
        self.in_fold = {
            name: np.zeros((self.num_folds, size), dtype=bool) for name, size in sizes.items()
        }

    def take_over(self, known: "LabelTally") -> None:
        """Mark what is marked in a tally of fewer targets, classes and no other folds."""
        for mine, theirs in ((self.in_split, known.in_split), (self.in_fold, known.in_fold)):
            for name, found in theirs.items():
                mine[name][: len(found), : found.shape[1]] = found

    def add(
        self,
        split: Int8[np.ndarray, " N"],
        fold: Int16[np.ndarray, " N"],
        targets: Float[np.ndarray, "N T"],
    ) -> None:
        """Mark the labels of rows, all of them in a split; targets are NaN where unobserved."""
        for t, (name, kinds) in enumerate(self.kinds.items()):
            there = ~np.isnan(targets[:, t])
            codes = np.zeros(int(there.sum()), dtype=np.int64)
            if kinds != ANY:
                codes = targets[there, t].astype(np.int64)
            self.in_split[name][split[there], codes] = True
            if self.num_folds:
                self.in_fold[name][fold[there], codes] = True

    def only_class(self, target: str) -> str | None:
        """Return the only class of a target of several that train rows have, if it is one."""
        kinds = self.kinds[target]
        found = np.flatnonzero(self.in_split[target][SPLITS.index("train")])
        is_one = kinds not in (ANY, BINARY) and len(found) == 1
        return kinds[int(found[0])] if is_one else None

    def missing_classes(self) -> dict[str, dict[str, list[str]]]:
        """Return by target of several classes and split those that no row of the split has.

        Splits without any label of the target are not named.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for name, kinds in self.kinds.items():
            if kinds in (ANY, BINARY):
                continue
            for split, there in zip(SPLITS, self.in_split[name], strict=True):
                if there.any() and not there.all():
                    missing = [kinds[k] for k in np.flatnonzero(~there)]
                    found.setdefault(name, {})[split] = missing
        return found

    def folds_without(self) -> dict[str, list[int]]:
        """Return the folds that have no label of some kind, by what they lack in words."""
        found = {}
        for name, kinds in self.kinds.items():
            for kind, there in zip(kinds, self.in_fold[name].T, strict=True):
                if there.any() and not there.all():
                    what = f"{kind} label of '{name}'".lstrip()
                    found[what] = np.flatnonzero(~there).tolist()
        return found


def tally_of_targets(targets: Sequence[TargetColumn], num_folds: int) -> LabelTally:
    """Return a tally of these targets with nothing marked."""
    return LabelTally({target.name: kinds_of(target) for target in targets}, num_folds)
