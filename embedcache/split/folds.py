"""Which rows train, which validate, which test.

Whatever decides is assigned to `folds` folds of equal share; a range of folds is a split. What
decides is a group (a patient never straddles two splits), a distinct string (does the model predict
a polymer that it never saw?), a scaffold, a time, the row itself, or a column of the table. A
rotation changes which folds are which split, and no fold: so one table serves cross-validation.

Groups are assigned by scikit-learn's StratifiedGroupKFold, separately inside each stratum: it
balances row counts and class rate. It wants one entry per row, though all it uses is a count per
group and class; so for large tables it is given all counts divided by one common factor, which
changes its balance by rounding only, and never lets a group straddle.

Axes: N rows, G groups, K classes of the stratifying label (one where there is no such label).
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int8, Int16, Int64

from embedcache.config.split import NO_SPLIT, SPLITS, FoldPlan
from embedcache.errors import SplitError

NUM_ORDERS = 100  # random orders of the folds, of which the best is taken
MOST_ROWS = 500_000  # given to scikit-learn, which loops over them in Python


def split_of_fold(fold: Int[np.ndarray, " ids"], plan: FoldPlan) -> Int8[np.ndarray, " ids"]:
    """Return the split code of each fold number.

    After `rotation`, the first folds train, the next validate, the rest test; of folds ordered in
    time, the latest `rotation` ones are in no split.
    """
    edges = np.cumsum([plan.train_folds, plan.validation_folds])
    moved = fold + plan.rotation if plan.ordered else (fold - plan.rotation) % plan.folds
    split = np.searchsorted(edges, moved, side="right").astype(np.int8)
    split[moved >= plan.folds] = NO_SPLIT
    return split


def shares(plan: FoldPlan) -> Float[np.ndarray, "3"]:
    """Return the share of each split as configured."""
    return np.array([plan.train_folds, plan.validation_folds, plan.test_folds]) / plan.folds


def assign_rows(
    label: Int16[np.ndarray, " N"], plan: FoldPlan, first_row: int = 0
) -> Int16[np.ndarray, " N"]:
    """Return the fold of each row, drawn at random inside each value of `label`.

    Fold sizes differ by one row at most, overall and per label value.

    `first_row` is the number of rows in the files before this one, which have their folds already:
    were all files assigned alike, the splits of tables that are alike row by row (one per day, say)
    would be too. Only small numbers are shuffled, never row numbers: a table of 100 million rows
    costs 200 MB here.
    """
    generator = np.random.default_rng([plan.seed, first_row] if first_row else plan.seed)
    in_turn = np.arange(plan.folds, dtype=np.int16)
    fold = np.empty(len(label), dtype=np.int16)
    num_assigned = 0
    for value in np.unique(label):
        rows = label == value
        # goes on at the fold where the last value ended, to keep the totals level
        folds = np.resize(np.roll(in_turn, -num_assigned), int(rows.sum()))
        generator.shuffle(folds)
        fold[rows] = folds
        num_assigned += len(folds)
    return fold


def assign_groups(
    counts: Int64[np.ndarray, "G K"],
    stratum: Int[np.ndarray, " G"],
    plan: FoldPlan,
    what: str,
    strata: Sequence[str],
) -> Int16[np.ndarray, " G"]:
    """Return the fold of each group, given its number of rows in each class.

    `counts` has one column per class (one only: balance row counts alone). `what` names a group in
    messages, `strata` the values of `stratum`. Raises SplitError where a stratum has fewer groups
    than there are folds.
    """
    fold = np.empty(len(counts), dtype=np.int16)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        if len(members) < plan.folds:
            inside = f" with {strata[value]}" if len(strata) > 1 else ""
            raise too_few(len(members), f"{what}s{inside}", plan)
        unordered = _stratified_folds(counts[members], plan)
        fold[members] = _best_order(counts[members], unordered, plan)[unordered]
    return fold


def assign_few(
    num_rows: Int[np.ndarray, " G"], held: Int[np.ndarray, " folds"], plan: FoldPlan
) -> Int16[np.ndarray, " G"]:
    """Return the fold of each of a few groups, for those that come later and are fewer than folds.

    The largest comes first, each to the split whose rows are then furthest below its share, and in
    that to its smallest fold; `held` are the rows that the folds hold already. Splits are those of
    rotation 0, so that folds are the same in all rotations.
    """
    plan = replace(plan, rotation=0)
    rows, fold = held.astype(np.int64), np.empty(len(num_rows), dtype=np.int16)
    split = split_of_fold(np.arange(plan.folds), plan)
    for group in np.argsort(-num_rows, kind="stable"):
        in_split = np.array([rows[split == code].sum() for code in range(len(SPLITS))])
        chosen = (shares(plan) * (rows.sum() + num_rows[group]) - in_split).argmax()
        members = np.flatnonzero(split == chosen)
        fold[group] = members[rows[members].argmin()]
        rows[fold[group]] += num_rows[group]
    return fold


def assign_times(num_rows: Int64[np.ndarray, " V"], plan: FoldPlan) -> Int16[np.ndarray, " V"]:
    """Return the fold of each of V distinct times, oldest first, given the rows of each.

    Folds are stretches of time with equal numbers of rows, as nearly as times that are not cut
    allow: a time belongs to the fold in which the middle of its rows lies.
    """
    if len(num_rows) < plan.folds:
        raise too_few(len(num_rows), "distinct times", plan)
    middle = num_rows.cumsum() - num_rows / 2
    return (middle * plan.folds / num_rows.sum()).astype(np.int16)


def too_few(count: int, what: str, plan: FoldPlan) -> SplitError:
    """Return the error that says that there are fewer of what decides than folds."""
    return SplitError(
        f"there are {count} {what}, but split.folds = {plan.folds} needs"
        " at least that many; lower split.folds (with split.train_folds and split.validation_folds)"
        f" or take a table with more {what.split(' with ')[0]}"
    )


def _stratified_folds(counts: Int64[np.ndarray, "G K"], plan: FoldPlan) -> Int64[np.ndarray, " G"]:
    """Return the fold of each group by StratifiedGroupKFold."""
    # not at the top: reading another rotation of a cache needs no scikit-learn
    from sklearn.model_selection import StratifiedGroupKFold

    counts = counts[:, counts.sum(0) > 0]
    entries = compressed(counts, MOST_ROWS)
    if entries.sum(0).max() < plan.folds:
        # scikit-learn refuses classes smaller than the number of folds; only ratios matter
        entries = entries * plan.folds
    num_groups, num_classes = entries.shape
    group = np.repeat(np.repeat(np.arange(num_groups), num_classes), entries.ravel())
    label = np.repeat(np.tile(np.arange(num_classes), num_groups), entries.ravel())
    fold = np.empty(num_groups, dtype=np.int64)
    splitter = StratifiedGroupKFold(n_splits=plan.folds, shuffle=True, random_state=plan.seed)
    with warnings.catch_warnings():
        # the report shows the rates, SplitTally.check refuses one class
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, rows) in enumerate(splitter.split(np.zeros(len(group)), label, group)):
            fold[np.unique(group[rows])] = number
    return fold


def _best_order(
    counts: Int64[np.ndarray, "G K"], fold: Int64[np.ndarray, " G"], plan: FoldPlan
) -> Int64[np.ndarray, " folds"]:
    """Return a new number for each fold, so that the splits come nearest to their shares.

    Of some random orders of the folds it is the one whose three splits are nearest to their share
    of every class. StratifiedGroupKFold uses its seed for ties alone, and with few groups per fold
    its folds differ: measured on 50 groups of one size, the class rates of 35 / 10 / 5 of them were
    no closer than those of random splits. Which folds form a split is still free, and this is where
    the seed comes in.
    """
    generator = np.random.default_rng(plan.seed)
    in_class = counts.sum(0)  # [K]
    in_fold = np.zeros((plan.folds, counts.shape[1]))
    np.add.at(in_fold, fold, counts)
    share = in_fold / np.maximum(1, in_class)  # [folds, K]
    # rotations share one order: they are cross-validation
    split_of_number = split_of_fold(np.arange(plan.folds), replace(plan, rotation=0))
    orders = [generator.permutation(plan.folds) for _ in range(NUM_ORDERS)]
    imbalances = [
        _imbalance(share, split_of_number[order], shares(plan), in_class > 0) for order in orders
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
