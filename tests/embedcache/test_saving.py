"""What encoding once saves is what random steps show, and is said in words that add up."""

import pytest
import torch

from embedcache.saving import num_cells_of, saving_of

LENGTHS = torch.tensor([3, 10, 40, 7, 5])
CHANCES = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])


def test_a_steps_saving_is_that_of_random_steps() -> None:
    generator = torch.Generator().manual_seed(3)
    cells = torch.multinomial(CHANCES, 2000, True, generator=generator).unflatten(0, (1000, 2))
    saving = saving_of([(num_cells_of(cells, 5), LENGTHS)], 1000, 8)
    assert saving is not None
    strings, tokens = [], []
    for _ in range(400):
        step = cells[torch.randperm(1000, generator=generator)[:8]]
        strings.append(len(step.unique()))
        tokens.append(LENGTHS[step.unique()].sum().item())
    assert saving.strings == pytest.approx(sum(strings) / 400, rel=0.03)
    assert saving.tokens == pytest.approx(sum(tokens) / 400, rel=0.03)
    assert saving.row_strings == 16
    assert saving.row_tokens == pytest.approx(LENGTHS[cells].sum().item() * 8 / 1000)
    assert saving.ratio == saving.row_tokens / saving.tokens


def test_all_rows_have_all_strings_of_every_encoder() -> None:
    encoders = [(torch.tensor([90, 10]), torch.tensor([5, 20])), (torch.tensor([100]), LENGTHS[:1])]
    saving = saving_of(encoders, 100, 5_000)
    assert saving is not None
    assert saving[:4] == (100, 3.0, 28.0, 200.0)
    assert saving.row_tokens == 90 * 5 + 10 * 20 + 100 * 3
    assert saving.in_words() == (
        "3 strings (28 tokens, 0.28 per row) instead of 200 (950 tokens, 9.5 per row): 33.9 x"
    )


def test_nothing_is_saved_where_nothing_is_encoded() -> None:
    assert saving_of([], 100, 10) is None
    assert saving_of([(torch.tensor([0]), torch.tensor([3]))], 100, 10) is None
