"""Rows streamed from the cache are the same rows, each once an epoch, well mixed, in an order that
counts alone can enter, in bounded memory.
"""

import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import examples
from hypothesis import given
from hypothesis import strategies as st

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import ConfigError, CorruptCacheError
from fusionnet.config.train import TrainConfig
from fusionnet.experiment import load_experiment
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows
from fusionnet.rows.streaming import StreamingRows, count_chunks, open_rows
from fusionnet.rows.tensors import RowTable, load_rows, row_bytes, rows_of
from fusionnet.workflow.building import build_experiment

CHUNK = 16  # of the 400 rows of the tiny table


@pytest.fixture(scope="module")
def cache(tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The tiny table in chunks of 16 rows, three to a file."""
    path = tmp_path_factory.mktemp("chunked") / "cache.zarr"
    experiment = load_experiment(
        tiny_experiment,
        [f"cache.path={path}", f"cache.rows_per_chunk={CHUNK}", "cache.chunks_per_shard=3"],
    )
    build_experiment(experiment)
    return open_cache(path)


class InMemory(Cache):
    """The same rows, read once."""

    def __init__(self, cache: Cache) -> None:
        self._block = cache.rows()
        self.path, self.scaling, self.layout = cache.path, cache.scaling, cache.layout

    def rows(self, start: int = 0, stop: int | None = None) -> RowBlock:
        return RowBlock(
            **{
                field.name: getattr(self._block, field.name)[start:stop]
                for field in fields(RowBlock)
            }
        )


@pytest.fixture(scope="module")
def quick(cache: Cache) -> Cache:
    return InMemory(cache)


def streamed(cache: Cache, chunks_per_buffer: int, split: str = "train") -> StreamingRows:
    """Return a source whose budget is just that of so many chunks per buffer."""
    budget = (2 * chunks_per_buffer + 3) * CHUNK * (row_bytes(cache.layout) + 8)
    source = StreamingRows(cache, split, count_chunks(cache)[split], budget)
    assert source.chunks_per_buffer <= chunks_per_buffer
    return source


def same(found: RowTable, wanted: RowTable) -> bool:
    return all(
        torch.equal(
            getattr(found, field.name).nan_to_num(7), getattr(wanted, field.name).nan_to_num(7)
        )
        for field in fields(RowTable)
    )


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_resident_rows_are_read_a_few_chunks_at_a_time(
    cache: Cache, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, read, lengths = rows_of(cache, cache.rows(), split), type(cache).rows, []
    monkeypatch.setattr(
        type(cache),
        "rows",
        lambda self, start, stop: lengths.append(stop - start) or read(self, start, stop),
    )
    assert same(load_rows(cache, split), wanted)
    assert sum(lengths) == cache.layout.num_rows
    assert max(lengths) == 4 * CHUNK


@pytest.mark.slow
@examples(cost=4)
@given(
    chunks=st.integers(4, 40),
    batch_rows=st.integers(1, 300),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_an_epoch_is_every_row_once_in_steps_of_the_plan_and_can_be_entered_anywhere(
    quick: Cache, chunks: int, batch_rows: int, epoch: int, seed: int, data: st.DataObject
) -> None:
    source, table = streamed(quick, chunks), load_rows(quick, "train")
    plan = StepPlan(source.num_rows, batch_rows, 1, 1, seed)
    steps = list(source.steps(plan, epoch))
    assert (
        [step.num_rows for step in steps]
        == plan.step_sizes
        == [step.num_rows for step in ResidentRows(table).steps(plan, epoch)]
    )
    row = torch.cat([step.row for step in steps])
    assert torch.equal(row.sort().values, table.row)
    for step in steps:
        assert same(step, table.take(torch.searchsorted(table.row, step.row)))
    first = data.draw(st.integers(0, len(steps)))
    assert all(
        same(found, wanted)
        for found, wanted in zip(
            streamed(quick, chunks).steps(plan, epoch, first), steps[first:], strict=True
        )
    )


@pytest.mark.slow
def test_what_is_read_from_the_cache_are_the_resident_rows(cache: Cache) -> None:
    source, table = streamed(cache, 8), load_rows(cache, "train")
    for step in source.steps(StepPlan(source.num_rows, 60, 1, 1, 0), 0):
        assert same(step, table.take(torch.searchsorted(table.row, step.row)))


def test_the_order_is_another_in_every_epoch_and_for_every_seed(quick: Cache) -> None:
    source = streamed(quick, 5)
    orders = [
        torch.cat(
            [step.row for step in source.steps(StepPlan(source.num_rows, 32, 1, 1, seed), epoch)]
        )
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    # what was read ahead is what is asked for, or is read again
    source.prepare(StepPlan(source.num_rows, 32, 1, 1, 0), 1)
    for seed, epoch, wanted in ((1, 0, orders[2]), (0, 1, orders[1])):
        assert torch.equal(
            torch.cat(
                [
                    step.row
                    for step in source.steps(StepPlan(source.num_rows, 32, 1, 1, seed), epoch)
                ]
            ),
            wanted,
        )


@pytest.mark.parametrize("world_size", [1, 2, 3, 60])
def test_ranks_share_the_rows_in_table_order(quick: Cache, world_size: int) -> None:
    for source in (streamed(quick, 4, "validation"), ResidentRows(load_rows(quick, "validation"))):
        shares = [
            [block.row for block in source.blocks(rank, world_size)] for rank in range(world_size)
        ]
        assert [sum(map(len, share)) for share in shares] == source.shares(world_size)
        assert torch.equal(
            torch.cat([row for share in shares for row in share]),
            load_rows(quick, "validation").row,
        )


class FakeCache(Cache):
    """A long table of one split whose only feature is the place in it; chunks are drawn as from a
    real one.
    """

    def __init__(self, cache: Cache, num_chunks: int) -> None:
        self._block = cache.rows(0, CHUNK)
        self.path, self.scaling = cache.path, cache.scaling
        self.layout = cache.layout.model_copy(update={"num_rows": num_chunks * CHUNK})

    def rows(self, start: int = 0, stop: int | None = None) -> RowBlock:
        assert stop is not None
        return replace(self._block, split=np.zeros(stop - start, dtype=np.int8))


def test_what_varies_along_the_table_is_even_over_the_steps(cache: Cache) -> None:
    # 1,024 chunks, 32 to a buffer. A step of 256 rows drawn at random has a mean place within sigma
    # / 16; rows in table order would be off by sigma itself,
    # and a buffer of 32 chunks that were drawn without stretches by sigma / 5.7, which is three
    # times as much.
    num_chunks, batch_rows = 1024, 256
    fake = FakeCache(cache, num_chunks)
    budget = (2 * 32 + 3) * CHUNK * (row_bytes(cache.layout) + 8)
    source = StreamingRows(fake, "train", count_chunks(fake)["train"], budget)
    plan = StepPlan(source.num_rows, batch_rows, 1, 1, seed=0)
    places = [step.row.double() / (num_chunks * CHUNK) for step in source.steps(plan, 0)]
    sigma = 12**-0.5
    spread = torch.stack([place.mean() - 0.5 for place in places]).square().mean().sqrt() / sigma
    assert spread < 1.25 / batch_rows**0.5
    # of 32 stretches; a uniform draw of 256 rows misses none or one
    assert min(len(place.mul(32).long().unique()) for place in places) >= 28
    neighbours = torch.cat([(step[1:] - step[:-1]).abs() for step in places])
    assert abs(neighbours.mean() - 1 / 3) < 0.02  # as of two independent uniform numbers


@pytest.mark.slow
def test_auto_is_resident_where_the_table_fits(cache: Cache) -> None:
    assert isinstance(open_rows(cache, TrainConfig(), "cpu")[0], ResidentRows)
    assert isinstance(open_rows(cache, TrainConfig(rows="streaming"), "cpu")[1], StreamingRows)
    need = cache.layout.num_rows * row_bytes(cache.layout)
    assert need < 1 << 20
    large = FakeCache(cache, (1 << 20) // (CHUNK * row_bytes(cache.layout)) + 1)  # just over 1 MiB
    assert isinstance(open_rows(large, TrainConfig(rows_memory_mib=1), "cpu")[0], StreamingRows)


def test_a_budget_that_cannot_mix_is_refused(cache: Cache) -> None:
    with pytest.raises(ConfigError, match=r"rows_memory_mib=0 is too small .*cache.rows_per_chunk"):
        streamed(cache, 3)


def test_no_more_than_two_buffers_are_alive(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCache(cache, 80)
    source = StreamingRows(
        fake,
        "train",
        count_chunks(fake)["train"],
        (2 * 4 + 3) * CHUNK * (row_bytes(cache.layout) + 8),
    )
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    fill = source._fill

    def counted(*which: int) -> Any:
        buffer = fill(*which)
        alive.add(buffer.table.weight)
        return buffer

    monkeypatch.setattr(source, "_fill", counted)
    for step in source.steps(StepPlan(source.num_rows, 40, 1, 1, 0), 0):
        assert step.num_rows <= 40
        assert len(alive) <= 2
    assert source.chunks_per_buffer == 4


def test_rows_that_change_their_split_meanwhile_are_named(
    quick: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, plain = streamed(quick, 4), quick.rows
    plan = StepPlan(source.num_rows, 32, 1, 1, 0)

    def rows(start: int, stop: int) -> RowBlock:
        block = plain(start, stop)
        return replace(block, split=np.full_like(block.split, 2))

    monkeypatch.setattr(quick, "rows", rows)
    with pytest.raises(CorruptCacheError, match=r"rows \d+ to \d+ changed their split"):
        list(source.steps(plan, 0))


def test_the_reader_passes_on_what_went_wrong(
    quick: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = streamed(quick, 4)
    plan = StepPlan(source.num_rows, 32, 1, 1, 0)
    steps = source.steps(plan, 0)
    next(steps)

    def rows(start: int, stop: int) -> RowBlock:
        raise CorruptCacheError("array 'rows/weight', chunk 3")

    monkeypatch.setattr(quick, "rows", rows)
    with pytest.raises(CorruptCacheError, match="chunk 3"):
        list(source.steps(plan, 1))
