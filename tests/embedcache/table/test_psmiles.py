"""What is a repeat unit, what is not, and why."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from embedcache.config.table import StringColumn
from embedcache.table.psmiles import bracket_stars, prepare_string

PSMILES = StringColumn(name="p", column="c")
CANONICAL = StringColumn(name="p", column="c", canonicalize=True)
PARTS = [
    "C",
    "O",
    "N",
    "S",
    "C(=O)",
    "C(C)",
    "C(F)(F)",
    "C(C)(C)",
    "c1ccc(cc1)",
    "c1cc(ccc1C)",
    "[Si](C)(C)",
    "C/C=C/C",
    "[C@H](C)",
    "C1CCC(CC1)",
    "C[N+](C)(C)C",
]
repeat_units = st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(
    lambda parts: f"[*]{''.join(parts)}[*]"
)


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("*CC*", "[*]CC[*]"),
        (" [*]CCO[*] ", "[*]CCO[*]"),
        ("[*]C([*])C", "[*]C([*])C"),
        ("[*:1]CC[*:2]", "[*:1]CC[*:2]"),
    ],
)
def test_stars_are_bracketed_and_the_rest_is_kept(text: str, prepared: str) -> None:
    assert prepare_string(text, PSMILES) == prepared
    assert bracket_stars(bracket_stars(text)) == bracket_stars(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("[*]CC", "1 endpoints"),
        ("[*]C([*])C[*]", "3 endpoints"),
        ("CCO", "0 endpoints"),
        ("[*]CC[*].O", "2 separate fragments"),
        ("C[*]C[*]", "not bound exactly once"),
        ("[*]CC(", "not valid SMILES"),
        ("hello", "not valid SMILES"),
        ("[*]C(C)(C)(C)(C)[*]", "chemically impossible: .*valence"),
        ("[*]c1ccc[*]", "not valid SMILES|chemically impossible"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        prepare_string(text, PSMILES)


def test_replacements_come_first() -> None:
    column = StringColumn(name="p", column="c", replace={"[Cu]": "[*]", "[Au]": "[*]"})
    assert prepare_string("[Cu]CCO[Au]", column) == "[*]CCO[*]"


def test_canonical_forms_merge_spellings() -> None:
    column = StringColumn(name="p", column="c", canonicalize=True)
    assert prepare_string("[*]OCC[*]", column) == prepare_string("*CCO*", column)
    assert prepare_string("[*]OCC[*]", PSMILES) != prepare_string("*CCO*", PSMILES)
    assert "[*]" in prepare_string("*CCO*", column)


@given(repeat_units)
def test_canonicalising_twice_is_canonicalising_once(text: str) -> None:
    once = prepare_string(text, CANONICAL)
    assert prepare_string(once, CANONICAL) == once
    assert prepare_string(once, PSMILES) == once  # still a repeat unit, its endpoints in brackets
    assert Chem.MolFromSmiles(once).GetNumAtoms() == Chem.MolFromSmiles(text).GetNumAtoms()


@given(repeat_units, st.data())
def test_any_order_of_the_atoms_merges_into_one_string(text: str, data: st.DataObject) -> None:
    molecule = Chem.MolFromSmiles(text)
    order = data.draw(st.permutations(range(molecule.GetNumAtoms())))
    renumbered = Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False)
    randomised = Chem.MolToSmiles(molecule, doRandom=True)
    assert (
        len(
            {
                prepare_string(spelling, CANONICAL)
                for spelling in (text, renumbered, randomised, randomised.replace("[*]", "*"))
            }
        )
        == 1
    )


@given(repeat_units)
def test_without_it_strings_are_kept_as_they_are_written(text: str) -> None:
    assert prepare_string(text, PSMILES) == text
    assert prepare_string(text.replace("[*]", "*"), PSMILES) == text


def test_different_repeat_units_stay_apart() -> None:
    texts = [
        "[*]CC[*]",
        "[*]CCO[*]",
        "[*]CC([*])C",
        "[*]C/C=C/C[*]",
        "[*]C/C=C\\C[*]",
        "[*][C@H](C)O[*]",
        "[*][C@@H](C)O[*]",
    ]
    assert len({prepare_string(text, CANONICAL) for text in texts}) == len(texts)


def test_other_kinds() -> None:
    smiles = StringColumn(name="s", column="c", kind="smiles")
    assert prepare_string("[Li+].[Cl-]", smiles) == "[Li+].[Cl-]"
    with pytest.raises(ValueError, match="which no SMILES has"):
        prepare_string("not a molecule", smiles)
    with pytest.raises(ValueError, match="not valid SMILES"):
        prepare_string("C1CC", smiles)
    assert prepare_string(
        "OCC", smiles.model_copy(update={"canonicalize": True})
    ) == prepare_string("C(O)C", CANONICAL.model_copy(update={"kind": "smiles"}))
    assert (
        prepare_string(
            " any * text ", StringColumn(name="t", column="c", kind="text", canonicalize=True)
        )
        == " any * text "
    )
    assert (
        prepare_string("any * text", StringColumn(name="t", column="c", kind="text"))
        == "any * text"
    )
    assert prepare_string("", StringColumn(name="s", column="c", kind="smiles", if_null="")) == ""


def test_real_repeat_units_pass(shared_data: Path) -> None:
    lines = (shared_data / "psmiles" / "merged_unique_psmiles.txt").read_text().splitlines()[::10]
    assert len(lines) > 1000
    for line in lines:
        assert prepare_string(line, PSMILES) == line
