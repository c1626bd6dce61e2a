"""Known polymers cut into fragments where chemists make bonds (BRICS, Degen et al. 2008).

A fragment's stars say what it may be bound to: those of a repeat unit are endpoints, the others
have BRICS's label of the bond that was cut as isotope. Double bonds (label 7) are not cut, and
stereo is left out, since a new neighbour could turn it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from rdkit import Chem, rdBase
from rdkit.Chem import BRICS

MOST_ATOMS = 40  # of a fragment, without hydrogen; larger ones are whole polymers, mostly ladders
MOST_STARS = 4
_DOUBLE = "7"


class Fragment(NamedTuple):
    """A fragment as SMILES, and the isotopes of its stars: 0 for an endpoint, or BRICS's label."""

    smiles: str
    labels: tuple[int, ...]

    @property
    def num_endpoints(self) -> int:
        """How many of its stars are endpoints of a repeat unit."""
        return self.labels.count(0)

    @property
    def num_open(self) -> int:
        """How many of its stars are to be bound to other fragments."""
        return len(self.labels) - self.num_endpoints


class Pool(NamedTuple):
    """K distinct fragments in the order of their SMILES, and what is drawn by.

    `weight` is the root of how many polymers have a fragment: frequent ones come more often, and do
    not crowd out the others. `fits[label]` are those with a star that a star of this label may be
    bound to.
    """

    fragments: tuple[Fragment, ...]
    weight: Float[np.ndarray, " K"]
    num_endpoints: Int64[np.ndarray, " K"]
    num_open: Int64[np.ndarray, " K"]
    fits: Mapping[int, Bool[np.ndarray, " K"]]


def fragments_of(text: str) -> tuple[str, ...]:
    """Return the fragments of a repeat unit as SMILES; one without bonds to cut is its own."""
    with rdBase.BlockLogs():
        unit = Chem.MolFromSmiles(text)
        Chem.RemoveStereochemistry(unit)
        bonds, labels = [], []
        for (begin, end), (of_begin, of_end) in BRICS.FindBRICSBonds(unit):
            if _DOUBLE in of_begin or _DOUBLE in of_end:
                continue
            bond = unit.GetBondBetweenAtoms(begin, end)
            forward = bond.GetBeginAtomIdx() == begin
            bonds.append(bond.GetIdx())
            # RDKit's order: the label of the star in place of the bond's begin, then of its end
            pair = (int(of_end), int(of_begin))
            labels.append(pair if forward else pair[::-1])
        if bonds:
            unit = Chem.FragmentOnBonds(unit, bonds, dummyLabels=labels)
        parts = Chem.GetMolFrags(unit, asMols=True, sanitizeFrags=False)
        return tuple(sorted({Chem.MolToSmiles(part) for part in parts}))


def pool_of(fragments: Iterable[Iterable[str]]) -> Pool:
    """Return the pool of the fragments of polymers.

    Left out are those that are too large, and those with nothing to bind.
    """
    counts = Counter(smiles for of_polymer in fragments for smiles in of_polymer)
    kept = [each for each in map(_read, sorted(counts)) if each is not None]
    known = {label for fragment in kept for label in fragment.labels if label}
    fits = {
        label: np.array([bool(partners()[label] & set(each.labels)) for each in kept], dtype=bool)
        for label in sorted(known)
    }
    return Pool(
        fragments=tuple(kept),
        weight=np.sqrt([counts[each.smiles] for each in kept], dtype=np.float64),
        num_endpoints=np.array([each.num_endpoints for each in kept], dtype=np.int64),
        num_open=np.array([each.num_open for each in kept], dtype=np.int64),
        fits=fits,
    )


def _read(smiles: str) -> Fragment | None:
    """Return a fragment, None for one that is of no use."""
    with rdBase.BlockLogs():
        molecule: Chem.Mol | None = Chem.MolFromSmiles(smiles)
    if molecule is None:  # an atom beyond a cut had made its ring aromatic
        return None
    labels = tuple(a.GetIsotope() for a in molecule.GetAtoms() if a.GetAtomicNum() == 0)
    fragment = Fragment(smiles, labels)
    is_useful = (
        fragment.num_open > 0
        and fragment.num_endpoints <= 2
        and len(labels) <= MOST_STARS
        and 0 < molecule.GetNumAtoms() - len(labels) <= MOST_ATOMS
    )
    return fragment if is_useful else None


@cache
def partners() -> Mapping[int, frozenset[int]]:
    """Return for each BRICS label the labels that it is bound to, by single bonds."""
    pairs = {
        (int(one), int(other))
        for group in BRICS.reactionDefs
        for one, other, _ in group
        if _DOUBLE not in one and _DOUBLE not in other
    }
    both = pairs | {pair[::-1] for pair in pairs}
    return {
        label: frozenset(other for one, other in both if one == label) for label, _ in sorted(both)
    }
