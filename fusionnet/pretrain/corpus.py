"""A corpus of hypothetical polymers: as many as asked for, streamed to disk, no two alike.

The strings depend on the known polymers, the seed and the number, not on how many processes make
them: blocks are numbered, and taken in their order. Memory is what `Seen` takes.
"""

import time
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from embedcache.errors import CorpusError
from fusionnet.pretrain.fragments import Pool, fragments_of, pool_of
from fusionnet.pretrain.lines import Polymers, check_suffix, lines_to
from fusionnet.pretrain.processes import in_processes
from fusionnet.pretrain.recombine import TRIES_PER_BLOCK, Block, polymers_of
from fusionnet.pretrain.seen import Seen

LONGEST = 160  # characters; of 12,433 known polymers 99 in 100 are shorter
_SPENT_BLOCKS = 40  # in a row that give nothing new: there is hardly anything left to be made


class Made(NamedTuple):
    """What a corpus was made of, and at what cost."""

    num_strings: int
    num_known: int
    num_fragments: int
    num_tries: int
    seconds: float  # of making them, after the known ones were cut


def make_corpus(
    known: Polymers, out: Path, number: int, seed: int, processes: int, longest: int = LONGEST
) -> Made:
    """Write `number` hypothetical polymers, one canonical PSMILES a line, none of them known.

    Raises CorpusError where the known polymers' fragments give fewer; nothing is written then.
    """
    check_suffix(out)
    pool = pool_of(map(fragments_of, known.strings))
    _check_pool(pool, known)
    seen = Seen()
    for text in known.strings:
        seen.add(text)
    started = time.perf_counter()
    with (
        lines_to(out) as stream,
        tqdm(total=number, unit="strings", desc=out.name, disable=None) as bar,
    ):
        blocks = (Block(pool, seed, block, longest) for block in count())
        num_blocks = _write(stream, number, blocks, processes, seen, bar.update)
    seconds = time.perf_counter() - started
    num_tries = TRIES_PER_BLOCK * num_blocks
    return Made(number, len(known.strings), len(pool.fragments), num_tries, seconds)


def _write(
    stream: TextIOWrapper,
    number: int,
    blocks: Iterator[Block],
    processes: int,
    seen: Seen,
    progress: Callable[[int], object],
) -> int:
    """Write the blocks' new strings until there are enough, and return how many blocks it took."""
    num_written = num_in_vain = 0
    for num_blocks, texts in enumerate(in_processes(polymers_of, blocks, processes), 1):
        new = [text for text in texts if seen.add(text)][: number - num_written]
        stream.writelines(f"{text}\n" for text in new)
        num_written += len(new)
        progress(len(new))
        if num_written == number:
            return num_blocks
        num_in_vain = 0 if new else num_in_vain + 1
        if num_in_vain == _SPENT_BLOCKS:
            break
    raise CorpusError(
        f"only {num_written:,} of {number:,} polymers could be made:"
        f" {_SPENT_BLOCKS * TRIES_PER_BLOCK:,} tries in a row gave none that is new. Ask for fewer"
        " (--number), allow longer ones (--longest), or give more known polymers (--polymers)"
    )


def _check_pool(pool: Pool, known: Polymers) -> None:
    """Raise CorpusError where nothing can be made of the fragments."""
    if (pool.num_endpoints == 0).all() or len(pool.fragments) < 2:
        raise CorpusError(
            f"the {len(known.strings):,} known polymers have {len(pool.fragments):,} fragments that"
            " can be bound to others, too few to make new polymers of: most have no bond that BRICS"
            " cuts (between a ring and what hangs on it, beside C=O, O, N or S); give more of them"
            " (--polymers)"
        )
