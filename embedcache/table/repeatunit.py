"""What a repeat unit is, and what a string is that is none.

A reason is a statement on the string ("has 3 endpoints [*]: ..."). What stands before its first
colon or semicolon names the kind of refusal, by which a report counts them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rdkit import Chem

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_LADDER_MARKS = {"[d]", "[e]", "[g]", "[t]"}  # Polymer Genome's four endpoints of a ladder
_LADDER = "is a ladder polymer: its units are bound by two bonds, which is not supported"
_ORDERS = {
    Chem.BondType.SINGLE: "single",
    Chem.BondType.DOUBLE: "double",
    Chem.BondType.TRIPLE: "triple",
}
# a star, H, B, C, N, O, F, Si, P, S, Cl, As, Se, Br, Te and I: what may end a chain or a branch
_NO_MARKS = {0, 1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 52, 53}
_MOST_APART = 2  # bonds between two ends of a ladder's unit: peri positions of naphthalene


def syntax_error(text: str, *, endpoints: bool) -> ValueError:
    """Return why RDKit reads nothing in a text; `endpoints`: its brackets may mark some."""
    names = [
        name
        for name in dict.fromkeys(_BRACKETS.findall(text))
        if Chem.MolFromSmiles(name, sanitize=False) is None
    ]
    if endpoints and set(names) >= _LADDER_MARKS:
        return ValueError(_LADDER)
    if names:
        hint = f"; {_replace(names[:2])}" if endpoints else ""
        return ValueError(
            f"has brackets that hold no atom: {', '.join(names[:4])}{hint}; where they stand for"
            " some group, the row says too little"
        )
    if NUMBER.fullmatch(text):
        return ValueError("is a number: is the column numeric? then list it under data.numeric")
    return ValueError("is not valid SMILES syntax")


def check_stars(text: str) -> None:
    """Raise ValueError for a star that is something else than `[*]`."""
    others = [name for name in _BRACKETS.findall(text) if "*" in name and name != "[*]"]
    if others:
        raise ValueError(
            f"has a star with a charge, hydrogens or other marks: {', '.join(others)}, which is no"
            f" endpoint; {_replace(others)}"
        )


def check_repeat_units(molecule: Chem.Mol, *, fragments: bool) -> None:
    """Raise ValueError unless the molecule is one repeat unit.

    With `fragments` it may have several parts, of which at least one has endpoints, and each that
    has is a repeat unit.
    """
    parts = Chem.GetMolFrags(molecule, asMols=True, sanitizeFrags=False)
    if len(parts) == 1:
        _check_repeat_unit(molecule)
        return
    if not fragments:
        raise ValueError(
            f"has {len(parts)} separate fragments: a repeat unit is one; give a salt or a second"
            " monomer a string column of its own, or set fragments: true where the encoder reads"
            " '.'"
        )
    units = [part for part in parts if _endpoints(part)]
    if not units:
        raise ValueError("has no endpoint [*] in any fragment: at least one is a repeat unit")
    for unit in units:
        try:
            _check_repeat_unit(unit)
        except ValueError as reason:
            raise ValueError(f"{reason} (its fragment {Chem.MolToSmiles(unit)})") from None


def each_kind_first(refused: Mapping[str, str]) -> list[str]:
    """Return the refused strings in an order in which the first ones show every kind of reason."""
    seen: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for text, reason in refused.items():
        seen[_kind(reason)] += 1
        turn[text] = seen[_kind(reason)]
    return sorted(refused, key=turn.__getitem__)


def reasons_text(reasons: Iterable[str]) -> str:
    """Return how many strings were refused for which kind of reason, the most frequent first."""
    kinds = Counter(map(_kind, reasons))
    return ", ".join(f"{count:,} {kind!r}" for kind, count in kinds.most_common())


def _kind(reason: str) -> str:
    return re.split("[:;]", reason)[0]


def _endpoints(molecule: Chem.Mol) -> list[Chem.Atom]:
    return [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]


def _check_repeat_unit(molecule: Chem.Mol) -> None:
    """Raise ValueError unless one fragment has two endpoints that can be chained."""
    endpoints = _endpoints(molecule)
    _check_number(molecule, endpoints)
    if any(atom.GetDegree() != 1 for atom in endpoints):
        raise ValueError("has an endpoint [*] that is not bound exactly once")
    one, other = endpoints
    if molecule.GetBondBetweenAtoms(one.GetIdx(), other.GetIdx()) is not None:
        raise ValueError("has its endpoints [*] bound to each other: there is no unit between them")
    orders = sorted(_ORDERS.get(atom.GetBonds()[0].GetBondType(), "other") for atom in endpoints)
    if "other" in orders:
        raise ValueError(
            "has an endpoint [*] whose bond is not single, double or triple: units cannot be bound"
            " by it"
        )
    if orders[0] != orders[1]:
        raise ValueError(
            f"has endpoints [*] with bonds of unequal order: {orders[1]} and {orders[0]}; the end"
            " of one unit is bound to the start of the next, so both need the same bond"
        )


def _check_number(molecule: Chem.Mol, endpoints: Sequence[Chem.Atom]) -> None:
    """Raise ValueError unless there are two endpoints, with what the string may be instead."""
    number = len(endpoints)
    if number == 2:
        return
    if number > 2:
        if _is_ladder(molecule, endpoints):
            raise ValueError(_LADDER)
        raise ValueError(
            f"has {number} endpoints [*]: a branched or crosslinked polymer, or several monomers in"
            " one; a repeat unit has two"
        )
    marks = [f"[{atom.GetSymbol()}]" for atom in molecule.GetAtoms() if _is_mark(atom)]
    hint = f"; {_replace(sorted(set(marks)))}" if number + len(marks) == 2 else ""
    if number == 1:
        raise ValueError(
            "has 1 endpoint [*]: an end group, or one end of an oligomer; a repeat unit has two"
            + hint
        )
    raise ValueError(
        "has no endpoint [*]: a repeat unit has two; is it a molecule? then set kind: smiles" + hint
    )


def _replace(names: Sequence[str]) -> str:
    """Return the advice to replace what may be meant as endpoints."""
    pairs = ", ".join(f"'{name}': '[*]'" for name in dict.fromkeys(names))
    return f"if meant as endpoint, set replace: {{{pairs}}}"


def _is_mark(atom: Chem.Atom) -> bool:
    """Whether an atom may mark an endpoint, as `[Cu]` and `[Au]` do: a metal bound once."""
    return (
        atom.GetDegree() == 1
        and atom.GetFormalCharge() == 0
        and atom.GetAtomicNum() not in _NO_MARKS
    )


def _is_ladder(molecule: Chem.Mol, endpoints: Sequence[Chem.Atom]) -> bool:
    """Whether four endpoints lie in two pairs of near atoms on one system of rings.

    So the next unit would close a ring. The atoms are those of the rings, or one away from them, as
    the oxygens of PIM-1 are. Four arms of a star lie on no ring, or on rings that single bonds
    part; two vinyl groups are on none.
    """
    if len(endpoints) != 4:
        return False
    ends = [end for atom in endpoints if (end := _ring_atom(atom)) is not None]
    systems = _ring_systems(molecule)
    if len(ends) != 4 or len({systems[end] for end in ends}) != 1:
        return False
    apart = Chem.GetDistanceMatrix(molecule)
    pairings = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    return any(
        all(apart[ends[one], ends[other]] <= _MOST_APART for one, other in pairing)
        for pairing in pairings
    )


def _ring_atom(endpoint: Chem.Atom) -> int | None:
    """Return the ring's atom that an endpoint is bound to, over one atom at most."""
    near = [atom for atom in endpoint.GetNeighbors() if atom.GetAtomicNum()]
    beyond = [atom for first in near for atom in first.GetNeighbors() if atom.GetAtomicNum()]
    return next((atom.GetIdx() for atom in [*near, *beyond] if atom.IsInRing()), None)


def _ring_systems(molecule: Chem.Mol) -> dict[int, int]:
    """Return for each atom of a ring a number of its system: rings that share an atom."""
    systems: list[set[int]] = []
    for ring in map(set, molecule.GetRingInfo().AtomRings()):
        joined = [system for system in systems if system & ring]
        systems = [system for system in systems if not system & ring]
        systems.append(ring.union(*joined))
    return {atom: number for number, system in enumerate(systems) for atom in system}
