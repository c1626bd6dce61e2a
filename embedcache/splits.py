"""Which rows train, which validate, which test.

Whatever decides is dealt to `folds` folds of equal share; a range of folds is a split. What decides
is a group (a patient never straddles two splits), a distinct string (does the model predict a
polymer that it never saw?), the row itself, or a column of the table.

Groups are dealt by scikit-learn's StratifiedGroupKFold, separately inside each stratum: it balances
row counts and class rate. It wants one entry per row, though all it uses is a count per group and
class; so large tables are handed over with all counts divided by one common factor, which changes
its balance by rounding only, and never lets a group straddle.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Int64
from sklearn.model_selection import StratifiedGroupKFold

from embedcache.config import SplitConfig, TargetColumn
from embedcache.errors import SplitError

SPLITS = ("train", "validation", "test")
NUM_SEATINGS = 100
MOST_ROWS = 500_000  # handed to scikit-learn, which loops over them in Python


def split_of_fold(fold: Int[np.ndarray, " K"], config: SplitConfig) -> Int8[np.ndarray, " K"]:
    """Return the split code of each fold number: after `rotation`, the first folds train, the next
    validate, the rest test.
    """
    place = (fold - config.rotation) % config.folds
    return (
        (place >= config.train_folds).astype(np.int8)
        + (place >= config.train_folds + config.validation_folds)
    ).astype(np.int8)


def shares(config: SplitConfig) -> Float[np.ndarray, "3"]:
    """Return the share of each split as configured."""
    folds = np.array(
        [
            config.train_folds,
            config.validation_folds,
            config.folds - config.train_folds - config.validation_folds,
        ]
    )
    return folds / config.folds


def deal_rows(
    label: Int8[np.ndarray, " N"], config: SplitConfig, first_row: int = 0
) -> Int8[np.ndarray, " N"]:
    """Return the split of each row, dealt at random inside each value of `label`; fold sizes differ
    by one row at most, overall and per label value.

    `first_row` is the number of rows in the files before this one, which were dealt already: were
    all files dealt alike, the splits of tables that are alike row by row (one per day, say) would
    be too. Only bytes are shuffled, never row numbers: a table of 100 million rows costs 100 MB
    here.
    """
    generator = np.random.default_rng([config.seed, first_row] if first_row else config.seed)
    split_of = split_of_fold(np.arange(config.folds), config)
    split = np.empty(len(label), dtype=np.int8)
    dealt = 0
    for value in np.unique(label):
        rows = label == value
        # goes on at the fold where the last value ended, to keep the totals level
        hand = np.resize(np.roll(split_of, -dealt), int(rows.sum()))
        generator.shuffle(hand)
        split[rows] = hand
        dealt += len(hand)
    return split


def deal_groups(
    counts: Int64[np.ndarray, "G K"],
    stratum: Int[np.ndarray, " G"],
    config: SplitConfig,
    what: str,
    strata: Sequence[str],
) -> Int8[np.ndarray, " G"]:
    """Return the split of each group, given its number of rows in each class.

    `counts` has one column per class (one only: balance row counts alone). `what` names a group in
    messages, `strata` the values of `stratum`.
    """
    fold = np.empty(len(counts), dtype=np.int64)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        if len(members) < config.folds:
            inside = f" with {strata[value]}" if len(strata) > 1 else ""
            raise SplitError(
                f"there are {len(members)} {what}s{inside}, but split.folds = {config.folds} needs"
                " at least that many; lower split.folds (with split.train_folds and"
                f" split.validation_folds) or take a table with more {what}s"
            )
        dealt = _stratified_folds(counts[members], config)
        fold[members] = _seating(counts[members], dealt, config)[dealt]
    return split_of_fold(fold, config)


def deal_few(
    num_rows: Int[np.ndarray, " G"], placed: Int[np.ndarray, "3"], config: SplitConfig
) -> Int8[np.ndarray, " G"]:
    """Return the split of each of a few groups: the largest first, each to the split whose rows are
    then furthest below its share.

    `placed` are the rows that the splits hold already. For groups that come later and are fewer
    than the folds.
    """
    rows, split = placed.astype(np.int64), np.empty(len(num_rows), dtype=np.int8)
    for group in np.argsort(-num_rows, kind="stable"):
        split[group] = (shares(config) * (rows.sum() + num_rows[group]) - rows).argmax()
        rows[split[group]] += num_rows[group]
    return split


def _stratified_folds(
    counts: Int64[np.ndarray, "G K"], config: SplitConfig
) -> Int64[np.ndarray, " G"]:
    """Return the fold of each group by StratifiedGroupKFold."""
    counts = counts[:, counts.sum(0) > 0]
    entries = compressed(counts, MOST_ROWS)
    if entries.sum(0).max() < config.folds:
        # scikit-learn refuses classes smaller than the number of folds; only ratios matter
        entries = entries * config.folds
    num_groups, num_classes = entries.shape
    group = np.repeat(np.repeat(np.arange(num_groups), num_classes), entries.ravel())
    label = np.repeat(np.tile(np.arange(num_classes), num_groups), entries.ravel())
    fold = np.empty(num_groups, dtype=np.int64)
    dealer = StratifiedGroupKFold(n_splits=config.folds, shuffle=True, random_state=config.seed)
    with warnings.catch_warnings():
        # the report shows the rates, check() refuses one class
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, rows) in enumerate(dealer.split(np.zeros(len(group)), label, group)):
            fold[np.unique(group[rows])] = number
    return fold


def _seating(
    counts: Int64[np.ndarray, "G K"], fold: Int64[np.ndarray, " G"], config: SplitConfig
) -> Int64[np.ndarray, " _"]:
    """Return a new number for each fold: of some random seatings, the one whose three splits are
    nearest to their share of every class.

    StratifiedGroupKFold uses its seed for ties alone, and with few groups per fold its folds
    differ: measured on 50 groups of one size, the class rates of 35 / 10 / 5 of them were no closer
    than a random deal's. Which folds form a split is still free, and this is where the seed comes
    in.
    """
    generator = np.random.default_rng(config.seed)
    # rotations share one seating: they are cross-validation
    plain = split_of_fold(np.arange(config.folds), config.model_copy(update={"rotation": 0}))
    wanted = np.bincount(plain, minlength=len(SPLITS)) / config.folds
    in_fold = np.zeros((config.folds, counts.shape[1]))
    np.add.at(in_fold, fold, counts)
    share = in_fold / np.maximum(1, counts.sum(0))  # [folds, K]

    def imbalance(seats: np.ndarray) -> float:
        got = np.stack([share[plain[seats] == split].sum(0) for split in range(len(SPLITS))])
        return float(((got / wanted[:, None] - (counts.sum(0) > 0)) ** 2).sum())

    return min((generator.permutation(config.folds) for _ in range(NUM_SEATINGS)), key=imbalance)


def compressed(counts: Int64[np.ndarray, "G K"], most: int) -> Int64[np.ndarray, "G K"]:
    """Return the counts, or where they sum to more than `most`, counts in the same ratios of about
    that sum; no group vanishes.
    """
    total = int(counts.sum())
    if total <= most:
        return counts
    small = np.rint(counts * (most / total)).astype(np.int64)
    lost = np.flatnonzero(small.sum(1) == 0)
    small[lost, counts[lost].argmax(1)] = 1
    return small


@dataclass(frozen=True)
class SplitReport:
    """How many rows and groups each split got, overall and by stratum, and with which class
    rates.
    """

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    def table(self, most_lines: int | None = None) -> str:
        """Return the report as aligned plain text; where it has more than `most_lines` lines,
        without the break-down by stratum.
        """
        brief = most_lines is not None and len(self.lines) > most_lines
        cells = [self.header, *(self.lines[-len(SPLITS) :] if brief else self.lines)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        aligned = [
            [
                cell.ljust(w) if c < 2 else cell.rjust(w)
                for c, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in cells
        ]
        return "\n".join(["  ".join(row).rstrip() for row in aligned] + list(self.remarks))


@dataclass
class SplitTally:
    """Counts what each split holds while the rows stream by: rows, groups, distinct strings, labels
    and positives.
    """

    strata: tuple[str, ...]  # () or one value: no break-down
    num_groups: int  # 0: the table has no groups
    num_strings: dict[str, int]  # by string column
    targets: tuple[str, ...]
    binary: tuple[bool, ...]
    rows: Int64[np.ndarray, "3 Q"] = field(init=False)
    labelled: Int64[np.ndarray, "3 Q T"] = field(init=False)
    positive: Int64[np.ndarray, "3 Q T"] = field(init=False)
    group_stratum: Int64[np.ndarray, " G"] = field(init=False)
    group_in: Bool[np.ndarray, "3 G"] = field(init=False)
    string_in: dict[str, Bool[np.ndarray, "3 _"]] = field(init=False)

    def __post_init__(self) -> None:
        """Start all counts at zero."""
        num_strata, num_targets = max(1, len(self.strata)), len(self.targets)
        self.rows = np.zeros((3, num_strata), dtype=np.int64)
        self.labelled = np.zeros((3, num_strata, num_targets), dtype=np.int64)
        self.positive = np.zeros((3, num_strata, num_targets), dtype=np.int64)
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
    ) -> "SplitTally":
        """Return the same counts with room for the strata, groups, strings and targets of one more
        file, all of which follow the known ones but targets.
        """
        names, binary = (
            tuple(target.name for target in targets),
            tuple(target.kind == "binary" for target in targets),
        )
        grown = SplitTally(strata, num_groups, num_strings, names, binary)
        known = [names.index(name) for name in self.targets]
        grown.rows[:, : self.rows.shape[1]] = self.rows
        grown.labelled[:, : self.rows.shape[1], known] = self.labelled
        grown.positive[:, : self.rows.shape[1], known] = self.positive
        grown.group_stratum[: self.num_groups] = self.group_stratum
        grown.group_in[:, : self.num_groups] = self.group_in
        for name, seen in self.string_in.items():
            grown.string_in[name][:, : seen.shape[1]] = seen
        return grown

    def add(
        self,
        split: Int8[np.ndarray, " N"],
        stratum: Int[np.ndarray, " N"],
        group: Int[np.ndarray, " N"],
        strings: dict[str, Int[np.ndarray, " N"]],
        targets: np.ndarray,
    ) -> None:
        """Count one block of rows; `targets` is [N, T] with NaN where unobserved, `stratum` all
        zero and `group` ignored where there are none.
        """
        cell = split.astype(np.int64) * self.rows.shape[1] + stratum
        self.rows += np.bincount(cell, minlength=self.rows.size).reshape(self.rows.shape)
        for t in range(len(self.targets)):
            shape = self.rows.shape
            self.labelled[:, :, t] += np.bincount(
                cell[~np.isnan(targets[:, t])], minlength=self.rows.size
            ).reshape(shape)
            self.positive[:, :, t] += np.bincount(
                cell[targets[:, t] == 1], minlength=self.rows.size
            ).reshape(shape)
        if self.num_groups:
            self.group_in[split, group] = True
            self.group_stratum[group] = stratum
        for name, string_id in strings.items():
            self.string_in[name][split, string_id] = True

    def report(self) -> SplitReport:
        """Return the counts as a table: one line per split and stratum, then one per split."""
        names = [target for target, binary in zip(self.targets, self.binary, strict=True) if binary]
        header = (
            "split",
            "stratum",
            "groups",
            "rows",
            "share",
            *names,
            *(f"{name} strings" for name in self.num_strings),
        )
        cells = (
            [(split, q) for split in range(3) for q in range(len(self.strata))]
            if len(self.strata) > 1
            else []
        )
        lines = [self._line(split, q) for split, q in cells] + [
            self._line(split, None) for split in range(3)
        ]
        return SplitReport(header, tuple(lines), tuple(self._remarks()))

    def _line(self, split: int, stratum: int | None) -> tuple[str, ...]:
        """Return one line of the report; a stratum of None is the whole split."""
        chosen = slice(None) if stratum is None else [stratum]
        rows, labelled, positive = (
            counts[split, chosen].sum(0) for counts in (self.rows, self.labelled, self.positive)
        )
        groups = int(
            self.group_in[split][
                slice(None) if stratum is None else self.group_stratum == stratum
            ].sum()
        )
        rates = [
            f"{positive[t] / labelled[t]:.4f}" if labelled[t] else "-"
            for t in range(len(self.targets))
            if self.binary[t]
        ]
        strings = [
            f"{int(seen[split].sum()):,}" if stratum is None else ""
            for seen in self.string_in.values()
        ]
        share = f"{100 * rows / max(1, int(self.rows.sum())):.2f}%"
        name = "all" if stratum is None else self.strata[stratum]
        return (
            SPLITS[split],
            name,
            f"{groups:,}" if self.num_groups else "-",
            f"{rows:,}",
            share,
            *rates,
            *strings,
        )

    def _remarks(self) -> list[str]:
        """Return what a reader of the scores should know."""
        remarks = []
        straddling = int((self.group_in.sum(0) > 1).sum())
        if straddling:
            remarks.append(
                f"{straddling:,} of {self.num_groups:,} groups have rows in more than one split:"
                " scores do not speak of unseen groups"
            )
        for name, seen in self.string_in.items():
            for split in (1, 2):
                unseen = int((seen[split] & ~seen[0]).sum())
                if unseen:
                    remarks.append(
                        f"{unseen:,} of {int(seen[split].sum()):,} distinct {name} strings of"
                        f" {SPLITS[split]} are not in train"
                    )
        return remarks

    def check(self, strategy: str, left_out: str | None) -> None:
        """Raise one SplitError with everything that makes the split unusable; `left_out` names the
        column whose strings must not recur.
        """
        problems = [
            f"no row is in {SPLITS[split]}" for split in range(3) if not self.rows[split].sum()
        ]
        if strategy in ("group", "column") and self.num_groups:
            straddling = np.flatnonzero(self.group_in.sum(0) > 1)
            if len(straddling):
                problems.append(
                    f"{len(straddling):,} of {self.num_groups:,} groups of data.group have rows in"
                    " more than one split"
                )
        if left_out is not None and (self.string_in[left_out].sum(0) > 1).any():
            problems.append(f"distinct {left_out} strings have rows in more than one split")
        for t, (name, binary) in enumerate(zip(self.targets, self.binary, strict=True)):
            labelled, positive = (
                int(self.labelled[0, :, t].sum()),
                int(self.positive[0, :, t].sum()),
            )
            if labelled == 0:
                problems.append(f"no train row has a label for '{name}'")
            elif binary and positive in (0, labelled):
                problems.append(
                    f"the train rows hold only one class of '{name}' ({positive:,} of {labelled:,}"
                    " positive)"
                )
        if problems:
            raise SplitError(
                f"split.strategy '{strategy}' gives an unusable split: "
                + "; ".join(problems)
                + "\n"
                + self.report().table()
                + "\nTry another split.seed or split.rotation, fewer folds, or another strategy."
            )
