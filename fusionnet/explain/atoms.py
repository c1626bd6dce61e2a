"""From the tokens of a SMILES to its atoms.

Characters are those of an atom (a bracket atom with all that is in its brackets), or of the number
that closes a ring, which belongs to the atom before it, or of neither: bonds, branches and dots. A
token's share goes in equal parts to the atoms whose characters it has; that of a token without any
is told apart, and drawn nowhere.

Axes: L tokens, A atoms.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rdkit import Chem, rdBase

# of the SMILES grammar: a bracket atom, an atom without brackets, the number of a ring, all else
_PARTS = re.compile(
    r"(?P<atom>\[[^\]]*\]|Cl|Br|[BCNOPSFIbcnops*])|(?P<ring>%\([0-9]+\)|%[0-9]{2}|[0-9])|."
)
_SYMBOL = re.compile(r"\[?\d*(?P<symbol>\*|#\d+|[A-Z][a-z]?|[a-z]{1,2})")


class Structure(NamedTuple):
    """A molecule whose atoms are in the order of the string, and each character's atom."""

    molecule: Chem.Mol
    atom_of_character: list[int]  # -1 for none


def structure_of(text: str) -> Structure | None:
    """Return the structure of a SMILES; None where it cannot be told which atom is where."""
    options: Any = Chem.SmilesParserParams()  # RDKit's stubs take a member for the whole
    options.removeHs = False
    with rdBase.BlockLogs():
        molecule: Any = Chem.MolFromSmiles(text, options)
    if molecule is None:
        return None
    of_character, symbols = [-1] * len(text), []
    for part in _PARTS.finditer(text):
        if part["atom"]:
            symbols.append(part["atom"])
        if (part["atom"] or part["ring"]) and symbols:
            of_character[slice(*part.span())] = [len(symbols) - 1] * len(part[0])
    atoms = list(molecule.GetAtoms())
    if len(atoms) != len(symbols) or not all(map(_is_of, symbols, atoms)):
        return None
    return Structure(molecule, of_character)


def _is_of(written: str, atom: Chem.Atom) -> bool:
    """Return whether an atom is the one that is written."""
    found = _SYMBOL.match(written)
    if found is None:
        return False
    symbol = found["symbol"]
    if symbol.startswith("#"):
        return bool(atom.GetAtomicNum() == int(symbol[1:]))
    own: str = atom.GetSymbol()
    return own.lower() == symbol.lower()


class AtomShares(NamedTuple):
    """What atoms have, and what is on none, by the token's text."""

    atoms: Float[np.ndarray, " A"]
    rest: dict[str, float]


def shares_of_atoms(
    structure: Structure,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[str],
    shares: Float[np.ndarray, " L"],
) -> AtomShares:
    """Return the shares of tokens by atom; atoms and rest add up to what the tokens have."""
    atoms = np.zeros(structure.molecule.GetNumAtoms())
    rest: dict[str, float] = {}
    for (start, end), piece, share in zip(spans, pieces, shares.tolist(), strict=True):
        own = sorted({*structure.atom_of_character[start:end]} - {-1})
        if own:
            atoms[own] += share / len(own)
        elif share:
            rest[piece] = rest.get(piece, 0.0) + share
    return AtomShares(atoms, rest)
