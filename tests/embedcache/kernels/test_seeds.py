"""Seeds of masks: each by a draw of its own, or a step's by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable
from embedcache.kernels.seeds import draw_seed, seed_draws, seeds_drawn_at_once
from embedcache.live.bounded import encode_bounded

CPU = torch.device("cpu")


class Draws(TorchDispatchMode):
    """Counts the calls of the generator."""

    num = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.num += "randint" in func.__name__
        return func(*args, **(kwargs or {}))


def test_a_seed_by_itself_is_one_draw() -> None:
    torch.manual_seed(3)
    found = [draw_seed(CPU) for _ in range(3)]
    torch.manual_seed(3)
    assert torch.equal(torch.cat(found), torch.cat([torch.randint(2**62, (1,)) for _ in found]))


@pytest.mark.parametrize("num", [1, 5, 31])
def test_seeds_at_once_differ_and_are_one_draw(num: int) -> None:
    with Draws() as draws, seeds_drawn_at_once(num, CPU):
        seeds = [draw_seed(CPU) for _ in range(num)]
        assert draws.num == 1
        assert len({int(seed) for seed in seeds}) == num
        assert all(seed.shape == (1,) for seed in seeds)
        assert {seed.data_ptr() % 16 for seed in seeds} == {seeds[0].data_ptr() % 16}
        late = [int(draw_seed(CPU)) for _ in range(2)]  # they ran out
        assert draws.num == 3
        assert len({*late, *map(int, seeds)}) == num + 2
    with draws:
        draw_seed(CPU)
    assert draws.num == 4


def test_nothing_is_drawn_for_nobody_and_nothing_outlives_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeds_drawn_at_once(9, CPU):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    with Draws() as draws:
        draw_seed(CPU)
        draw_seed(CPU)
    assert draws.num == 2


def test_of_another_device_they_are_drawn_there() -> None:
    with seeds_drawn_at_once(9, torch.device("meta")):
        torch.manual_seed(4)
        found = draw_seed(CPU)
    torch.manual_seed(4)
    assert torch.equal(found, torch.randint(2**62, (1,)))


class SeedsInPlaceOfVectors(StringEncoder):
    """Gives each string a weight times the pass's seed."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(1))
        self.seeds: list[int] = []

    def forward(self, tokens: TokenTable) -> Tensor:
        seed = draw_seed(CPU)
        self.seeds.append(int(seed))
        return (self.weight * (seed % 97)).expand(tokens.num_strings, 1).sin()


def test_an_encoding_in_two_passes_has_its_seeds_twice() -> None:
    tokens = TokenTable(torch.arange(12), torch.tensor([0, 4, 8, 12]))
    encoder = SeedsInPlaceOfVectors()
    with seeds_drawn_at_once(9, CPU):
        first = draw_seed(CPU)
        encode_bounded(encoder, tokens, 4).sum().backward()
    assert len(encoder.seeds) == 6
    assert len({*encoder.seeds, int(first)}) == 4
    assert sorted(encoder.seeds[:3]) == sorted(encoder.seeds[3:])


def test_draws_are_those_that_torch_seeds() -> None:
    torch.manual_seed(2**63 - 5)
    expected = torch.rand(5), torch.randint(2**62, (3,))
    seed_draws(2**63 - 5, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(torch.randint(2**62, (3,)), expected[1])
