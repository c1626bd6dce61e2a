"""Shares of tokens become shares of atoms, and nothing is lost on the way."""

import numpy as np
import pytest
from shared_fixtures import TINY_STRINGS

from fusionnet.explain.atoms import shares_of_atoms, structure_of
from fusionnet.explain.drawing import Panel, colour_of, drawn_structure
from jobs.cohort.polymers import load_polymers

TRICKY = [
    *TINY_STRINGS,
    "[*]C[C@H]1CC%12=C(Cl)C%12C1[*]",
    "[2H]C([2H])Br.[Na+].[O-]S(=O)(=O)c1cc[nH]c1",
    "[*]/C=C/[Si](C)(C)[*]",
    "C[se]C.[CH3:7]O",
    "[H][H]",
    "*C*",
]


@pytest.mark.parametrize("text", TRICKY)
def test_each_atoms_characters_are_its_own(text: str) -> None:
    found = structure_of(text)
    if "[se]C" in text:
        assert found is None, "RDKit reads no such string"
        return
    assert found is not None
    for atom in found.molecule.GetAtoms():
        own = "".join(
            letter
            for letter, owner in zip(text, found.atom_of_character, strict=True)
            if owner == atom.GetIdx()
        )
        assert atom.GetSymbol().lower() in own.lower()
    assert {*found.atom_of_character} - {-1} == {*range(found.molecule.GetNumAtoms())}
    loose = {text[at] for at, owner in enumerate(found.atom_of_character) if owner < 0}
    assert loose <= {*"()=#.-/\\:"}


def test_the_number_of_a_ring_belongs_to_the_atom_before_it() -> None:
    found = structure_of("C1CC%12CC1C%12")
    assert found is not None
    assert found.atom_of_character == [0, 0, 1, 2, 2, 2, 2, 3, 4, 4, 5, 5, 5, 5]


def test_atoms_and_rest_add_up_to_the_tokens() -> None:
    text = "[*]CC([*])C(=O)Cl"
    structure = structure_of(text)
    assert structure is not None
    pieces = ["[CLS]", "_", "[*]", "CC", "([", "*", "])", "C(=", "O", ")C", "l", "[SEP]"]
    spans, at = [], 0
    for piece in pieces:
        width = 0 if piece in ("[CLS]", "_", "[SEP]") else len(piece)
        spans.append((at, at + width) if width else (0, 0))
        at += width
    assert at == len(text)
    shares = np.random.default_rng(0).normal(size=len(pieces))
    shares[[0, -1]] = 0
    found = shares_of_atoms(structure, spans, pieces, shares)
    assert found.atoms.sum() + sum(found.rest.values()) == pytest.approx(shares.sum())
    assert found.rest.keys() == {"_"}
    assert found.atoms[0] == pytest.approx(shares[2])
    assert found.atoms[1] == found.atoms[2] == pytest.approx(shares[3] / 2), "in equal parts"
    assert found.atoms[3] == pytest.approx(shares[4:7].sum()), "a bracket atom's characters"
    assert found.atoms[6] == pytest.approx(shares[9] + shares[10]), "two letters of one atom"


def test_what_is_no_smiles_has_no_structure() -> None:
    assert structure_of("no molecule") is None
    assert structure_of("C(") is None


def test_all_polymers_of_the_cohort_have_a_structure() -> None:
    for polymer in load_polymers():
        assert structure_of(polymer.psmiles) is not None


def panel(*lines: str, shares: np.ndarray) -> Panel:
    return Panel((lines[0], lines[1], lines[2]), lines[3], shares, " <b>")


def test_a_picture_escapes_its_text_and_is_one_element() -> None:
    structure = structure_of("[*]CC(=O)[*]")
    assert structure is not None
    hostile = "<script>alert(1)</script>\x00\n&"
    shares = np.array([1.0, -0.5, 0.0, 0.25, 0.1])
    picture = drawn_structure(structure, [panel(*[hostile] * 4, shares=shares)] * 3)
    assert "<script" not in picture
    assert "&lt;script&gt;" in picture
    assert "\x00" not in picture
    assert " <b>" not in picture
    assert "<?xml" not in picture
    assert picture.count("<svg") == picture.count("</svg>") == 4, "one around three"
    nothing = drawn_structure(structure, [panel(*["x"] * 4, shares=0 * shares)])
    assert "nan" not in nothing.lower()


def test_colours_go_from_white_to_warm_and_cold() -> None:
    assert colour_of(0.0, 1.0) == colour_of(0.0, 0.0) == (1.0, 1.0, 1.0)
    red, _, blue = colour_of(2.0, 2.0)
    assert red > blue
    red, _, blue = colour_of(-2.0, 2.0)
    assert red < blue
