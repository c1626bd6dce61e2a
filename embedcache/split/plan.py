"""What a split's config comes to for a table: how many folds, and which strings are left out."""

from collections.abc import Mapping, Sequence

from embedcache.config.split import MOST_FOLDS, FoldPlan, SplitConfig
from embedcache.errors import ConfigError, SplitError


def plan_of(split: SplitConfig, names: Sequence[str] = ()) -> FoldPlan:
    """Return which folds are in which split; `names` are those of the table's own folds.

    Raises SplitError where the config does not fit them.
    """
    if split.strategy == "folds":
        found = f"column '{split.column}' has {len(names)} folds ({', '.join(names):.100})"
        if not 3 <= len(names) <= MOST_FOLDS:
            raise SplitError(
                f"{found}; strategy folds needs at least 3 (to train, validate and test), and at"
                f" most {MOST_FOLDS:,}: take another column, or strategy group with data.group:"
                f" {split.column}"
            )
        if split.folds not in (None, len(names)):
            raise SplitError(f"{found}, but split.folds = {split.folds}; leave split.folds out")
    try:
        return split.plan(len(names) or None)
    except ValueError as error:
        raise SplitError(f"split.strategy folds with {len(names)} folds: {error}") from None


def num_folds_of(split: SplitConfig, names: Sequence[str] = ()) -> int:
    """Return the number of folds; 0 where the table itself says its splits."""
    return 0 if split.strategy == "column" else plan_of(split, names).folds


def left_out_column(kinds: Mapping[str, str], split: SplitConfig) -> str | None:
    """Return the string column whose strings, or scaffolds, are left out; None for other splits.

    `kinds` are those of the string columns by their names. Raises ConfigError where there is none,
    or none that has scaffolds.
    """
    if split.strategy not in ("leave_strings_out", "scaffold"):
        return None
    if split.string is not None and split.string not in kinds:
        raise ConfigError(
            f"split.string names '{split.string}', which is not among the string columns:"
            f" {', '.join(kinds)}"
        )
    chemical = [name for name, kind in kinds.items() if kind != "text"]
    if split.strategy == "scaffold":
        if split.string is not None and split.string not in chemical:
            raise ConfigError(
                f"split.strategy scaffold reads molecules, but string column '{split.string}' is of"
                " kind: text; name another as split.string, or take leave_strings_out"
            )
        kinds = {name: kinds[name] for name in chemical}
    if not kinds:
        raise ConfigError(
            f"split.strategy '{split.strategy}' needs a string column in data.strings"
            + (" of kind psmiles or smiles" if split.strategy == "scaffold" else "")
            + "; choose another strategy"
        )
    return split.string or next(iter(kinds))
