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

import numpy as np
from jaxtyping import Float, Int, Int8, Int64
from sklearn.model_selection import StratifiedGroupKFold

from embedcache.config import SPLITS, SplitConfig
from embedcache.errors import SplitError

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


def assign_rows(
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


def assign_groups(
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


def assign_few(
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
