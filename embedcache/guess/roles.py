"""What each column is for: guessed from its name and values, or as it was named, with a reason.

Nothing is decided in silence: a guess says what it saw, so that who knows the table can correct it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from embedcache.config.split import SPELLINGS
from embedcache.errors import ConfigError
from embedcache.guess.chemistry import read_as_chemistry
from embedcache.guess.entries import (
    Guess,
    Role,
    category_guess,
    numeric_guess,
    string_guess,
)
from embedcache.guess.profile import Kind, Profile
from embedcache.guess.targets import best_target, learnt_as, target_entry
from embedcache.guess.words import is_called, is_index, nearest_column, words_of

# by whom or what rows are repeated, the surest first
GROUPS = ("patient", "subject", "participant", "donor", "person", "animal", "specimen", "sample",
    "paper", "doi", "publication", "reference", "study", "source", "author", "experiment", "batch",
    "lot", "group", "cluster", "family", "plate", "site", "lab", "device", "customer",
)  # fmt: skip
_CODES = {"code", "class", "type", "label", "category", "grade", "level", "flag"}
_SPLITS = ("split", "set", "subset", "partition", "fold", "part")
_FOLDS = ("fold", "folds")
_SPLIT_VALUES = {spelling for spellings in SPELLINGS.values() for spelling in spellings}
MOST_FOLDS = 20  # of a column of fold numbers
MOST_CATEGORIES = 200
FEW = 10  # values of a category column, however few the rows; groups that can be folds
AS_NAMED = "as named"
_NOT_NAMED = "not among the named"
WORDS_LENGTH = 25  # characters from which on a text is a sentence, and no name


@dataclass(frozen=True)
class Named:
    """What is known of a table: columns by role; None where it is to be guessed."""

    strings: tuple[str, ...] | None = None
    numeric: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    group: str | None = None
    ignored: tuple[str, ...] = ()

    def role_of(self, column: str) -> Role | None:
        """Return the role that a column was named for, if any."""
        for role, columns in (
            (Role.TARGET, self.targets),
            (Role.STRING, self.strings),
            (Role.NUMERIC, self.numeric),
            (Role.CATEGORY, self.categories),
            (Role.GROUP, (self.group,)),
            (Role.IGNORED, self.ignored),
        ):
            if column in (columns or ()):
                return role
        return None

    def is_settled(self, role: Role) -> bool:
        """Whether all columns of a role were named, so that none is to be guessed."""
        found = {
            Role.STRING: self.strings,
            Role.NUMERIC: self.numeric,
            Role.CATEGORY: self.categories,
            Role.TARGET: self.targets,
            Role.GROUP: self.group,
        }
        return found.get(role) is not None

    def check(self, columns: Sequence[str]) -> None:
        """Raise ConfigError for a name that the table lacks, or that has two roles."""
        lists = (self.strings, self.numeric, self.categories, self.targets, self.ignored)
        names = [name for each in lists for name in each or ()]
        names += [] if self.group is None else [self.group]
        for name in names:
            if name not in columns:
                raise ConfigError(f"there is no column '{name}'{nearest_column(name, columns)}")
            if names.count(name) > 1:
                raise ConfigError(f"column '{name}' is named twice; a column has one role")


def guess_roles(profiles: Sequence[Profile], named: Named) -> list[Guess]:
    """Return the role of each column, in their order; raise ConfigError where none can be a target
    or a named column cannot be what it was named for.
    """
    named.check([profile.name for profile in profiles])
    group = _best_group(profiles, named)
    free = [_guess(profile, named, group if named.group is None else None) for profile in profiles]
    if named.targets is not None:
        return free
    both = list(zip(profiles, free, strict=True))
    target = best_target([each for each, guess in both if _may_be_target(each, guess, named)])
    others = {name for guess in free for name in [guess.entry.get("name")] if name}
    return [
        Guess(guess.column, Role.TARGET, target.reason, target_entry(profile, others))
        if profile.name == target.column
        else guess
        for profile, guess in both
    ]


def _may_be_target(profile: Profile, guess: Guess, named: Named) -> bool:
    """Whether a column that nobody named looks like a feature, or would, had not all been named."""
    if named.role_of(profile.name) is not None:
        return False
    return guess.role in (Role.NUMERIC, Role.CATEGORY) or guess.reason.startswith(_NOT_NAMED)


def _guess(profile: Profile, named: Named, group: str | None) -> Guess:
    wanted = named.role_of(profile.name)
    if wanted is not None:
        return _as_named(profile, wanted)
    found = _as_seen(profile, group)
    if named.is_settled(found.role) and found.role is not Role.IGNORED:
        what = f"{_NOT_NAMED} {found.role.value} columns"
        return Guess(profile.name, Role.IGNORED, f"{what} ({found.reason})")
    return found


def _as_named(profile: Profile, role: Role) -> Guess:
    """Return the guess on a column whose role is known: its entry, and what else is seen."""
    name = profile.name
    if role in (Role.GROUP, Role.IGNORED):
        return Guess(name, role, AS_NAMED)
    if profile.kind in (Kind.NOTHING, Kind.OTHER, Kind.DATE):
        raise ConfigError(
            f"column '{name}' was named as {role.value}, and has {profile.kind.value}"
        )
    if role is Role.TARGET:
        entry = target_entry(profile, ())
        return Guess(name, role, f"as named; {learnt_as(profile)}", entry)
    if role is Role.STRING:
        return string_guess(profile, is_named=True)
    if role is Role.NUMERIC:
        return numeric_guess(profile)
    return category_guess(profile)


def _as_seen(profile: Profile, group: str | None) -> Guess:
    name = profile.name
    if why := _useless(profile):
        return Guess(name, Role.IGNORED, why)
    if name == group:
        seen = f"{profile.num_distinct:,} values of {profile.rows_per_value:,.0f} rows each"
        return Guess(name, Role.GROUP, f"{seen}: rows of one {name} stay in one split")
    if _is_split(profile):
        why = f"says which rows train: {', '.join(profile.values)}"
        return Guess(name, Role.SPLIT, why, {"strategy": "column", "column": name})
    if _are_folds(profile):
        why = f"the table's own {profile.num_distinct} folds"
        return Guess(name, Role.SPLIT, why, {"strategy": "folds", "column": name})
    if profile.kind is Kind.NUMBER:
        is_code = bool(_CODES & set(words_of(name)[-1:]))
        if profile.is_whole and profile.num_distinct <= FEW and is_code:
            return category_guess(profile)
        if profile.is_whole and profile.rows_per_value == 1 and words_of(name)[-1:] == ["id"]:
            return Guess(name, Role.IGNORED, "an id: each row has another one")
        return numeric_guess(profile)
    if profile.kind is Kind.TRUTH:
        return category_guess(profile)
    if read_as_chemistry(profile) is not None:
        return string_guess(profile, is_named=False)
    return _words(profile)


def _useless(profile: Profile) -> str | None:
    """Return why a column cannot say anything, or None."""
    if profile.is_twice:
        return "two columns have this name; rename one of them to use it"
    if profile.kind is Kind.NOTHING:
        return "no row has a value"
    if profile.kind is Kind.OTHER:
        return f"has {profile.kind.value}"
    if profile.kind is Kind.DATE:
        return "a date; to use it, write what matters of it, such as days since, as a number"
    if profile.num_distinct == 1:
        return f"constant: all rows have the same value{' or none' if profile.num_missing else ''}"
    counts_rows = profile.low in (0, 1) and profile.num_rows >= 20  # fewer may be a dose, a time
    if profile.counts_up and (is_index(profile.name) or counts_rows):
        return "an index: it counts the rows"
    if is_index(profile.name) and profile.rows_per_value == 1:
        return "an index: each row has another value"
    return None


def _is_split(profile: Profile) -> bool:
    values = {value.lower() for value in profile.values}
    return (
        is_called(profile.name, _SPLITS)
        and len(values) > 1
        and values <= _SPLIT_VALUES
        and not profile.num_missing
    )


def _are_folds(profile: Profile) -> bool:
    return (
        is_called(profile.name, _FOLDS)
        and 3 <= profile.num_distinct <= MOST_FOLDS
        and not profile.num_missing
    )


def _best_group(profiles: Iterable[Profile], named: Named) -> str | None:
    """Return the column whose values most likely must not straddle splits, if there is one."""
    found: list[tuple[int, str]] = []
    for profile in profiles:
        if named.role_of(profile.name) is not None or _useless(profile) is not None:
            continue
        has_names = profile.kind is Kind.TEXT or (profile.kind is Kind.NUMBER and profile.is_whole)
        repeats = profile.num_distinct >= 5 and profile.rows_per_value >= 2
        if not has_names or not repeats or profile.num_missing:
            continue
        ranks = [rank for rank, word in enumerate(GROUPS) if is_called(profile.name, (word,))]
        if ranks and read_as_chemistry(profile) is None:
            found.append((ranks[0], profile.name))
        elif profile.num_distinct >= FEW and _are_numbered(profile.values):
            found.append((len(GROUPS), profile.name))
    return min(found)[1] if found else None


def _are_numbered(values: Sequence[str]) -> bool:
    """Whether all values are one word with a number behind it: P01, P02, ..."""
    words = {value.rstrip("0123456789") for value in values}
    return len(words) == 1 and all(value[-1].isdigit() for value in values) and words != {""}


def _words(profile: Profile) -> Guess:
    """Return the guess on a column of text that is no SMILES."""
    name, length = profile.name, sum(map(len, profile.values)) / len(profile.values)
    few = profile.num_distinct <= min(MOST_CATEGORIES, max(FEW, profile.num_values // 10))
    if few and profile.rows_per_value >= 2 and length < WORDS_LENGTH * 3:
        return category_guess(profile)
    if length >= WORDS_LENGTH and any(" " in value for value in profile.values[:20]):
        return Guess(
            name,
            Role.IGNORED,
            f"free text, {profile.num_distinct:,} distinct; name it as a string column (kind: text,"
            " with an encoder that reads text) to use it",
        )
    if profile.rows_per_value < 1.05:
        return Guess(name, Role.IGNORED, "names or ids: nearly each row has another one")
    return Guess(
        name,
        Role.IGNORED,
        f"{profile.num_distinct:,} distinct names, too many for categories and no SMILES",
    )
