"""What RDKit computes of a string: its 2D descriptors, and counts of Morgan's fingerprints.

A molecule is looked at once, a repeat unit in two views: as it is, its endpoints atoms of their
own; and as two units in a row, whose free ends are capped, so that what lies across the bond
between units counts, and no descriptor stumbles over an endpoint (partial charges are not defined
for one). Of several fragments each unit is doubled so, and each of the others counts twice.

What is not a number is NaN, which stands for missing: what RDKit cannot compute, infinity, what is
too large for float32, and everything of what is no molecule (the string that a null stands for may
be anything). `Ipc` is left out, since it grows with the factorial of the atoms and overflows;
`AvgIpc` says the same. Other processes import this file (`computing`), so it imports little.

Axes: S strings, K features.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from embedcache.config.features import FeatureKind
from embedcache.table.polymer import dimer_form
from embedcache.table.psmiles import parts_of

MORGAN_COUNTS, MORGAN_RADIUS = 1024, 2
_LEFT_OUT = {"Ipc"}
_CAPS = {Chem.BondType.SINGLE: 1}  # the free end of a unit becomes H, one of several bonds a carbon
_VIEWS = {"psmiles": ("unit", "dimer"), "smiles": ("",)}
_MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=MORGAN_RADIUS, fpSize=MORGAN_COUNTS)


@lru_cache(maxsize=8)
def feature_names(feature: FeatureKind, kind: str) -> tuple[str, ...]:
    """Return the names of a feature's columns for strings of a kind."""
    names = [str(count) for count in range(MORGAN_COUNTS)]
    if feature == "rdkit":
        names = descriptor_names()
    return tuple(
        f"{feature} {view}: {name}".replace(" :", ":") for view in _VIEWS[kind] for name in names
    )


def descriptor_names() -> list[str]:
    """Return the names of RDKit's descriptors, in its order."""
    return [name for name, _ in Descriptors.descList if name not in _LEFT_OUT]


def features_of(
    texts: Sequence[str], kind: str, feature: FeatureKind
) -> Float32[np.ndarray, "S K"]:
    """Return a feature of prepared strings of a kind; its columns are `feature_names`."""
    values = np.full((len(texts), len(feature_names(feature, kind))), np.nan)
    with rdBase.BlockLogs():
        for row, text in zip(values, texts, strict=True):
            views = [computed(feature, molecule) for molecule in _molecules(text, kind)]
            row[:] = np.concatenate(views)
    return as_float32(values)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Return numbers as they are kept: NaN where they are not finite, or too large for float32."""
    with np.errstate(over="ignore"):
        kept = values.astype(np.float32)
    kept[~np.isfinite(kept)] = np.nan
    return kept


def computed(feature: FeatureKind, molecule: Chem.Mol | None) -> np.ndarray:
    """Return one feature's numbers on one molecule, NaN where there is none."""
    if feature == "morgan":
        if molecule is None:
            return np.full(MORGAN_COUNTS, np.nan)
        return _MORGAN.GetCountFingerprintAsNumPy(molecule).astype(np.float64)
    names = descriptor_names()
    if molecule is None:
        return np.full(len(names), np.nan)
    found = Descriptors.CalcMolDescriptors(molecule, missingVal=np.nan)
    return np.array([found[name] for name in names], dtype=np.float64)


def _molecules(text: str, kind: str) -> list[Chem.Mol | None]:
    """Return the views of a string, None for what is no molecule."""
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms():
        return [None] * len(_VIEWS[kind])
    return [molecule] if kind == "smiles" else [molecule, _dimer(text)]


def _dimer(text: str) -> Chem.Mol | None:
    """Return two units in a row with capped ends, other fragments twice; None for no unit."""
    parts = parts_of(text) if "." in text else [text]
    if any(part.count("[*]") not in (0, 2) for part in parts):
        return None
    doubled = [dimer_form(part) if "[*]" in part else f"{part}.{part}" for part in parts]
    molecule = Chem.MolFromSmiles(".".join(doubled))
    return None if molecule is None else capped(Chem.RWMol(molecule))


def capped(molecule: Chem.RWMol) -> Chem.Mol:
    """Return a molecule whose endpoints are hydrogens, or carbons where they have several bonds."""
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() == 0:
            (bond,) = atom.GetBonds()
            atom.SetAtomicNum(_CAPS.get(bond.GetBondType(), 6))
            atom.SetNoImplicit(False)
    Chem.SanitizeMol(molecule)
    hydrogens: Any = Chem.RemoveHsParameters()
    hydrogens.removeDefiningBondStereo = True  # of =C/[*] nothing but =CH2 is left
    # read again: what is no centre any more would keep its marks, which descriptors see
    return Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(molecule, hydrogens)))
