"""One string for a polymer chain, whichever of its repeat units is written.

`[*]CCO[*]`, `[*]OCC[*]`, `[*]COC[*]` and `[*]CCOCCO[*]` are units of one chain, cut elsewhere, read
from the other end, or taken twice. A chain falls apart at each bond of its backbone that is in no
ring: what lies between two such bonds is a block, and the chain is a cyclic word of blocks. Of this
word the smallest period is taken, and of all its rotations in both directions the least. The unit
is then written from these blocks alone, so that equal words give equal strings.

A block's ends are stars that say which is which (isotope 1: before, 2: behind). So a centre between
two like neighbours stays one: `[*][C@H](C)[*]` is isotactic, which is more than `[*]C([*])C` says.
A double bond whose sides are known (E, Z) is no cut, since a star could not say the side.

The published way (Ramprasad-Group/canonicalize_psmiles) closes the unit to a ring and opens it at a
bond that RDKit's order of the ring's atoms names. There a doubled unit with a ring in it stays
doubled, and some strings give another one at the second try (Ramprasad-Group/psmiles#8).
"""

import re
from functools import lru_cache
from itertools import pairwise

from rdkit import Chem
from rdkit.Chem import rdqueries

from embedcache.table.stars import bracket_stars

BEFORE, BEHIND = 1, 2  # isotopes of a block's stars
_ENDPOINT = "[*]"
_ENTRY, _EXIT = f"[{BEFORE}*]", f"[{BEHIND}*]"
_LABEL = re.compile(r"\[(\d+)\*\]")
_MULTIPLE_ENTRY = re.compile(r"[=#]\[1\*\]|\[1\*\][=#]")
_CUTS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
_KEPT_TAGS = (
    Chem.ChiralType.CHI_UNSPECIFIED,
    Chem.ChiralType.CHI_TETRAHEDRAL_CW,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW,
)
# E and Z are what RDKit calls the sides of the neighbours that its stereo atoms are
_SIDES = {
    Chem.BondStereo.STEREOE: Chem.BondStereo.STEREOTRANS,
    Chem.BondStereo.STEREOZ: Chem.BondStereo.STEREOCIS,
    Chem.BondStereo.STEREOTRANS: Chem.BondStereo.STEREOTRANS,
    Chem.BondStereo.STEREOCIS: Chem.BondStereo.STEREOCIS,
}
_STAR = rdqueries.AtomNumEqualsQueryAtom(0)
Word = tuple[str, ...]


def unit_form(text: str) -> str:
    """Return a repeat unit in RDKit's canonical form: its atoms in an order of their own.

    `text` is one fragment with two endpoints `[*]`. RDKit takes them for the same, and would drop
    the stereo of a centre between them: where there is stereo, they are told apart.
    """
    if not any(mark in text for mark in "@/\\"):
        return bracket_stars(Chem.MolToSmiles(Chem.MolFromSmiles(text)))
    ways = ((_ENTRY, _EXIT), (_EXIT, _ENTRY))
    return min(_unlabelled(Chem.MolToSmiles(_labelled(text, ends))) for ends in ways)


def polymer_form(text: str) -> str:
    """Return the repeat unit that stands for all units of the same chain.

    `text` is one fragment with two endpoints `[*]`. Raises ValueError with a reason for stereo that
    cutting the chain elsewhere could lose.
    """
    return unit_form(_joined(_least(_blocks(text))))


def dimer_form(text: str) -> str:
    """Return two units in a row, the second bound to the first as units are in the chain.

    `text` is one fragment with two endpoints `[*]`, and so is what comes back.
    """
    unit = Chem.MolToSmiles(_labelled(text, (_ENTRY, _EXIT)))
    return _joined((unit, unit))


def _labelled(text: str, ends: tuple[str, str]) -> Chem.Mol:
    """Return the molecule of a unit whose first and second endpoint are these labelled stars."""
    for label in ends:
        text = text.replace(_ENDPOINT, label, 1)
    return Chem.MolFromSmiles(text)


def _unlabelled(text: str) -> str:
    return _LABEL.sub(_ENDPOINT, text)


def _blocks(text: str) -> Word:
    """Return the blocks of a unit from its first endpoint to its second, each as SMILES."""
    unit = _labelled(text, (_ENTRY, _EXIT))
    if "@" in text and any(atom.GetChiralTag() not in _KEPT_TAGS for atom in unit.GetAtoms()):
        raise ValueError(
            "has stereo that is not tetrahedral: canonicalize: polymer cannot keep it where it cuts"
            " the chain elsewhere; set canonicalize: true"
        )
    (start,), (end,) = _stars(unit, BEFORE), _stars(unit, BEHIND)
    path = Chem.GetShortestPath(unit, start, end)
    bonds, labels = [], []
    for left, right in pairwise(path[1:-1]):
        bond = unit.GetBondBetweenAtoms(left, right)
        if _is_cut(bond):
            bonds.append(bond.GetIdx())
            # number by number, block by block: odd before a block, even behind it
            behind, before = 2 * len(bonds), 2 * len(bonds) + 1
            # RDKit's order: the label of the star at the bond's end, then of that at its begin
            forward = bond.GetBeginAtomIdx() == left
            labels.append((before, behind) if forward else (behind, before))
    unit.GetAtomWithIdx(end).SetIsotope(2 * len(bonds) + 2)
    if bonds:
        unit = Chem.FragmentOnBonds(unit, bonds, dummyLabels=labels)
    blocks = Chem.MolToSmiles(unit).split(".")
    return tuple(_settled(_LABEL.sub(_renumbered, block)) for block in sorted(blocks, key=_place))


