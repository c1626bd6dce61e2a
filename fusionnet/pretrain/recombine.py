"""Hypothetical polymers: fragments of known ones bound to each other anew, as chemists would.

polyBERT was pre-trained on 100 million strings that were made in this way (Kuenneth and Ramprasad
2023). A polymer grows from a fragment with an endpoint: each open star is bound to one that BRICS
lets it be bound to, until none is open and two endpoints are there.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from rdkit import Chem, rdBase

from embedcache.config.columns import StringColumn
from embedcache.table.psmiles import prepare_string
from embedcache.table.stars import bracket_stars
from fusionnet.pretrain.fragments import Fragment, Pool, partners

NUM_FRAGMENTS = (2, 7)  # of a polymer, least and most
TRIES_PER_BLOCK = 64
CANONICAL = StringColumn(name="polymer", column="polymer", canonicalize="polymer")


class Block(NamedTuple):
    """A numbered share of the work: what it gives depends on the seed and the number alone."""

    pool: Pool
    seed: int
    number: int
    longest: int  # characters of a string


def polymers_of(block: Block) -> list[str]:
    """Return the valid ones of a block's polymers, each in the canonical form of its chain."""
    rng = np.random.default_rng((block.seed, block.number))
    grown = [grow(block.pool, rng) for _ in range(TRIES_PER_BLOCK)]
    checked = checked_lines([text for text in grown if text is not None])
    return [text for text, reason in checked if reason is None and len(text) <= block.longest]


def grow(pool: Pool, rng: np.random.Generator) -> str | None:
    """Return one polymer's SMILES, None where it has come to a star that nothing can be bound to.

    Its endpoints are written `[*]`; it may still be impossible.
    """
    starts = (pool.num_endpoints > 0) & (pool.num_open > 0)
    if not starts.any():
        return None
    chosen = [_drawn(pool, starts, rng)]
    bonds: list[tuple[int, int, int, int]] = []  # two fragments, and a star of each
    open_stars = [(0, star) for star in _open(pool.fragments[chosen[0]])]
    missing = 2 - int(pool.num_endpoints[chosen[0]])
    size = int(rng.integers(NUM_FRAGMENTS[0], NUM_FRAGMENTS[1] + 1))
    while open_stars:
        place, star = open_stars.pop(int(rng.integers(len(open_stars))))
        label = pool.fragments[chosen[place]].labels[star]
        fitting = _fitting(pool, label, missing, len(open_stars), size - len(chosen))
        if not fitting.any():
            return None
        index = _drawn(pool, fitting, rng)
        fragment = pool.fragments[index]
        stars = [each for each in _open(fragment) if fragment.labels[each] in partners()[label]]
        bound = stars[int(rng.integers(len(stars)))]
        bonds.append((place, star, len(chosen), bound))
        open_stars += [(len(chosen), each) for each in _open(fragment) if each != bound]
        missing -= fragment.num_endpoints
        chosen.append(index)
    return _joined([pool.fragments[index] for index in chosen], bonds)


def _fitting(
    pool: Pool, label: int, missing: int, num_open: int, num_left: int
) -> Bool[np.ndarray, " K"]:
    """Return which fragments may be bound to a star, so that the polymer can still be ended.

    `missing` endpoints are to come, `num_open` stars are open beside this one, and about
    `num_left` fragments are to come.
    """
    fitting = pool.fits[label] & (pool.num_endpoints <= missing)
    if num_left <= 1 + num_open:  # nothing more is opened
        fitting &= pool.num_open == 1
    if num_open == 0:  # the last star: it goes on, or brings what is missing
        fitting &= (pool.num_open > 1) | (pool.num_endpoints == missing)
    return fitting


def _drawn(pool: Pool, among: Bool[np.ndarray, " K"], rng: np.random.Generator) -> int:
    """Return one of the fragments, by weight."""
    indices: Int[np.ndarray, " _K"] = among.nonzero()[0]
    cumulative = pool.weight[indices].cumsum()
    return int(indices[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")])


def _open(fragment: Fragment) -> list[int]:
    """Return which of a fragment's stars are to be bound."""
    return [star for star, label in enumerate(fragment.labels) if label]


def _joined(fragments: list[Fragment], bonds: list[tuple[int, int, int, int]]) -> str:
    """Return the SMILES of fragments that are bound to each other in place of their stars."""
    polymer = Chem.RWMol()
    stars: list[list[int]] = []
    for fragment in fragments:
        molecule = Chem.MolFromSmiles(fragment.smiles)
        first = polymer.GetNumAtoms()
        found = [a.GetIdx() for a in molecule.GetAtoms() if a.GetAtomicNum() == 0]
        stars.append([first + star for star in found])
        polymer.InsertMol(molecule)
    gone: list[int] = []
    for place, star, other_place, other_star in bonds:
        pair = stars[place][star], stars[other_place][other_star]
        begin, end = (polymer.GetAtomWithIdx(each).GetNeighbors()[0].GetIdx() for each in pair)
        polymer.AddBond(begin, end, Chem.BondType.SINGLE)
        gone += pair
    polymer.BeginBatchEdit()
    for atom in gone:
        polymer.RemoveAtom(atom)
    polymer.CommitBatchEdit()
    return bracket_stars(Chem.MolToSmiles(polymer))


def checked_lines(texts: list[str]) -> list[tuple[str, str | None]]:
    """Return for each text the canonical form of its chain and None, or itself and what it breaks.

    The checks are those of a table's column.
    """
    checked: list[tuple[str, str | None]] = []
    with rdBase.BlockLogs():
        for text in texts:
            try:
                checked.append((prepare_string(text, CANONICAL), None))
            except ValueError as reason:
                checked.append((text, str(reason)))
    return checked
