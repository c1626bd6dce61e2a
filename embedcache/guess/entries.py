"""What is written in a config of a column that has some role, and why it has it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from embedcache.errors import ConfigError
from embedcache.guess.chemistry import read_as_chemistry
from embedcache.guess.profile import Kind, Profile
from embedcache.guess.words import short_name, unit_of
from embedcache.text import count_of

Entry = dict[str, Any]  # the keys of a column's config that are not its defaults
CHEMISTRY = ("rdkit", "morgan")  # features of strings that RDKit reads
RARE = 3  # rows of a category, below which it is one of several others
MANY_ROWS = 100  # from where on rare categories are worth one together


class Role(Enum):
    """What a column is for."""

    STRING = "string"
    NUMERIC = "numeric"
    CATEGORY = "category"
    TARGET = "target"
    GROUP = "group"
    SPLIT = "split"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Guess:
    """A column's role, why, and its entry in the config."""

    column: str
    role: Role
    reason: str
    entry: Entry = field(default_factory=dict)


def string_guess(profile: Profile, is_named: bool) -> Guess:
    """Return the guess on a string column; one that was named is text where it is no SMILES."""
    reading = read_as_chemistry(profile)
    entry: Entry = {"name": short_name(profile.name, (), "string"), "column": profile.name}
    saving = f"{profile.num_distinct:,} distinct of {count_of(profile.num_values, 'row')}"
    if reading is None:
        if not profile.values:
            raise ConfigError(
                f"column '{profile.name}' was named as string, and has {profile.kind.value}; name"
                " it as numeric"
            )
        entry["kind"] = "text"
        reason = f"as named; text, {saving}"
    else:
        entry |= {} if reading.kind == "psmiles" else {"kind": reading.kind}
        entry |= {"replace": reading.replace} if reading.replace else {}
        entry["features"] = list(CHEMISTRY)
        reason = f"{'as named; ' if is_named else ''}{reading.in_words}, {saving}"
    if profile.num_missing:
        entry["if_null"] = ""
        reason += f", {missing(profile)}: an empty string"
    return Guess(profile.name, Role.STRING, reason, entry)


def numeric_guess(profile: Profile) -> Guess:
    """Return the guess on a numeric feature; raises ConfigError for a column of something else."""
    if profile.kind not in (Kind.NUMBER, Kind.TRUTH):
        raise ConfigError(
            f"column '{profile.name}' was named as numeric, and has {profile.kind.value}, e.g."
            f" '{profile.values[0]:.40}'"
        )
    entry: Entry = {"column": profile.name}
    reason = seen(profile)
    if unit := unit_of(profile.name):
        entry["unit"] = unit
    if profile.spans_decades:
        entry["transform"] = "log10"
        reason += ", over decades"
    if profile.num_missing:
        entry["if_null"] = "indicator"
        reason += f", {missing(profile)}: the median, and a feature that says so"
    return Guess(profile.name, Role.NUMERIC, reason, entry)


def category_guess(profile: Profile) -> Guess:
    """Return the guess on a categorical feature."""
    entry: Entry = {"column": profile.name}
    reason = f"{seen(profile)}"
    taken = {value.lower() for value in profile.values}
    rare = [count for count in profile.counts if count < RARE]
    if rare and profile.num_values >= MANY_ROWS and profile.kind is Kind.TEXT:
        entry |= {"other": "other" if "other" not in taken else "any other", "min_rows": RARE}
        reason += f", {len(rare)} of them in fewer than {RARE} rows: one category together"
    if profile.num_missing:
        entry["if_null"] = "missing" if "missing" not in taken else "no value"
        reason += f", {missing(profile)}: a category of its own"
    return Guess(profile.name, Role.CATEGORY, reason, entry)


def seen(profile: Profile) -> str:
    """Return what is in a column, in words."""
    if profile.kind is Kind.NUMBER:
        whole = "whole numbers" if profile.is_whole else "numbers"
        return f"{whole} from {profile.low:g} to {profile.high:g}"
    kind = "truths" if profile.kind is Kind.TRUTH else "distinct values"
    shown = ", ".join(f"{value:.20}" for value in profile.values[:4])
    more = ", ..." if profile.num_distinct > 4 else ""
    return f"{profile.num_distinct:,} {kind} ({shown}{more})"


def missing(profile: Profile) -> str:
    """Return how many rows lack a value, in words."""
    return f"missing in {count_of(profile.num_missing, 'row')}"