def _place(block: str) -> int:
    """Return which block of its unit this is, by the number of a star."""
    return (int(_LABEL.findall(block)[0]) - 1) // 2


def _renumbered(label: re.Match[str]) -> str:
    """Return a star of one block of a unit as that of a block by itself."""
    return _ENTRY if int(label[1]) % 2 else _EXIT


def _stars(molecule: Chem.Mol, isotope: int) -> list[int]:
    """Return the stars with this label, in the order of the molecule's atoms."""
    stars = molecule.GetAtomsMatchingQuery(_STAR)
    return [star.GetIdx() for star in stars if star.GetIsotope() == isotope]


def _is_cut(bond: Chem.Bond) -> bool:
    """Return whether the chain may be cut at this bond of the shortest way through a unit."""
    return not bond.IsInRing() and bond.GetBondType() in _CUTS and bond.GetStereo() not in _SIDES


@lru_cache(maxsize=100_000)
def _settled(block: str) -> str:
    """Return a block's SMILES as RDKit writes it after reading it again.

    An atom beyond a cut may decide whether a ring is aromatic (`O=c1cccc[nH]1`), a star does not:
    read again, a ring is the same wherever the chain was cut.
    """
    return Chem.MolToSmiles(Chem.MolFromSmiles(block))


@lru_cache(maxsize=100_000)
def _backwards(block: str) -> str:
    """Return a block as it is met from the other end of the chain."""
    swapped = block.replace(_ENTRY, _ENDPOINT).replace(_EXIT, _ENTRY).replace(_ENDPOINT, _EXIT)
    return Chem.MolToSmiles(Chem.MolFromSmiles(swapped))


def _least(word: Word) -> Word:
    """Return the least rotation of the smallest period of a cyclic word, in either direction.

    Rotations that cut a single bond come before those that cut a double or triple one.
    """
    word = _period(word)
    both = (word, tuple(_backwards(block) for block in reversed(word)))
    rotations = [way[start:] + way[:start] for way in both for start in range(len(way))]
    return min(
        rotations, key=lambda rotation: (bool(_MULTIPLE_ENTRY.search(rotation[0])), rotation)
    )


def _period(word: Word) -> Word:
    """Return the shortest word of which this one is a repetition."""
    length = len(word)
    return next(
        word[:period]
        for period in range(1, length + 1)
        if length % period == 0 and word[:period] * (length // period) == word
    )


def _joined(word: Word) -> str:
    """Return the unit of these blocks, one bound to the next.

    RDKit's `molzip` would do it, but loses the sides of some double bonds, at random.
    """
    text = ".".join(word)
    unit = Chem.RWMol(Chem.MolFromSmiles(text))
    sides = _sides(unit) if "/" in text else []
    entries, exits = _stars(unit, BEFORE), _stars(unit, BEHIND)
    instead: dict[int, int] = {}  # of each star that goes, the atom that comes
    for before, behind in zip(exits, entries[1:], strict=False):
        _bind(unit, before, behind, instead)
    for begin, end, stereo, one, other in sides:
        bond = unit.GetBondBetweenAtoms(begin, end)
        bond.SetStereoAtoms(instead.get(one, one), instead.get(other, other))
        bond.SetStereo(stereo)
    if sides:
        for bond in unit.GetBonds():  # the marks / and \\ of before
            bond.SetBondDir(Chem.BondDir.NONE)
        Chem.SetDoubleBondNeighborDirections(unit)
    unit.BeginBatchEdit()
    for star in instead:
        unit.RemoveAtom(star)
    unit.CommitBatchEdit()
    return _unlabelled(Chem.MolToSmiles(unit))


def _sides(molecule: Chem.Mol) -> list[tuple[int, int, Chem.BondStereo, int, int]]:
    """Return the double bonds with known sides: their atoms, the side, and whose side it is."""
    found = []
    for bond in molecule.GetBonds():
        if bond.GetStereo() in _SIDES:
            one, other = bond.GetStereoAtoms()
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            found.append((*ends, _SIDES[bond.GetStereo()], one, other))
    return found


def _bind(unit: Chem.RWMol, before: int, behind: int, instead: dict[int, int]) -> None:
    """Bind the atom at the star `before` to that at the star `behind`, in place of the stars.

    The stars stay, unbound, and are noted in `instead` with the atoms that replace them.
    """
    (left,), (right,) = (unit.GetAtomWithIdx(star).GetNeighbors() for star in (before, behind))
    instead[before], instead[behind] = right.GetIdx(), left.GetIdx()
    kind = unit.GetBondBetweenAtoms(left.GetIdx(), before).GetBondType()
    unit.AddBond(left.GetIdx(), right.GetIdx(), kind)
    for atom, star in ((left, before), (right, behind)):
        # handedness is told by the order of an atom's bonds, and the new one is the last of them
        order = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
        num_passed = len(order) - 2 - order.index(star)
        if num_passed % 2:
            atom.InvertChirality()
        unit.RemoveBond(atom.GetIdx(), star)
