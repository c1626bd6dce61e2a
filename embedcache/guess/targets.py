"""Which column is to be predicted where nobody says so, and what kind of target a column is."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from embedcache.errors import ConfigError
from embedcache.guess.profile import Kind, Profile
from embedcache.guess.words import is_called, short_name, unit_of
from embedcache.text import count_of

_NAMES = ("target", "y", "label", "outcome", "response", "value", "property", "tg", "bandgap",
    "conductivity", "strength", "modulus", "permeability", "solubility", "yield", "activity",
)  # fmt: skip
# what is set, not found
_CONDITIONS = ("temperature", "temp", "pressure", "time", "concentration", "molality", "molarity",
    "mass", "mw", "dose", "ph", "humidity", "thickness", "ratio", "fraction", "age", "weight",
)  # fmt: skip
# labels of which one is the positive, whatever the alphabet says
_POSITIVE = {"yes", "y", "active", "positive", "pos", "pass", "passed", "high", "1", "+", "good"}
_NEGATIVE = {"no", "n", "inactive", "negative", "neg", "fail", "failed", "low", "0", "-", "bad"}
MOST = 50  # classes; more are names
FEW_NUMBERS = 10  # whole numbers that may be classes


class Target(NamedTuple):
    """The column that is to be predicted, and why it."""

    column: str
    reason: str


def best_target(candidates: Sequence[Profile]) -> Target:
    """Return the column that is most likely to be predicted among those that may be.

    One that is called target, y, outcome or such goes first, else the last column of numbers that
    is not called as a condition is, such as temperature, else the last of two classes, of several.
    Raises ConfigError where there is none.
    """
    several = [each for each in candidates if each.num_distinct > 1]
    numbers = [each for each in several if each.kind is Kind.NUMBER and not _has_signs(each)]
    numbers = [each for each in numbers if not is_binary(each)]
    pairs = [each for each in several if is_binary(each) or _has_signs(each) or _are_two(each)]
    texts = [each for each in several if each.kind is Kind.TEXT and each.num_distinct <= MOST]
    for name in _NAMES:
        for each in [*numbers, *pairs, *texts]:
            if is_called(each.name, (name,)):
                return Target(each.name, f"by its name; {learnt_as(each)}{_labels(each)}")
    found = [each for each in numbers if not is_called(each.name, _CONDITIONS)]
    for columns, what in (
        (found or numbers, "of numbers"),
        (pairs, "of two values"),
        (texts, "of few values"),
    ):
        if columns:
            each = columns[-1]
            why = f"a guess: the last column {what}; {learnt_as(each)}{_labels(each)}"
            return Target(each.name, why)
    raise ConfigError(
        "no column of the table could be a target: none has numbers or a few classes, and is not"
        " needed for more; name it (--target COLUMN, or target= in Python)"
    )


def is_binary(profile: Profile) -> bool:
    """Whether a column has two values that are 0 and 1, or true and false."""
    if profile.kind is Kind.TRUTH:
        return profile.num_distinct == 2
    return (
        profile.kind is Kind.NUMBER
        and (profile.low, profile.high) == (0, 1)
        and (profile.num_distinct == 2)
    )


def _has_signs(profile: Profile) -> bool:
    """Whether a column has two values that are -1 and 1."""
    return (profile.low, profile.high, profile.num_distinct) == (-1, 1, 2)


def _are_two(profile: Profile) -> bool:
    """Whether a column has two words."""
    return profile.kind is Kind.TEXT and profile.num_distinct == 2


def target_entry(profile: Profile, taken: Collection[str]) -> dict[str, Any]:
    """Return the config of a target column; raises ConfigError for one that cannot be learnt."""
    entry: dict[str, Any] = {
        "name": short_name(profile.name, taken, "target"),
        "column": profile.name,
    }
    if profile.num_distinct == 1:
        raise ConfigError(
            f"target column '{profile.name}' has one value in all rows, so there is nothing to"
            " predict; name another"
        )
    if is_binary(profile):
        return {**entry, "kind": "binary"}
    if _has_signs(profile):
        return {**entry, "kind": "binary", "classes": ["-1", "1"]}
    if _are_two(profile):
        return {**entry, "kind": "binary", "classes": _in_order(profile.values)}
    if profile.kind is Kind.TEXT and profile.num_distinct <= MOST:
        return {**entry, "kind": "multiclass"}
    if profile.kind is not Kind.NUMBER:
        raise ConfigError(
            f"target column '{profile.name}' has {profile.kind.value} of {profile.num_distinct:,}"
            f" values, e.g. '{', '.join(profile.values[:3]):.60}'; a target has numbers, or at most"
            f" {MOST} classes"
        )
    if unit := unit_of(profile.name):
        entry["unit"] = unit
    if profile.spans_decades:
        entry["transform"] = "log10"
    return entry


def learnt_as(profile: Profile) -> str:
    """Return what kind of target a column is, in words."""
    if is_binary(profile):
        return "two values: binary"
    if profile.kind is Kind.TEXT or _has_signs(profile):
        shown = ", ".join(f"{value:.20}" for value in profile.values[:4]) or "-1, 1"
        kind = (
            "binary" if profile.num_distinct == 2 else "multiclass; ordinal if they have an order"
        )
        return f"{profile.num_distinct:,} classes ({shown}): {kind}"
    few = profile.is_whole and profile.num_distinct <= FEW_NUMBERS
    note = "; if these are classes, kind: ordinal or multiclass" if few else ""
    return f"from {profile.low:g} to {profile.high:g}: regression{note}"


def _in_order(values: Sequence[str]) -> list[str]:
    """Return two labels, the negative one first."""
    first, second = sorted(values)
    is_turned = first.lower() in _POSITIVE or second.lower() in _NEGATIVE
    return [second, first] if is_turned else [first, second]


def _labels(profile: Profile) -> str:
    if not profile.num_missing:
        return ""
    return f", {count_of(profile.num_missing, 'row')} without a label"
