"""What each split holds: rows, groups, strings and class rates, counted as rows stream by.

Axes: N rows, Q strata (one where the table has none), G groups, T targets, S distinct strings of a
column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Int16, Int64

from embedcache.config.split import NO_SPLIT, SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.errors import SplitError
from embedcache.split.labels import ANY, BINARY, LabelTally, tally_of_targets
from embedcache.split.report import SplitCounts, SplitLine, split_table
from embedcache.text import NUM_EXAMPLES

NO_FOLD = -1  # of rows whose split the table says itself


@dataclass
class SplitTally:
    """Counts the rows, groups, distinct strings, labels and positives of each split."""

    strata: tuple[str, ...]  # () or one value: no break-down
    num_groups: int  # 0: the table has no groups
    num_strings: dict[str, int]  # by string column
    targets: tuple[str, ...]
    binary: tuple[bool, ...]
    num_folds: int = 0  # 0: the table itself says its splits
    labels: LabelTally | None = None  # None: those of targets without named classes
    rows: Int64[np.ndarray, "3 Q"] = field(init=False)
    labelled: Int64[np.ndarray, "3 Q T"] = field(init=False)
    positive: Int64[np.ndarray, "3 Q T"] = field(init=False)
    num_unused: int = field(init=False, default=0)  # rows in no split
    fold_rows: Int64[np.ndarray, "folds Q"] = field(init=False)
    group_fold: Int16[np.ndarray, " G"] = field(init=False)
    string_fold: dict[str, Int16[np.ndarray, " S"]] = field(init=False)  # of several the last
    group_stratum: Int64[np.ndarray, " G"] = field(init=False)
    group_in: Bool[np.ndarray, "3 G"] = field(init=False)
    string_in: dict[str, Bool[np.ndarray, "3 S"]] = field(init=False)

    def __post_init__(self) -> None:
        """Start all counts at zero."""
        num_strata, num_targets = max(1, len(self.strata)), len(self.targets)
        if self.labels is None:
            flags = zip(self.targets, self.binary, strict=True)
            kinds = {name: BINARY if binary else ANY for name, binary in flags}
            self.labels = LabelTally(kinds, self.num_folds)
        self.rows = np.zeros((3, num_strata), dtype=np.int64)
        self.labelled = np.zeros((3, num_strata, num_targets), dtype=np.int64)
        self.positive = np.zeros((3, num_strata, num_targets), dtype=np.int64)
        self.fold_rows = np.zeros((self.num_folds, num_strata), dtype=np.int64)
        self.group_fold = np.full(self.num_groups, NO_FOLD, dtype=np.int16)
        self.string_fold = {
            name: np.full(count, NO_FOLD, dtype=np.int16)
            for name, count in self.num_strings.items()
        }
        self.group_stratum = np.zeros(self.num_groups, dtype=np.int64)
        self.group_in = np.zeros((3, self.num_groups), dtype=bool)
        self.string_in = {
            name: np.zeros((3, count), dtype=bool) for name, count in self.num_strings.items()
        }

    def grown(
        self,
        strata: tuple[str, ...],
        num_groups: int,
        num_strings: dict[str, int],
        targets: Sequence[TargetColumn],
        num_folds: int,
    ) -> "SplitTally":
        """Return the same counts with room for what one more file brings.

        Its strata, groups and strings follow the known ones; targets may come in between.
        """
        names = tuple(target.name for target in targets)
        binary = tuple(target.kind == "binary" for target in targets)
        labels = tally_of_targets(targets, num_folds)
        grown = SplitTally(strata, num_groups, num_strings, names, binary, num_folds, labels)
        labels.take_over(self._labels)
        known = [names.index(name) for name in self.targets]
        grown.rows[:, : self.rows.shape[1]] = self.rows
        grown.labelled[:, : self.rows.shape[1], known] = self.labelled
        grown.positive[:, : self.rows.shape[1], known] = self.positive
        grown.num_unused = self.num_unused
        grown.fold_rows[: self.num_folds, : self.rows.shape[1]] = self.fold_rows
        grown.group_fold[: self.num_groups] = self.group_fold
        for name, fold in self.string_fold.items():
            grown.string_fold[name][: len(fold)] = fold
        grown.group_stratum[: self.num_groups] = self.group_stratum
        grown.group_in[:, : self.num_groups] = self.group_in
        for name, seen in self.string_in.items():
            grown.string_in[name][:, : seen.shape[1]] = seen
        return grown

    def add(
        self,
        split: Int8[np.ndarray, " N"],
        fold: Int16[np.ndarray, " N"],
        stratum: Int[np.ndarray, " N"],
        group: Int[np.ndarray, " N"],
        strings: dict[str, Int[np.ndarray, " N"]],
        targets: Float[np.ndarray, "N T"],
    ) -> None:
        """Count one block of rows.

        `targets` is NaN where unobserved, `stratum` all zero and `group` ignored where the table
        has none, `fold` NO_FOLD where the table says its splits itself.
        """
        if self.num_groups:
            self.group_stratum[group] = stratum
        if self.num_folds:
            np.add.at(self.fold_rows, (fold, stratum), 1)
            if self.num_groups:
                self.group_fold[group] = fold
            for name, string_id in strings.items():
                self.string_fold[name][string_id] = fold
        used = split != NO_SPLIT
        if not used.all():
            self.num_unused += int((~used).sum())
            split, stratum, group, targets = split[used], stratum[used], group[used], targets[used]
            fold = fold[used]
            strings = {name: string_id[used] for name, string_id in strings.items()}
        self._labels.add(split, fold, targets)
        self._count_used(split, stratum, group, strings, targets)

    def _count_used(
        self,
        split: Int8[np.ndarray, " N"],
        stratum: Int[np.ndarray, " N"],
        group: Int[np.ndarray, " N"],
        strings: dict[str, Int[np.ndarray, " N"]],
        targets: Float[np.ndarray, "N T"],
    ) -> None:
        """Count rows that are in a split."""
        shape = self.rows.shape
        cell = split.astype(np.int64) * shape[1] + stratum  # [N]

        def per_cell(cells: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, "3 Q"]:
            """Return how many of M rows are in each split and stratum."""
            return np.bincount(cells, minlength=self.rows.size).reshape(shape)

        self.rows += per_cell(cell)
        for t in range(len(self.targets)):
            self.labelled[:, :, t] += per_cell(cell[~np.isnan(targets[:, t])])
            self.positive[:, :, t] += per_cell(cell[targets[:, t] == 1])
        if self.num_groups:
            self.group_in[split, group] = True
        for name, string_id in strings.items():
            self.string_in[name][split, string_id] = True

    def counts(self) -> SplitCounts:
        """Return the counts by split and stratum, then by split, as a cache keeps them."""
        splits = range(len(SPLITS))
        strata = range(len(self.strata)) if len(self.strata) > 1 else ()
        lines = [self._line(split, stratum) for split in splits for stratum in strata]
        lines += [self._line(split, None) for split in splits]
        unseen = {
            name: {SPLITS[split]: int((seen[split] & ~seen[0]).sum()) for split in splits[1:]}
            for name, seen in self.string_in.items()
        }
        return SplitCounts(
            lines=tuple(lines),
            num_groups=self.num_groups,
            straddling_groups=self._num_straddling,
            unseen_strings=unseen,
            num_unused=self.num_unused,
            missing_classes=self._labels.missing_classes(),
            folds_without=self._labels.folds_without(),
        )

    @property
    def _labels(self) -> LabelTally:
        assert self.labels is not None, "set at the start"
        return self.labels

    @property
    def _num_straddling(self) -> int:
        """The number of groups with rows in more than one split."""
        return int((self.group_in.sum(0) > 1).sum())

    def _line(self, split: int, stratum: int | None) -> SplitLine:
        """Return what a split holds in one stratum, or in all of them."""
        strata = slice(None) if stratum is None else [stratum]
        labelled = self.labelled[split, strata].sum(0)  # [T]
        positive = self.positive[split, strata].sum(0)  # [T]
        groups = self.group_in[split]
        if stratum is not None:
            groups = groups[self.group_stratum == stratum]
        strings = self.string_in if stratum is None else {}
        return SplitLine(
            split=SPLITS[split],
            stratum=None if stratum is None else self.strata[stratum],
            groups=int(groups.sum()) if self.num_groups else None,
            rows=int(self.rows[split, strata].sum()),
            labelled=dict(zip(self.targets, labelled.tolist(), strict=True)),
            positive={
                target: int(positive[t]) for t, target in enumerate(self.targets) if self.binary[t]
            },
            strings={name: int(seen[split].sum()) for name, seen in strings.items()},
        )

    def check(self, strategy: str, left_out: str | None, groups: Sequence[str] = ()) -> None:
        """Raise one SplitError with everything that makes the split unusable.

        `left_out` names the column whose strings must not recur; `groups` are the groups' names.
        """
        problems = [
            f"no row is in {name}"
            for name, rows in zip(SPLITS, self.rows.sum(1).tolist(), strict=True)
            if not rows
        ]
        straddles = strategy in ("group", "column", "folds") and self._num_straddling > 0
        if straddles:
            found = np.flatnonzero(self.group_in.sum(0) > 1)[:NUM_EXAMPLES]
            more = ", ..." if self._num_straddling > len(found) else ""
            named = ", ".join(f"{groups[k]:.80}" for k in found) + more
            problems.append(
                f"{self._num_straddling:,} of {self.num_groups:,} groups of data.group have rows in"
                f" more than one split ({named})"
            )
        if left_out is not None and (self.string_in[left_out].sum(0) > 1).any():
            problems.append(f"distinct {left_out} strings have rows in more than one split")
        problems += self._untrainable_targets()
        if problems:
            raise SplitError(
                f"split.strategy '{strategy}' gives an unusable split: {'; '.join(problems)}\n"
                f"{split_table(self.counts())}\n{_advice(strategy, straddles)}"
            )

    def _untrainable_targets(self) -> Iterator[str]:
        """Yield a line for each target without labels, or with one class only, in train."""
        train = zip(
            self.targets,
            self.binary,
            self.labelled[0].sum(0).tolist(),
            self.positive[0].sum(0).tolist(),
            strict=True,
        )
        for name, binary, labelled, positive in train:
            if labelled == 0:
                yield f"no train row has a label for '{name}'"
            elif binary and positive in (0, labelled):
                yield (
                    f"the train rows hold only one class of '{name}' ({positive:,} of {labelled:,}"
                    " positive)"
                )
            elif (only := self._labels.only_class(name)) is not None:
                yield f"the train rows hold only one class of '{name}', {only}"


def _advice(strategy: str, straddles: bool) -> str:
    """Return what to change where a split is unusable."""
    groups = (
        "; or take data.group away, if rows of one group may well be in several splits"
        if straddles
        else ""
    )
    if strategy == "column":
        return (
            "The table itself says which rows are in which split: correct the column that"
            f" split.column names{groups}."
        )
    if strategy == "folds":
        return (
            "The table itself says which rows are in which fold: try another split.rotation, or"
            f" correct the column that split.column names{groups}."
        )
    if strategy == "time":
        return "Try another split.rotation, fewer folds, or another strategy."
    return "Try another split.seed or split.rotation, fewer folds, or another strategy."
