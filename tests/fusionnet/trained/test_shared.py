"""Threads that share a model find what one after the other finds, to the bit, and encode each new
string once.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from fusionnet import RewardModel
from fusionnet.config.reward import RewardConfig, RewardTerm
from fusionnet.trained import encoder, vectors

THREADS = 8
NEW = tuple(f"[*]C{'N' * (k % 3)}{'C' * k}O[*]" for k in range(1, 7))
TERMS = (RewardTerm(task="ef", weight=0.5), RewardTerm(task="opt", weight=0.3))


def fresh(folder: Path) -> RewardModel:
    run = RewardModel.load(folder).run
    return RewardModel(replace(run, reward=RewardConfig(terms=TERMS)))


def rows_of(frame: pl.DataFrame, thread: int, call: int) -> pl.DataFrame:
    """Return 7 rows, of which some have strings that are new, others in each call."""
    new = [NEW[(thread + call) % 6], NEW[(3 * thread + call) % 6], None]
    texts = pl.Series([*new, new[0], None, None, new[1]])
    rows = frame.slice((17 * thread + 5 * call) % 400, 7)
    return rows.with_columns(smiles=pl.coalesce(texts, pl.col("smiles")))


@pytest.mark.slow
@pytest.mark.parametrize(("most_remembered", "calls"), [(65_536, 3), (1, 1)])
def test_threads_find_what_one_finds_and_encode_once(
    most_remembered: int,
    calls: int,
    made_run: Path,
    tiny_experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    monkeypatch.setattr(vectors, "MOST_REMEMBERED", most_remembered)
    alone = fresh(made_run)
    wanted = [_work(alone, frame, thread, calls) for thread in range(THREADS)]
    assert not torch.equal(wanted[0][0][0], wanted[1][0][0])

    encoded: Counter[str] = Counter()
    encode_new = encoder.encode_new

    def counted(run: Any, column: str, texts: Sequence[str]) -> Tensor:
        encoded.update(texts)
        return encode_new(run, column, texts)

    monkeypatch.setattr(encoder, "encode_new", counted)
    shared, start = fresh(made_run), Barrier(THREADS)
    before = torch.get_rng_state()

    def work(thread: int) -> list[tuple[Tensor, pl.DataFrame]]:
        start.wait()
        return _work(shared, frame, thread, calls)

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    assert torch.equal(torch.get_rng_state(), before)
    for own, others in zip(found, wanted, strict=True):
        for (reward, predicted), (reward_alone, predicted_alone) in zip(own, others, strict=True):
            assert torch.equal(reward, reward_alone)
            assert predicted.equals(predicted_alone)
    if most_remembered > len(NEW):
        assert encoded == dict.fromkeys(NEW, 1)


def _work(
    model: RewardModel, frame: pl.DataFrame, thread: int, calls: int
) -> list[tuple[Tensor, Any]]:
    blocks = [rows_of(frame, thread, call) for call in range(calls)]
    return [(model.reward(block), model.score(block)) for block in blocks]


def test_a_new_strings_vector_depends_on_nothing_encoded_with_it(
    made_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of(model: RewardModel, texts: Sequence[str]) -> Tensor:
        return vectors.vectors_of_all_strings(model.run, "polymer", texts)

    together = all_of(fresh(made_run), NEW)
    model = fresh(made_run)
    apart = torch.cat([all_of(model, [text]) for text in reversed(NEW)]).flip(0)
    assert torch.equal(together, apart)
    monkeypatch.setattr(encoder, "MOST_ALONE", 2)  # more share passes, and are as near
    torch.testing.assert_close(all_of(fresh(made_run), NEW), together, rtol=1e-5, atol=1e-6)


def test_loading_leaves_random_numbers_alone_among_threads(made_run: Path) -> None:
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(RewardModel.load, [made_run] * 8))
    assert torch.equal(torch.get_rng_state(), before)
