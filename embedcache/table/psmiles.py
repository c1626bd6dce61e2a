"""Polymer strings: one spelling for the endpoints, and a reason for each that is no repeat unit.

A PSMILES is the SMILES of a repeat unit with two endpoints `[*]`, each bound once. `*` without
brackets is the same atom in SMILES but an unknown token to polyBERT, so it is written `[*]`. RDKit
decides what parses; its own log is silenced while it does, and its reason becomes ours.
"""

import re

from rdkit import Chem, rdBase

from embedcache.config.table import StringColumn

_BRACKETS_OR_STAR = re.compile(r"\[[^\]]*\]|\*")
# white space and non-ASCII: RDKit reads up to it and ignores the rest, a tokenizer does not
_NOT_SMILES = re.compile(r"[^!-~]")
_NUM_ENDPOINTS = 2


def prepare_string(text: str, column: StringColumn) -> str:
    """Return the string as it is tokenised: replacements made, and every `*` written `[*]`.

    It is in RDKit's canonical form if the column asks for it. Raises ValueError with a reason if
    the column's kind is `psmiles` or `smiles` and the string is not one.
    """
    for old, new in column.replace.items():
        text = text.replace(old, new)
    if column.kind == "text" or (column.if_null is not None and text == column.if_null):
        return text
    text = bracket_stars(text.strip())
    with rdBase.BlockLogs():
        molecule = _parse(text)
        if column.kind == "psmiles":
            _check_repeat_unit(molecule)
        if column.canonicalize:
            # A second parse: RDKit's canonical form is that of its default reader, which also drops
            # explicit hydrogens.
            return bracket_stars(Chem.MolToSmiles(Chem.MolFromSmiles(text)))
        return text


def bracket_stars(text: str) -> str:
    """Return a SMILES with every `*` outside brackets written `[*]`."""
    return _BRACKETS_OR_STAR.sub(lambda match: "[*]" if match[0] == "*" else match[0], text)


def _parse(text: str) -> Chem.Mol:
    """Return the sanitised molecule, or raise ValueError with RDKit's reason."""
    if not text:
        raise ValueError("is empty")
    foreign = _NOT_SMILES.search(text)
    if foreign is not None:
        raise ValueError(f"has {foreign[0]!a} inside, which no SMILES has")
    molecule = Chem.MolFromSmiles(text, sanitize=False)
    if molecule is None:
        raise ValueError("is not valid SMILES syntax")
    try:
        Chem.SanitizeMol(molecule)
    except (Chem.MolSanitizeException, ValueError) as error:
        raise ValueError(f"is chemically impossible: {str(error).strip()}") from None
    return molecule


def _check_repeat_unit(molecule: Chem.Mol) -> None:
    """Raise ValueError unless the molecule is one fragment with two endpoints, each bound once."""
    endpoints = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]
    if len(endpoints) != _NUM_ENDPOINTS:
        ladder = "; ladder polymers are not supported" if len(endpoints) > _NUM_ENDPOINTS else ""
        raise ValueError(f"has {len(endpoints)} endpoints [*], a repeat unit has two{ladder}")
    if any(atom.GetDegree() != 1 for atom in endpoints):
        raise ValueError("has an endpoint [*] that is not bound exactly once")
    num_fragments = len(Chem.GetMolFrags(molecule))
    if num_fragments != 1:
        raise ValueError(f"has {num_fragments} separate fragments, a repeat unit is one")
