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


class Target(NamedTuple):
    """The column that is to be predicted, and why it."""

    column: str
    reason: str


def best_target(candidates: Sequence[Profile]) -> Target:
    """Return the column that is most likely to be predicted among those that may be.

    One that is called target, y, outcome or such goes first, else the last column of numbers that
    is not called as a condition is, such as temperature, else the last of truths.
    Raises ConfigError where there is none.
    """
    numbers = [each for each in candidates if each.kind is Kind.NUMBER and each.num_distinct > 1]
    truths = [each for each in candidates if is_binary(each)]
    for name in _NAMES:
        for each in [*numbers, *truths]:
            if is_called(each.name, (name,)):
                return Target(each.name, f"by its name; {_kind(each)}{_labels(each)}")
    found = [each for each in numbers if not is_called(each.name, _CONDITIONS)]
    numbers = found or numbers
    if numbers or truths:
        each = (numbers or truths)[-1]
        what = "numbers" if numbers else "truths"
        return Target(
            each.name, f"a guess: the last column of {what}; {_kind(each)}{_labels(each)}"
        )
    raise ConfigError(
        "no column of the table could be a target: none has numbers or truths that are not all the"
        " same; name it (--target COLUMN, or target= in Python)"
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


def target_entry(profile: Profile, taken: Collection[str]) -> dict[str, Any]:
    """Return the config of a target column; raises ConfigError for one that cannot be learnt."""
    entry: dict[str, Any] = {
        "name": short_name(profile.name, taken, "target"),
        "column": profile.name,
    }
    if is_binary(profile):
        return {**entry, "kind": "binary"}
    if profile.kind is not Kind.NUMBER:
        raise ConfigError(
            f"target column '{profile.name}' has {profile.kind.value}, e.g."
            f" '{', '.join(profile.values[:3]):.60}'; a target has numbers, or 0 and 1"
        )
    if unit := unit_of(profile.name):
        entry["unit"] = unit
    if profile.spans_decades:
        entry["transform"] = "log10"
    return entry


def _kind(profile: Profile) -> str:
    if is_binary(profile):
        return "two values, 0 and 1: binary"
    return f"from {profile.low:g} to {profile.high:g}: regression"


def _labels(profile: Profile) -> str:
    if not profile.num_missing:
        return ""
    return f", {count_of(profile.num_missing, 'row')} without a label"
