"""Packed steps: every string once per epoch, and the loss and gradients of padded batches."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DebertaV2Model

from embedcache.encoder.standin import architecture
from embedcache.encoder.tokens import TokenTable, offsets_of
from fusionnet.pretrain.masking import Vocabulary, masked
from fusionnet.pretrain.objectives import OBJECTIVES, Objective, PretrainedModel
from fusionnet.pretrain.packing import epoch_batches, share_of, step_seed

NUM_RANKS, SEED = 3, 11
SPECIAL = torch.arange(269) >= 264
VOCABULARY = Vocabulary(SPECIAL, 268)
IDS = torch.tensor([4, 0, 2, 6, 1])


def corpus(lengths: list[int]) -> TokenTable:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, 264, (sum(lengths),), generator=generator)
    offsets = offsets_of(torch.tensor(lengths))
    values[offsets[:-1]] = 265
    return TokenTable(values, offsets)


TOKENS = corpus([5, 17, 9, 9, 1, 30, 12])


def some_ranks() -> torch.Tensor:
    ranks = torch.randn(7, NUM_RANKS, generator=torch.Generator().manual_seed(2)).double()
    ranks[0, 1] = torch.nan  # one that could not be computed
    ranks[2] = torch.nan  # a string of which none were
    return ranks


def model_of(objective: Objective) -> PretrainedModel:
    torch.manual_seed(5)
    return PretrainedModel(DebertaV2Model(architecture("tiny")), objective, NUM_RANKS, "fp32")


def test_an_epoch_has_every_string_once_in_steps_of_like_length() -> None:
    lengths = torch.randint(5, 60, (997,), generator=torch.Generator().manual_seed(0))
    for epoch in (0, 1):
        batches = epoch_batches(lengths, 1_000, seed=3, epoch=epoch)
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(997))
        sizes = torch.tensor([int(lengths[each].sum()) for each in batches])
        assert len(batches) == round(int(lengths.sum()) / 1_000)
        assert (sizes - sizes.float().mean()).abs().max() < 120  # two strings
    first = epoch_batches(lengths, 1_000, 3, 0)
    again, other = epoch_batches(lengths, 1_000, 3, 0), epoch_batches(lengths, 1_000, 3, 1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("batch_tokens", [1, 10**6])
def test_batches_smaller_than_a_string_and_larger_than_the_corpus(batch_tokens: int) -> None:
    batches = epoch_batches(torch.tensor([7, 9, 300]), batch_tokens, 0, 0)
    assert len(batches) == (3 if batch_tokens == 1 else 1)


def test_seeds_of_steps_differ() -> None:
    seeds = {step_seed(seed, step) for seed in range(5) for step in range(1_000)}
    assert len(seeds) == 5_000


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_packed_is_padded(objective: Objective) -> None:
    """Each string alone, by plain Hugging Face, against the packed step: loss and gradients."""
    ranks = some_ranks()
    model = model_of(objective).double()
    share = share_of(TOKENS, ranks, IDS, VOCABULARY, SEED)
    model(share).loss.backward()
    packed = {
        name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
    }
    loss = float(model(share).loss.detach())
    model.zero_grad()

    taken = TOKENS.take(IDS)
    every = masked(taken.values, VOCABULARY, torch.Generator().manual_seed(SEED))
    assert len(every.places) >= 3
    chosen = torch.full_like(taken.values, -100)
    chosen[every.places] = every.targets
    ids, mask = TokenTable(every.values, taken.offsets).padded(pad_id=267)
    targets, _ = TokenTable(chosen, taken.offsets).padded(pad_id=-100)
    states = model.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    total = states.new_zeros(())
    if model.token_head is not None:
        words = model.encoder.embeddings.word_embeddings.weight
        logits = model.token_head(states.flatten(0, 1), words)
        total = total + F.cross_entropy(logits, targets.flatten(), ignore_index=-100)
    if model.rank_head is not None:
        means = (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        found, wanted = model.rank_head(means), ranks[IDS]
        of_strings = [
            (one[known] - other[known]).square().mean()
            for one, other in zip(found, wanted, strict=True)
            if (known := other.isfinite()).any()
        ]
        assert len(of_strings) == 4
        total = total + torch.stack(of_strings).mean()
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-12)
    plain = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert plain.keys() == packed.keys()
    for name, gradient in plain.items():
        assert torch.allclose(packed[name], gradient, rtol=1e-9, atol=1e-12), name
        assert gradient.any() or "key_proj.bias" in name or "position" in name, name


def test_ranks_together_are_one() -> None:
    """The shares of three processes add up to the loss of one."""
    ranks, model = some_ranks(), model_of("both").double()
    whole = model(share_of(TOKENS, ranks, IDS, VOCABULARY, SEED))
    parts = [model(share_of(TOKENS, ranks, IDS, VOCABULARY, SEED, rank, 3)) for rank in range(3)]
    for name in ("loss", "token_loss", "rank_loss", "num_right"):
        total = sum(float(getattr(part, name).detach()) for part in parts)
        assert total == pytest.approx(float(getattr(whole, name).detach()), rel=1e-10)


def test_a_string_does_not_see_another() -> None:
    model = model_of("ranks").double()
    ranks = torch.zeros(7, NUM_RANKS).double()
    seen, unseen = 1, 5
    ranks[unseen] = torch.nan  # so that the loss is that of the other alone

    def loss_with(changed: int | None) -> float:
        tokens = TokenTable(TOKENS.values.clone(), TOKENS.offsets)
        if changed is not None:
            tokens.values[tokens.offsets[changed] + 1 : tokens.offsets[changed + 1]] = 33
        ids = torch.tensor([unseen, seen])
        return float(model(share_of(tokens, ranks, ids, VOCABULARY, SEED)).rank_loss)

    assert loss_with(unseen) == pytest.approx(loss_with(None), rel=1e-12)
    assert loss_with(seen) != pytest.approx(loss_with(None), rel=1e-3)
