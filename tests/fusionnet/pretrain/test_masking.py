"""Masking: which tokens are chosen, what is shown instead, and what is to be guessed."""

import pytest
import torch

from embedcache.encoder.standin import published_pieces
from embedcache.encoder.tokenizer import build_tokenizer, wrap
from embedcache.errors import CorpusError
from fusionnet.pretrain.masking import Vocabulary, masked
from fusionnet.pretrain.prepared import vocabulary_of

NUM_IDS, MASK_ID = 50, 49
SPECIAL = torch.arange(NUM_IDS) < 6
SPECIAL[MASK_ID] = True
VOCABULARY = Vocabulary(SPECIAL, MASK_ID)


def tokens(num: int) -> torch.Tensor:
    return torch.randint(NUM_IDS - 1, (num,), generator=torch.Generator().manual_seed(1))


def test_the_shares_are_those_of_the_paper() -> None:
    values = tokens(400_000)
    found = masked(values, VOCABULARY, torch.Generator().manual_seed(0))
    num_usual = int((~SPECIAL[values]).sum())
    assert len(found.places) / num_usual == pytest.approx(0.15, abs=3e-3)
    shown, before = found.values[found.places], values[found.places]
    assert float((shown == MASK_ID).float().mean()) == pytest.approx(0.8, abs=6e-3)
    # a tenth is drawn anew, and may be what it was
    same = 0.1 + 0.1 / int((~SPECIAL).sum())
    assert float((shown == before).float().mean()) == pytest.approx(same, abs=6e-3)


def test_marks_are_never_masked_nor_shown_and_nothing_else_changes() -> None:
    values = tokens(20_000)
    found = masked(values, VOCABULARY, torch.Generator().manual_seed(0))
    assert not SPECIAL[values[found.places]].any()
    assert torch.equal(found.targets, values[found.places])
    shown = found.values[found.places]
    assert not SPECIAL[shown[shown != MASK_ID]].any()
    untouched = torch.ones(len(values), dtype=torch.bool)
    untouched[found.places] = False
    assert torch.equal(found.values[untouched], values[untouched])


def test_masks_follow_from_the_generator() -> None:
    values = tokens(500)
    one, two, other = (
        masked(values, VOCABULARY, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.places, other.places)


@pytest.mark.parametrize("num", [0, 1])
def test_hardly_any_tokens(num: int) -> None:
    found = masked(tokens(num), VOCABULARY, torch.Generator().manual_seed(0))
    assert len(found.values) == num


def test_the_marks_of_polybert_s_tokenizer() -> None:
    tokenizer = wrap(build_tokenizer(published_pieces()))
    vocabulary = vocabulary_of(tokenizer)
    ids = tokenizer("[*]CC[*]")["input_ids"]
    assert vocabulary.special[ids].tolist() == [True, True, *[False] * 4, True]
    assert vocabulary.mask_id == 268
    assert vocabulary.special.nonzero().flatten().tolist() == [0, 1, 2, 264, 265, 266, 267, 268]
    tokenizer.mask_token = None
    with pytest.raises(CorpusError, match="no token for masks"):
        vocabulary_of(tokenizer)
