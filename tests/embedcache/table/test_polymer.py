"""One string for all units of a chain, and never one for two chains.

Parts that start and end with an atom of the backbone can be written in any rotation and any number
of times: so the text itself says which units are of one chain.
"""

from math import lcm
from operator import mul
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcNumRings

from embedcache.table.polymer import polymer_form, unit_form
from embedcache.table.stars import bracket_stars

PARTS = [
    "C",
    "O",
    "N",
    "C(=O)",
    "C(C)",
    "C(F)(F)",
    "c1ccc(cc1)",
    "c1cc(ccc1C)",
    "c1ccc2c(c1)C(=O)N(C2=O)",
    "[Si](C)(C)",
    "C/C=C/C",
    "C/C=C\\C",
    "CC=CC",
    "C#C",
    "[C@H](C)",
    "[C@@H](C)",
    "[C@](F)(Cl)",
    "[C@H]1CC[C@@H](CC1)",
    "[N+](C)([13CH3])",
    "P(=NC)",
    "N=C1C=CC(C=C1)=N",
    "C/N=N/C",
    "C=C1SC(CC1=O)=C",
    "[C@H](/C=C/C)",
    "C([O-])",
]
MOST_RINGS = 12
units_of_parts = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6)


def unit(parts: list[str]) -> str:
    return f"[*]{''.join(parts)}[*]"


@given(units_of_parts, st.integers(0, 5), st.integers(1, 3))
def test_any_cut_and_any_multiple_is_one_string(parts: list[str], start: int, times: int) -> None:
    start %= len(parts)
    elsewhere = (parts[start:] + parts[:start]) * times
    form = polymer_form(unit(parts))
    assert polymer_form(unit(elsewhere)) == form
    assert polymer_form(form) == form
    assert unit_form(form) == form
    assert form.count("[*]") == 2


@given(units_of_parts, st.integers(0, 2**16))
def test_any_order_of_atoms_and_endpoints_is_one_string(parts: list[str], seed: int) -> None:
    text = unit(parts).replace("[*]", "[1*]", 1).replace("[*]", "[2*]", 1)
    (other,) = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(text), 1, randomSeed=seed + 1)
    other = other.replace("[1*]", "[*]").replace("[2*]", "[*]")
    assert polymer_form(other) == polymer_form(unit(parts))


def rings_of(text: str, num_units: int) -> str:
    """The canonical SMILES, without stereo, of so many units closed to a ring.

    It is made bond by bond, and knows nothing of blocks.
    """
    molecule = Chem.MolFromSmiles(text)
    Chem.RemoveStereochemistry(molecule)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    ring, size = Chem.RWMol(), molecule.GetNumAtoms()
    for _ in range(num_units):
        ring.InsertMol(molecule)
    stars = [atom.GetIdx() for atom in ring.GetAtoms() if atom.GetAtomicNum() == 0]
    ends = [ring.GetAtomWithIdx(star).GetNeighbors()[0].GetIdx() for star in stars]
    kind = ring.GetBondBetweenAtoms(stars[0], ends[0]).GetBondType()
    order = [*range(1, 2 * num_units), 0]
    for one, other in zip(order[::2], order[1::2], strict=True):
        ring.AddBond(ends[one], ends[other], kind)
    for star in reversed(stars):
        ring.RemoveAtom(star)
    assert ring.GetNumAtoms() == num_units * (size - 2)
    Chem.SanitizeMol(ring)
    return Chem.MolToSmiles(ring)


