"""What is a repeat unit, what is not, and why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from embedcache.config.columns import StringColumn
from embedcache.table.psmiles import prepare_string
from embedcache.table.repeatunit import each_kind_first, reasons_text
from embedcache.table.stars import bracket_stars, unlabelled_stars
from embedcache.table.strings import distinct_strings

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
        ("[*:1]CC[*:2]", "[*]CC[*]"),
        ("[1*]CC([2*])[13CH3]", "[*]CC([*])[13CH3]"),
        ("[2*:1]CC[#0]", "[*]CC[*]"),
        ("[*]=CC=[*]", "[*]=CC=[*]"),
    ],
)
def test_stars_are_bracketed_and_the_rest_is_kept(text: str, prepared: str) -> None:
    assert prepare_string(text, PSMILES) == prepared
    assert bracket_stars(bracket_stars(text)) == bracket_stars(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "^is empty$"),
        (" \t", "^is empty$"),
        ("[*]CC", "^has 1 endpoint .*: an end group"),
        ("[*]", "^has 1 endpoint"),
        ("CCO", "^has no endpoint .* then set kind: smiles$"),
        ("[Cu]CCO[Au]", r"no endpoint.* set replace: \{'\[Au\]': '\[\*\]', '\[Cu\]': '\[\*\]'\}$"),
        ("[*]CCO[Au]", r"^has 1 endpoint.* set replace: \{'\[Au\]': '\[\*\]'\}$"),
        ("[*]C([*])C[*]", "^has 3 endpoints .*: a branched or crosslinked polymer"),
        ("[*]CC[*].O", "^has 2 separate fragments: .* fragments: true"),
        ("C[*]C[*]", "not bound exactly once"),
        ("[*][*]", "^has its endpoints .* bound to each other"),
        ("[*]=CC[*]", "bonds of unequal order: single and double;"),
        ("[*]->[Fe]<-[*]", "bond is not single, double or triple"),
        (
            "[*+]CC[*]",
            r"^has a star with a charge.*: \[\*\+\], .*replace: \{'\[\*\+\]': '\[\*\]'\}",
        ),
        ("[*H]CC[*]", r"^has a star with .*hydrogens.*: \[\*H\], .*replace"),
        ("[R1]CC[R2]", r"hold no atom: \[R1\], \[R2\]; .*replace: \{'\[R1\]': .*, '\[R2\]': "),
        ("[*]CC[Polymer]", r"hold no atom: \[Polymer\]; "),
        ("[*]CC(", "^is not valid SMILES syntax$"),
        ("hello", "^is not valid SMILES syntax$"),
        ("-12.5e3", "^is a number: .*data.numeric"),
        ("[*]C C[*]", "' ' inside"),
        ("[*]C(C)(C)(C)(C)[*]", "chemically impossible: .*valence"),
        ("[*]c1ccc[*]", "not valid SMILES|chemically impossible"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        prepare_string(text, PSMILES)


@pytest.mark.parametrize(
    ("text", "is_ladder"),
    [
        ("*c1cc(*)c(*)cc1*", True),
        ("*Oc1cc2c(cc1O*)C1(CC2(C)C)CC(C)(C)c2cc(O*)c(O*)cc21", True),  # PIM-1's spiro unit
        ("C1C[e]C([d])C([t])C1[g]", True),  # Polymer Genome's notation
        ("*C1CC(*)C2CC(*)CC(*)C12", True),
        ("*CC(*)C(=O)OCC(*)C*", False),  # two vinyl groups: a crosslinker (Ramprasad/psmiles#21)
        ("C(CO*)(CO*)(CO*)CO*", False),  # a star of four arms
        ("*c1ccc(cc1)C(c1ccc(*)cc1)(c1ccc(*)cc1)c1ccc(*)cc1", False),
        ("*c1c(*)c(*)c(*)c(*)c1", False),
    ],
)
def test_a_ladder_is_told_from_a_network(text: str, is_ladder: bool) -> None:
    with pytest.raises(ValueError, match="ladder" if is_ladder else "branched or crosslinked"):
        prepare_string(text, PSMILES)


def test_reasons_are_counted_by_kind() -> None:
    texts = ["[*]C([*])C[*]", "*C(*)O*", "[*]CC", "[R1]C[*]", "[R2]C[*]", "[*]C(", "C1C"]
    _, refused = distinct_strings(PSMILES, texts, np.ones(len(texts), dtype=np.int64))
    assert reasons_text(refused.values()) == (
        "2 'has 3 endpoints [*]', 2 'has brackets that hold no atom', 2 'is not valid SMILES"
        " syntax', 1 'has 1 endpoint [*]'"
    )
    assert each_kind_first(refused)[:4] == ["[*]C([*])C[*]", "[*]CC", "[R1]C[*]", "[*]C("]


FRAGMENTS = StringColumn(name="p", column="c", fragments=True)


def test_fragments_are_checked_each_for_itself() -> None:
    for text in ("[*]CCO[*].[Li+]", "[*:1]CC[*:2].[*]CCO[*]", "[*]CC[*]"):
        assert prepare_string(text, FRAGMENTS) == unlabelled_stars(text)
    for text, reason in (
        ("[*]CC[*].[*]C", r"^has 1 endpoint.*\(its fragment \*C\)$"),
        ("[Li+].[Cl-]", "no endpoint .* in any fragment"),
        ("CCO", "^has no endpoint"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepare_string(text, FRAGMENTS)


@pytest.mark.parametrize("canonicalize", [True, "polymer"])
def test_fragments_are_canonical_each_for_itself_and_sorted(canonicalize: bool | str) -> None:
    column = FRAGMENTS.model_copy(update={"canonicalize": canonicalize})
    ways = ("[*]CCO[*].[*]CC([*])C.[Li+]", "[Li+].CC([*])C[*].[*:2]OCC[*:1]")
    assert len({prepare_string(text, column) for text in ways}) == 1
    assert prepare_string(ways[0], column) == "[*]CC([*])C.[*]CCO[*].[Li+]"
    assert prepare_string("[*][C@H](F)[*].[Na+]", column) == "[*][C@@H]([*])F.[Na+]"


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
    # numbered, since RDKit would take both endpoints for the same, and drop stereo between them
    molecule = Chem.MolFromSmiles(text.replace("[*]", "[1*]", 1).replace("[*]", "[2*]", 1))
    order = data.draw(st.permutations(range(molecule.GetNumAtoms())))
    renumbered = Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False)
    randomised = Chem.MolToSmiles(molecule, doRandom=True)
    spellings = (text, renumbered, randomised, unlabelled_stars(randomised).replace("[*]", "*"))
    assert len({prepare_string(spelling, CANONICAL) for spelling in spellings}) == 1


@given(repeat_units)
def test_without_it_strings_are_kept_as_they_are_written(text: str) -> None:
    assert prepare_string(text, PSMILES) == text
    assert prepare_string(text.replace("[*]", "*"), PSMILES) == text


def test_what_a_null_stands_for_is_prepared_where_it_can_be() -> None:
    column = StringColumn(name="p", column="c", if_null="*CC*", replace={"[Cu]": "[*]"})
    assert prepare_string("*CC*", column) == "[*]CC[*]"
    for anything in ("", "none", "[Cu]"):
        column = column.model_copy(update={"if_null": anything})
        assert prepare_string(anything, column) == anything


def test_stereo_between_two_endpoints_is_kept() -> None:
    """RDKit takes both endpoints for the same and would drop it."""
    forms = {
        prepare_string(text, CANONICAL)
        for text in ("[*][C@H](C)[*]", "[*][C@@H](C)[*]", "[*]C(C)[*]")
    }
    assert forms == {"[*][C@@H]([*])C", "[*]C([*])C"}


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
