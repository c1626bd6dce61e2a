"""Polymer strings: one spelling for the endpoints, and a reason for each that is no repeat unit.

A PSMILES is the SMILES of a repeat unit with two endpoints `[*]`, each bound once. `*` without
brackets is the same atom in SMILES but an unknown token to polyBERT, and so are `[*:1]` and `[1*]`,
in which others number the endpoints: all are written `[*]`. RDKit decides what parses; its own log
is silenced while it does, and its reason becomes ours.
"""

import re

from rdkit import Chem, rdBase

from embedcache.config.columns import StringColumn
from embedcache.table.polymer import polymer_form, unit_form
from embedcache.table.repeatunit import check_repeat_units, check_stars, syntax_error
from embedcache.table.stars import bracket_stars, unlabelled_stars

# white space and non-ASCII: RDKit reads up to it and ignores the rest, a tokenizer does not
_NOT_SMILES = re.compile(r"[^!-~]")


def prepare_string(text: str, column: StringColumn) -> str:
    """Return the string as it is tokenised: replacements made, and every endpoint written `[*]`.

    It is in the canonical form that the column asks for. Raises ValueError with a reason if the
    column's kind is `psmiles` or `smiles` and the string is not one, or if it is empty; what a null
    stands for may be anything, and is then taken as it is.
    """
    try:
        return _prepared(text, column)
    except ValueError:
        if text == column.if_null:
            return text
        raise


def _prepared(text: str, column: StringColumn) -> str:
    for old, new in column.replace.items():
        text = text.replace(old, new)
    if not text.strip():
        raise ValueError("is empty")
    if column.kind == "text":
        return text
    with rdBase.BlockLogs():
        if column.kind == "smiles":
            return _molecule(bracket_stars(text.strip()), column)
        return _repeat_unit(unlabelled_stars(text.strip()), column)


def _molecule(text: str, column: StringColumn) -> str:
    """Return a molecule's SMILES as the column asks for it, its stars in brackets."""
    _parse(text, endpoints=False)
    if not column.canonicalize:
        return text
    # A second parse: RDKit's canonical form is that of its default reader, which also drops
    # explicit hydrogens.
    return bracket_stars(Chem.MolToSmiles(Chem.MolFromSmiles(text)))


def _repeat_unit(text: str, column: StringColumn) -> str:
    """Return a repeat unit as the column asks for it."""
    molecule = _parse(text, endpoints=True)
    check_stars(text)
    check_repeat_units(molecule, fragments=column.fragments)
    if not column.canonicalize:
        return text
    form = polymer_form if column.canonicalize == "polymer" else unit_form
    if not column.fragments:
        return form(text)
    return ".".join(sorted(form(part) if "*" in part else part for part in parts_of(text)))


def parts_of(text: str) -> list[str]:
    """Return the SMILES of each fragment.

    Numbers tell the stars apart meanwhile: between two equal ones RDKit drops a centre's stereo.
    """
    for number in range(text.count("[*]")):
        text = text.replace("[*]", f"[{number + 1}*]", 1)
    parts = Chem.MolToSmiles(Chem.MolFromSmiles(text)).split(".")
    return [unlabelled_stars(part) for part in parts]


def _parse(text: str, *, endpoints: bool) -> Chem.Mol:
    """Return the sanitised molecule, or raise ValueError with RDKit's reason."""
    foreign = _NOT_SMILES.search(text)
    if foreign is not None:
        raise ValueError(f"has {foreign[0]!a} inside, which no SMILES has")
    molecule = Chem.MolFromSmiles(text, sanitize=False)
    if molecule is None:
        raise syntax_error(text, endpoints=endpoints)
    try:
        Chem.SanitizeMol(molecule)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise ValueError(f"is chemically impossible: {str(error).strip()}") from None
    return molecule