def nums_of_units(one: str, other: str) -> list[int]:
    """How many units of each make rings of equally many atoms."""
    sizes = [Chem.MolFromSmiles(text).GetNumAtoms() - 2 for text in (one, other)]
    common = 3 * lcm(*sizes)  # no unit is bound to itself, or twice to another
    return [common // size for size in sizes]


def is_one_chain(one: str, other: str) -> bool:
    """Whether rings of equally many atoms of both are one molecule."""
    nums = nums_of_units(one, other)
    return len({rings_of(text, num) for text, num in zip((one, other), nums, strict=True)}) == 1


def is_quick(one: str, other: str) -> bool:
    """Whether `is_one_chain` takes less than a second.

    The whole ring goes either way through each ring in it, and RDKit lists all shortest rings: 2^18
    of 18 quinoid units, in hours.
    """
    rings = [CalcNumRings(Chem.MolFromSmiles(text)) for text in (one, other)]
    return max(map(mul, rings, nums_of_units(one, other))) <= MOST_RINGS


@given(units_of_parts)
def test_the_chain_is_the_same(parts: list[str]) -> None:
    text = unit(parts)
    assume(is_quick(text, polymer_form(text)))
    assert is_one_chain(text, polymer_form(text))


@given(units_of_parts, units_of_parts)
def test_two_chains_never_become_one(one: list[str], other: list[str]) -> None:
    if polymer_form(unit(one)) == polymer_form(unit(other)):
        assume(is_quick(unit(one), unit(other)))
        assert is_one_chain(unit(one), unit(other))


# The test cases of Ramprasad-Group/canonicalize_psmiles (tests/test_canonicalization.py, README.md)
# and of psmiles (tests/test_canonicalization_and_dimerization.py): each line is one polymer there.
# Their README has `[*]CC(CC([*])C)C` for polypropylene.
PUBLISHED = [
    ["[*]C[*]", "[*]CC[*]", "[*]CCC[*]", "[*]CCCC[*]"],
    ["[*]CCO[*]", "[*]COC[*]", "[*]OCC[*]", "C(C[*])O[*]", "*CCOCCO*", "C(*)COCCO*"],
    ["[*]CC([*])C", "[*]CC(CC([*])C)C", "CC([*])C[*]"],
    ["N(=[*])c1ccc(NC=[*])cc1", "[*]=CNc1ccc(cc1)N=[*]", "[*]NC=Nc1ccc([*])cc1"],
    [
        "C(=[*])(Nc1c(cc(cc1)-c1ccc(NC(=Nc2ccc(N=[*])cc2)C)c(C(=O)O)c1)C(=O)O)C",
        "CC(Nc1c(cc(cc1)-c1cc(C(O)=O)c(NC(C)=Nc2ccc(cc2)N=[*])cc1)C(=O)O)=[*]",
        "[*]=Nc1ccc(N=C(C)Nc2ccc(-c3ccc(NC(=[*])C)c(C(=O)O)c3)cc2C(=O)O)cc1",
    ],
    ["[*]=COCCC=[*]", "[*]=CCCOC=[*]"],
    ["[*]=CCOCC=[*]"],
    ["[*]C=CC(C)(C)C([*])(C)C"],
    [
        r"CC(C)(/C(=C/[*])[*])C",
        r"C(=C\[*])(\[*])C(C)(C)C",
        r"[*]/C=C(\[*])C(C)(C)C",
        r"[*]\C=C(/[*])C(C)(C)C",
    ],
    [r"CC(/C([*])=C\[*])(C)C", r"[*]/C(C(C)(C)C)=C/[*]", r"C(\[*])=C(\C(C)(C)C)[*]"],
    ["c1ccc(cc1)C(C[*])[*]", "C([*])C(c1ccccc1)[*]", "[*]CC(c1ccccc1)[*]"],
    ["C(CCc1c([*])sc([*])c1)CCCO[Si](C)(C)C", "c1([*])sc([*])cc1CCCCCCO[Si](C)(C)C"],
    ["[*]C(F)([*])F", "FC(F)([*])[*]"],
    [
        "[*]c1ccc(-c2ccc(N3C(=O)c4cc5c(cc4C3=O)C(C(F)(F)F)(C(F)(F)F)c3cc4c(cc3O5)C(=O)N([*])C4=O)"
        "cc2C(F)(F)F)c(C(F)(F)F)c1",
        "c1cc([*])cc(c1-c1ccc(N2C(=O)c3cc4c(C(c5c(cc6c(c5)C(=O)N([*])C6=O)O4)(C(F)(F)F)C(F)(F)F)cc3"
        "C2=O)cc1C(F)(F)F)C(F)(F)F",
    ],
    ["[*]C1C=CC([*])CC1"],
    ["[*]C=Cc1sc([*])c(OCCCC)c1OCCCC", "c1(sc(c(c1OCCCC)OCCCC)C=C[*])[*]"],
    ["[*]c1sc(-c2sc(-c3sc([*])c4nccnc34)c3c2OCCO3)c2c1OCCO2"],
    [
        "[*]CC(=O)c5cc(C(=O)Oc1c(Br)cc2c(c1Br)C24OC(=C)c3c(Br)c(O[*])c(Br)cc34)cc(C(C)(C)C)c5",
    ],
    [r"C(\C(CCCOC(=O)/C=C/c1ccccc1)C[*])=C\[*]", r"C(CCOC(=O)/C=C/c1ccccc1)C(/C=C\[*])C[*]"],
    [r"C([*])C/C=C\[*]", r"[*]/C=C\CC[*]", r"C(=C\CC[*])\[*]"],
    # Ramprasad-Group/psmiles#8: there the canonical string of the canonical string is another one
    [
        "[*]c1ccc(Oc2ccc(-c3cc(-c4ccccc4)c4cc(Oc5ccc6nc([*])cc(-c7ccccc7)c6c5)ccc4n3)cc2)cc1",
        "[*]Oc1ccc2nc(-c3ccc(Oc4ccc(-c5cc(-c6ccccc6)c6cc([*])ccc6n5)cc4)cc3)cc(-c3ccccc3)c2c1",
    ],
]


def test_published_polymers_are_one_string_each() -> None:
    forms = [{polymer_form(bracket_stars(text)) for text in texts} for texts in PUBLISHED]
    assert [len(form) for form in forms] == [1] * len(PUBLISHED)
    assert len(set.union(*forms)) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("texts", "num_chains"),
    [
        (["[*]C[C@H](C)[*]", "[*]C[C@@H](C)[*]", "[*][C@H](C)C[*]"], 1),  # isotactic, read back
        (["[*]C[C@H](C)[*]", "[*]C[C@H](C)C[C@@H](C)[*]", "[*]CC(C)[*]"], 3),  # syndio-, atactic
        (["[*]O[C@@H](C)C(=O)[*]", "[*]O[C@H](C)C(=O)[*]"], 2),  # D and L
        (["[*]C(=O)[C@H](C)O[*]", "[*][C@@H](C)C(=O)O[*]", "[*]O[C@@H](C)C(=O)[*]"], 1),
        (["[*]C/C=C/C[*]", r"[*]C/C=C\C[*]", "[*]CC=CC[*]"], 3),
        (["[*]C/C=C/C[*]", "[*]/C=C/CC[*]", "[*]CC/C=C/[*]"], 1),
        (["[*][C@H](C)[*]", "[*][C@@H](C)[*]"], 1),
        (["[*][C@H](C)[*]", "[*]C(C)[*]", "[*][C@H](C)[C@@H](C)[*]"], 3),
        (["[*][13CH2]C[*]", "[*]CC[*]", "[*][13CH2][13CH2][*]"], 3),
        (["[*]C=C[*]", "[*]=CC=[*]", "[*]C=CC=C[*]"], 1),
        (["[*]CCO[*]", "[*]CCOCCCO[*]", "[*]CCOCCOCCCO[*]"], 3),
        (["[*]CN=C1C=CC=CN1[*]", "[*]=C1C=CC=CN1CN=[*]", "[*]n1ccccc1=NC[*]"], 1),
        (["[*]CC([*])C", "[*]CC(C)C(C)C[*]"], 2),  # head to tail, head to head
    ],
)
def test_stereo_isotopes_and_order_are_kept(texts: list[str], num_chains: int) -> None:
    assert len({polymer_form(text) for text in texts}) == num_chains


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("[*]C(=O)OC([*])C", "[*]OC(C)C([*])=O"),
        ("[*]=CC=[*]", "[*]C=C[*]"),
        ("[*]=C=[*]", "[*]=C=[*]"),  # no single bond to cut
        ("[*]c1ccc([*])cc1", "[*]c1ccc([*])cc1"),  # rings stay whole
    ],
)
def test_single_bonds_are_cut_and_no_rings(text: str, form: str) -> None:
    assert polymer_form(text) == form


def test_stereo_that_a_cut_could_lose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not tetrahedral.* set canonicalize: true"):
        polymer_form("[*][Pt@SP1](F)(Cl)[*]")


@pytest.mark.slow
def test_real_polymers(shared_data: Path) -> None:
    """What merges of published strings is one chain, and a form is its own form."""
    lines = (shared_data / "psmiles" / "merged_unique_psmiles.txt").read_text().splitlines()[::4]
    spellings: dict[str, list[str]] = {}
    for line in lines:
        spellings.setdefault(polymer_form(line), []).append(line)
    for form, texts in spellings.items():
        assert polymer_form(form) == form
        for text in texts if len(texts) > 1 else ():
            assert is_one_chain(form, text)
    assert len(spellings) < len(lines)
