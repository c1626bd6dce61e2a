"""Which rows train, which validate, which test.

Whatever decides is assigned to `folds` folds of equal share; a range of folds is a split. What
decides is a group (a patient never straddles two splits), a distinct string (does the model predict
a polymer that it never saw?), the row itself, or a column of the table.

Groups are assigned by scikit-learn's StratifiedGroupKFold, separately inside each stratum: it
balances row counts and class rate. It wants one entry per row, though all it uses is a count per
group and class; so for large tables it is given all counts divided by one common factor, which
changes its balance by rounding only, and never lets a group straddle.

Axes: N rows, G groups, K classes of the stratifying label (one where there is no such label).
"""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int8, Int64
from sklearn.model_selection import StratifiedGroupKFold

from embedcache.config.split import SPLITS, SplitConfig
from embedcache.errors import SplitError

NUM_ORDERS = 100  # random orders of the folds, of which the best is taken
MOST_ROWS = 500_000  # given to scikit-learn, which loops over them in Python


def split_of_fold(fold: Int[np.ndarray, " ids"], config: SplitConfig) -> Int8[np.ndarray, " ids"]:
    """Return the split code of each fold number.

    After `rotation`, the first folds train, the next validate, the rest test.
    """
    edges = np.cumsum([config.train_folds, config.validation_folds])
    rotated = (fold - config.rotation) % config.folds
    return np.searchsorted(edges, rotated, side="right").astype(np.int8)


def shares(config: SplitConfig) -> Float[np.ndarray, "3"]:
    """Return the share of each split as configured."""
    test_folds = config.folds - config.train_folds - config.validation_folds
    return np.array([config.train_folds, config.validation_folds, test_folds]) / config.folds


def assign_rows(
    label: Int8[np.ndarray, " N"], config: SplitConfig, first_row: int = 0
) -> Int8[np.ndarray, " N"]:
    """Return the split of each row, drawn at random inside each value of `label`.

    Fold sizes differ by one row at most, overall and per label value.

    `first_row` is the number of rows in the files before this one, which have their splits already:
    were all files assigned alike, the splits of tables that are alike row by row (one per day, say)
    would be too. Only bytes are shuffled, never row numbers: a table of 100 million rows costs 100
    MB here.
    """
    generator = np.random.default_rng([config.seed, first_row] if first_row else config.seed)
    split_in_turn = split_of_fold(np.arange(config.folds), config)
    split = np.empty(len(label), dtype=np.int8)
    num_assigned = 0
    for value in np.unique(label):
        rows = label == value
        # goes on at the fold where the last value ended, to keep the totals level
        codes = np.resize(np.roll(split_in_turn, -num_assigned), int(rows.sum()))
        generator.shuffle(codes)
        split[rows] = codes
        num_assigned += len(codes)
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
    messages, `strata` the values of `stratum`. Raises SplitError where a stratum has fewer groups
    than there are folds.
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
        unordered = _stratified_folds(counts[members], config)
        fold[members] = _best_order(counts[members], unordered, config)[unordered]
    return split_of_fold(fold, config)


def assign_few(
    num_rows: Int[np.ndarray, " G"], held: Int[np.ndarray, "3"], config: SplitConfig
) -> Int8[np.ndarray, " G"]:
    """Return the split of each of a few groups, for those that come later and are fewer than folds.

    The largest comes first, each to the split whose rows are then furthest below its share; `held`
    are the rows that the splits hold already.
    """
    rows, split = held.astype(np.int64), np.empty(len(num_rows), dtype=np.int8)
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
    splitter = StratifiedGroupKFold(n_splits=config.folds, shuffle=True, random_state=config.seed)
    with warnings.catch_warnings():
        # the report shows the rates, SplitTally.check refuses one class
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, rows) in enumerate(splitter.split(np.zeros(len(group)), label, group)):
            fold[np.unique(group[rows])] = number
    return fold


def _best_order(
    counts: Int64[np.ndarray, "G K"], fold: Int64[np.ndarray, " G"], config: SplitConfig
) -> Int64[np.ndarray, " folds"]:
    """Return a new number for each fold, so that the splits come nearest to their shares.

    Of some random orders of the folds it is the one whose three splits are nearest to their share
    of every class. StratifiedGroupKFold uses its seed for ties alone, and with few groups per fold
    its folds differ: measured on 50 groups of one size, the class rates of 35 / 10 / 5 of them were
    no closer than those of random splits. Which folds form a split is still free, and this is where
    the seed comes in.
    """
    generator = np.random.default_rng(config.seed)
    in_class = counts.sum(0)  # [K]
    in_fold = np.zeros((config.folds, counts.shape[1]))
    np.add.at(in_fold, fold, counts)
    share = in_fold / np.maximum(1, in_class)  # [folds, K]
    # rotations share one order: they are cross-validation
    split_of_number = split_of_fold(
        np.arange(config.folds), config.model_copy(update={"rotation": 0})
    )
    orders = [generator.permutation(config.folds) for _ in range(NUM_ORDERS)]
    imbalances = [
        _imbalance(share, split_of_number[order], shares(config), in_class > 0) for order in orders
    ]
    return orders[int(np.argmin(imbalances))]


def _imbalance(
    share: Float64[np.ndarray, "folds K"],
    split: Int8[np.ndarray, " folds"],
    wanted: Float[np.ndarray, "3"],
    occurs: Bool[np.ndarray, " K"],
) -> float:
    """Return the squared relative distance of the splits from the shares that are wanted.

    It is summed over splits and over the classes that occur.
    """
    got = np.stack([share[split == code].sum(0) for code in range(len(SPLITS))])  # [3, K]
    return float(((got / wanted[:, None] - occurs) ** 2).sum())


def compressed(counts: Int64[np.ndarray, "G K"], most: int) -> Int64[np.ndarray, "G K"]:
    """Return counts in the same ratios that sum to about `most`, or themselves if they sum to less.

    No group vanishes.
    """
    total = int(counts.sum())
    if total <= most:
        return counts
    small = np.rint(counts * (most / total)).astype(np.int64)
    lost = np.flatnonzero(small.sum(1) == 0)
    small[lost, counts[lost].argmax(1)] = 1
    return small
