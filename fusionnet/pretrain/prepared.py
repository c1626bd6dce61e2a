"""A corpus as training reads it: checked, canonical, each chain once, tokenised, ranked, parted.

Checking and describing strings takes minutes; what comes out is kept in one file beside the model's
folder, under a digest of all that it depends on, so that a run which goes on finds it again.

Axes: S strings with P tokens in all, R ranks.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from embedcache.encoder.tokenizer import tokenizer_digest
from embedcache.encoder.tokens import TokenTable, offsets_of
from embedcache.errors import CorpusError
from embedcache.files import atomic_write, file_digest
from fusionnet.pretrain.lines import polymers_of_files
from fusionnet.pretrain.masking import Vocabulary
from fusionnet.pretrain.ranks import descriptors, standardised_ranks

FORMAT = 2
_MOST_RANKED = 20_000  # strings whose descriptors are computed: some 15 ms each
_FEWEST = 20  # strings; fewer cannot be held out in part


class Facts(NamedTuple):
    """What is told of a corpus."""

    digest: str  # of its strings
    num_lines: int
    num_invalid: int
    num_strings: int
    num_long: int  # left out: more tokens than asked for
    num_tokens: int
    num_held_out: int
    num_ranked: int


class Prepared(NamedTuple):
    """S strings to train on or to hold out, in the order of their digests."""

    facts: Facts
    tokens: TokenTable
    ranks: Float[Tensor, "S R"]  # NaN where none were computed
    train: Int[Tensor, " S_train"]
    held_out: Int[Tensor, " S_held_out"]


class Wanted(NamedTuple):
    """What of a corpus is wanted; with the files' content it decides the prepared one."""

    files: tuple[Path, ...]
    with_ranks: bool
    held_out_share: float
    longest: int  # tokens of a string
    seed: int
    skip_invalid: bool


def prepared(
    wanted: Wanted, tokenizer: PreTrainedTokenizerBase, kept: Path, processes: int
) -> Prepared:
    """Return the corpus, from the file that keeps it where that is of the same, else made anew."""
    key = _key(wanted, tokenizer)
    found = _read(kept, key)
    if found is None:
        found = _made(wanted, tokenizer, processes)
        tensors = {
            "values": found.tokens.values.to(torch.int16),
            "offsets": found.tokens.offsets,
            "ranks": found.ranks,
            "train": found.train,
            "held_out": found.held_out,
        }
        facts = {"key": key, "facts": json.dumps(found.facts)}
        with atomic_write(kept) as partial:
            save_file(tensors, partial, facts)
    return found


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return what masking must know; raises CorpusError for a tokenizer without a mask."""
    if tokenizer.mask_token_id is None:
        raise CorpusError("the encoder's tokenizer has no token for masks, as [MASK] of BERT's")
    special = torch.zeros(len(tokenizer), dtype=torch.bool)
    prefix = tokenizer.convert_tokens_to_ids(["▁", "<s>", "</s>", "<unk>"])
    known = {*tokenizer.all_special_ids, *(each for each in prefix if each is not None)}
    special[sorted(known)] = True
    return Vocabulary(special, int(tokenizer.mask_token_id))


def _key(wanted: Wanted, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of all that a prepared corpus depends on."""
    for file in wanted.files:
        if not file.is_file():
            raise CorpusError(f"there is no file {file} of strings, one a line")
    entries = {
        **wanted._asdict(),
        "files": [file_digest(file) for file in wanted.files],
        "tokenizer": tokenizer_digest(tokenizer),
        "format": FORMAT,
        "most_ranked": _MOST_RANKED,
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _read(kept: Path, key: str) -> Prepared | None:
    """Return the corpus that a file keeps, None where it is another, or damaged."""
    if not kept.is_file():
        return None
    try:
        with safe_open(kept, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return None
    return Prepared(
        facts=Facts(*json.loads(metadata["facts"])),
        tokens=TokenTable(tensors["values"].long(), tensors["offsets"]),
        ranks=tensors["ranks"],
        train=tensors["train"],
        held_out=tensors["held_out"],
    )


def _made(wanted: Wanted, tokenizer: PreTrainedTokenizerBase, processes: int) -> Prepared:
    """Return the corpus, made from its files."""
    polymers = polymers_of_files(wanted.files, processes, skip_invalid=wanted.skip_invalid)
    strings, ids = _tokenised(polymers.strings, tokenizer, wanted.longest)
    num_held_out = max(1, round(wanted.held_out_share * len(strings)))
    if len(strings) < _FEWEST or num_held_out >= len(strings):
        raise CorpusError(
            f"the corpus has {len(strings):,} distinct polymers of at most {wanted.longest} tokens"
            f" ({len(polymers.strings) - len(strings):,} are longer), too few to pre-train on;"
            f" {_FEWEST} are the least, thousands are sensible: make more with make-corpus"
        )
    lengths = torch.tensor([len(each) for each in ids])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(wanted.seed))
    held_out, train = order[:num_held_out].sort().values, order[num_held_out:].sort().values
    ranks = torch.full((len(ids), 1), torch.nan)
    ranked = order[:0]
    if wanted.with_ranks:
        ranked = order[:_MOST_RANKED]  # those held out among them
        of_ranked = descriptors([strings[index] for index in ranked.tolist()], processes)
        found = torch.from_numpy(standardised_ranks(of_ranked))
        ranks = torch.full((len(ids), found.shape[1]), torch.nan)
        ranks[ranked] = found
    facts = Facts(
        digest=hashlib.sha256("\n".join(strings).encode()).hexdigest(),
        num_lines=polymers.num_lines,
        num_invalid=polymers.num_invalid,
        num_strings=len(strings),
        num_long=len(polymers.strings) - len(strings),
        num_tokens=int(lengths.sum()),
        num_held_out=num_held_out,
        num_ranked=len(ranked),
    )
    values = torch.tensor(np.concatenate(ids), dtype=torch.int64)
    return Prepared(facts, TokenTable(values, offsets_of(lengths)), ranks, train, held_out)


def _tokenised(
    strings: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[list[str], list[Int[np.ndarray, " _L"]]]:
    """Return the strings of at most `longest` tokens, and the ids of their tokens."""
    encoded = tokenizer(
        list(strings), truncation=False, padding=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    kept = [
        (text, np.array(ids, dtype=np.int64))
        for text, ids in zip(strings, encoded, strict=True)
        if len(ids) <= longest
    ]
    return [text for text, _ in kept], [ids for _, ids in kept]
