"""The Bemis-Murcko scaffold of a string: its rings and what links them, without side chains.

Bemis and Murcko, J. Med. Chem. 39, 2887 (1996), as RDKit computes it. For a repeat unit it is that
of the endless chain: its two endpoints are bound to each other, so that the backbone is a ring. In
an endless chain with a ring anywhere, the backbone links that ring to the next one, and so belongs
to the scaffold; polystyrene and PET are then two, though each unit has one benzene. Dropping the
stars instead would give another scaffold for another cut of the same chain: a diphenyl ether cut
at its oxygen is a biphenyl. A chain without rings, like any acyclic molecule, has no scaffold.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from tqdm import tqdm

MANY = 5_000  # strings; fewer take well under two seconds and need no progress bar


def scaffold_groups(texts: Sequence[str]) -> Int64[np.ndarray, " S"]:
    """Return a number for the scaffold of each string, equal where scaffolds are.

    Strings without a scaffold have a number each. Numbers are in order of first occurrence.
    """
    hidden = None if len(texts) > MANY else True
    with rdBase.BlockLogs():
        found = [scaffold(text) for text in tqdm(texts, desc="scaffolds", disable=hidden)]
    number: dict[tuple[str, str], int] = {}
    keys = [
        ("scaffold", shape) if shape else ("string", text)
        for text, shape in zip(texts, found, strict=True)
    ]
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


def scaffold(text: str) -> str:
    """Return the scaffold of a SMILES or PSMILES as SMILES; "" where it has none.

    That of a string of several parts is that of its parts.
    """
    molecule: Chem.Mol | None = Chem.MolFromSmiles(text)
    if molecule is None:  # what a null stands for may be anything
        return ""
    parts = {_of_part(part) for part in Chem.GetMolFrags(molecule, asMols=True)}
    return ".".join(sorted(parts - {""}))


def _of_part(molecule: Chem.Mol) -> str:
    """Return the scaffold of one molecule or repeat unit."""
    if not molecule.GetRingInfo().NumRings():
        return ""
    Chem.RemoveStereochemistry(molecule)
    ends = [atom for atom in molecule.GetAtoms() if _is_end(atom)]
    if len(ends) == 2:
        molecule = _endless(molecule, ends[0], ends[1])
    return Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(molecule))


def _is_end(atom: Chem.Atom) -> bool:
    return atom.GetAtomicNum() == 0 and atom.GetDegree() == 1


def _endless(unit: Chem.Mol, first: Chem.Atom, last: Chem.Atom) -> Chem.Mol:
    """Return a repeat unit whose backbone is closed to a ring.

    Where that would be a ring of two atoms or one, the endpoints stay in it.
    """
    closed = Chem.RWMol(unit)
    left, right = (end.GetNeighbors()[0].GetIdx() for end in (first, last))
    if left == right or unit.GetBondBetweenAtoms(left, right) is not None:
        closed.AddBond(first.GetIdx(), last.GetIdx(), Chem.BondType.SINGLE)
    else:
        closed.AddBond(left, right, first.GetBonds()[0].GetBondType())
        for end in sorted((first.GetIdx(), last.GetIdx()), reverse=True):
            closed.RemoveAtom(end)
    Chem.SanitizeMol(closed)
    return closed.GetMol()
