"""The 24 hydrogels: names, categories, property ranges, proxy repeat units, chemical effects.

Some hydrogels have no single repeat unit, and two published strings do not parse: `polymers.csv`
holds our proxy PSMILES, one per hydrogel, 21 of them distinct (four GelMA concentrations share
one). Chemical effects are functions of RDKit descriptors of the repeat unit, not of its name, so
that polymers of like structure act alike and an unseen one is predictable in principle. Their signs
follow what is known (hydrogen bonds and charge bind tissue and cells, polyethylene glycol does
neither, quaternary ammonium, conjugated chains and acrylates irritate); their sizes are ours, not
measurements.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import polars as pl
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors


@dataclass(frozen=True)
class Chemistry:
    """What a repeat unit's structure does, each about -1 to 1."""

    bioactivity: float  # pro-regenerative: hydrogen bonding and polarity, lessened by aromaticity
    adhesion: float  # grip on wet tissue: charge, and donors that flexible chains bring to it
    irritation: float  # inflammatory: cationic charge, aromatics, residual acrylates


@dataclass(frozen=True)
class Polymer:
    """One hydrogel.

    Ranges are (low, high) of modulus in kPa, degradation half-life in days, conductivity in S/m.
    """

    name: str
    category: str
    psmiles: str
    modulus_kPa: tuple[float, float]
    t50_days: tuple[float, float]
    conductivity_S_m: tuple[float, float]
    chemistry: Chemistry


@cache
def load_polymers() -> tuple[Polymer, ...]:
    """Return the 24 hydrogels in the order of the published list."""
    with resources.files("jobs.cohort").joinpath("polymers.csv").open("rb") as file:
        rows = pl.read_csv(file).to_dicts()
    return tuple(
        Polymer(
            name=row["polymer_name"],
            category=row["polymer_category"],
            psmiles=row["proposed_psmiles"],
            modulus_kPa=(row["E_kPa_min"], row["E_kPa_max"]),
            t50_days=(row["t50_days_min"], row["t50_days_max"]),
            conductivity_S_m=(row["cond_S_m_min"], row["cond_S_m_max"]),
            chemistry=chemistry_of(row["proposed_psmiles"]),
        )
        for row in rows
    )


def chemistry_of(psmiles: str) -> Chemistry:
    """Return the chemical effects of a repeat unit.

    They come from descriptors per heavy atom, so that they do not grow with its size.
    """
    molecule = Chem.MolFromSmiles(psmiles)
    heavy = max(1, sum(atom.GetAtomicNum() > 1 for atom in molecule.GetAtoms()))
    polarity = rdMolDescriptors.CalcTPSA(molecule) / heavy  # A^2 per heavy atom, 0 to 8
    donors = rdMolDescriptors.CalcNumHBD(molecule) / heavy
    flexibility = rdMolDescriptors.CalcNumRotatableBonds(molecule) / heavy
    aromatic = sum(atom.GetIsAromatic() for atom in molecule.GetAtoms()) / heavy
    cationic = sum(max(0, atom.GetFormalCharge()) for atom in molecule.GetAtoms()) / heavy
    charged = sum(abs(atom.GetFormalCharge()) for atom in molecule.GetAtoms()) / heavy
    acrylate = len(molecule.GetSubstructMatches(Chem.MolFromSmarts("C=CC(=O)"))) / heavy
    oily = Descriptors.MolLogP(molecule) / heavy  # type: ignore[attr-defined]  # made at import
    return Chemistry(
        bioactivity=float(np.tanh(3.6 * (donors - 0.13) + 0.2 * (polarity - 4.2) - 0.7 * aromatic)),
        adhesion=float(np.tanh(-0.6 + 8.0 * donors * (0.5 + flexibility) + 9.0 * charged)),
        irritation=float(
            np.tanh(-0.6 + 9.0 * cationic + 1.2 * aromatic + 9.0 * acrylate + 1.5 * oily)
        ),
    )
