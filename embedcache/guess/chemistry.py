"""Which columns hold repeat units, molecules or words, by what RDKit can read of their values."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedcache.config.columns import StringColumn
from embedcache.guess.profile import Profile
from embedcache.guess.words import is_called
from embedcache.table.psmiles import prepare_string

MOST_PARSED = 2_000  # distinct values, evenly spread over all of them; RDKit reads 5,000 in 1 s
MOSTLY = 0.5  # of the distinct values, for a column to be one of SMILES with faults
_NAMES = ("smiles", "psmiles", "smi", "bigsmiles", "selfies", "structure", "monomer", "polymer")
_METALS = {"[Cu]": "[*]", "[Au]": "[*]"}  # endpoints of repeat units in some public tables
_SIGNS = set("()=#[]*@+")  # words have none of them
_BOND_OR_RING = set("=#123456789")


@dataclass(frozen=True)
class Reading:
    """What a column's strings are, and the share of its distinct values that can be read so."""

    kind: str  # psmiles, smiles
    replace: dict[str, str]
    share: float
    num_tried: int

    @property
    def in_words(self) -> str:
        """The share, in words."""
        what = "PSMILES" if self.kind == "psmiles" else "SMILES"
        metals = " once [Cu] and [Au] are written [*]" if self.replace else ""
        all_of = "all" if self.share == 1 else f"{100 * self.share:.1f} %"
        return f"{all_of} of {self.num_tried:,} distinct values are {what}{metals}"


def read_as_chemistry(profile: Profile) -> Reading | None:
    """Return how a column's values can be read by RDKit, or None where most of them cannot.

    Words such as CO, NO or POSS are SMILES too: values without any sign that words lack count only
    in a column that is called so.
    """
    tried = _spread(profile.values, MOST_PARSED)
    if not tried or not (_has_signs(tried) or is_called(profile.name, _NAMES)):
        return None
    smiles = Reading("smiles", {}, _share(tried, "smiles", {}), len(tried))
    ways: list[dict[str, str]] = [{}]
    if any("[Cu]" in value and "[Au]" in value for value in tried):
        ways.insert(0, _METALS)
    units = [Reading("psmiles", way, _share(tried, "psmiles", way), len(tried)) for way in ways]
    # repeat units are SMILES too: the narrower kind goes first, with a few faults more
    found = [each for each in units if each.share >= max(MOSTLY, 0.8 * smiles.share)]
    if not found and smiles.share >= MOSTLY:
        found = [smiles]
    return found[0] if found else None


def _share(values: Sequence[str], kind: str, replace: dict[str, str]) -> float:
    """Return the share of the values that a string column of this kind accepts."""
    column = StringColumn.model_validate(
        {"name": "tried", "column": "tried", "kind": kind, "replace": replace}
    )
    accepted = 0
    for value in values:
        try:
            prepare_string(value, column)
        except ValueError:
            continue
        accepted += 1
    return accepted / len(values)


def _has_signs(values: Sequence[str]) -> bool:
    """Whether at least half of the values have a sign that a SMILES has and a word lacks."""
    signed = sum(
        not _SIGNS.isdisjoint(value) or (len(value) > 3 and _digits_bind(value))
        for value in values
        if " " not in value
    )
    return 2 * signed >= len(values)


def _digits_bind(value: str) -> bool:
    """Whether a digit stands inside, at least twice, as ring bonds do: c1ccccc1."""
    digits = [sign for sign in value if sign in _BOND_OR_RING]
    return value[0].isalpha() and any(digits.count(sign) == 2 for sign in set(digits))


def _spread(values: Sequence[str], most: int) -> Sequence[str]:
    """Return at most so many values, evenly spread."""
    if len(values) <= most:
        return values
    return [values[number * len(values) // most] for number in range(most)]
