"""Several ranks build one cache: the same bits as one rank, every error ends all of them with one
message, nobody waits for the dead, work is kept.

Ranks are forks; one test starts fresh interpreters by DeepSpeed's launcher.
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from forks import Fork, Forks, free_port

from embedcache import ranks
from embedcache.build import vectors
from embedcache.build.vectors import StringVectors, assigned_batches
from embedcache.cache.folder import CacheFolder
from embedcache.cache.reader import Cache, open_cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import RankError
from embedcache.ranks import ALONE

pytestmark = pytest.mark.dist

WORKER = Path(__file__).with_name("rank_worker.py")
NUM_STRINGS = 1300  # three batches of 512 strings at most


def written_config(folder: Path, encoder: Path) -> Path:
    """Write a table of distinct strings and the config beside it."""
    rng = np.random.default_rng(0)
    texts = sorted(
        {"".join(rng.choice(list("CNOFS"), rng.integers(2, 16))) for _ in range(2 * NUM_STRINGS)}
    )[:NUM_STRINGS]
    table = pl.DataFrame({"text": texts, "y": rng.normal(size=len(texts))})
    table.write_parquet(folder / "table.parquet")
    values = {
        "data": {
            "path": str(folder / "table.parquet"),
            "strings": [{"name": "string", "column": "text", "kind": "text"}],
        },
        "split": {"strategy": "random"},
        "encoder": {"source": str(encoder)},
        "cache": {"path": str(folder / "cache.zarr")},
        "tasks": [{"name": "y", "column": "y"}],
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture
def config(tmp_path: Path, tiny_encoder_folder: Path) -> Path:
    return written_config(tmp_path, tiny_encoder_folder)


Fault = tuple[int, int, str]


class Builders:
    """Ranks that build the cache of one config."""

    def __init__(self, forks: Forks, config: Path) -> None:
        self.forks, self.config = forks, config

    def start(
        self, size: int, *words: str, fault: Fault | None = None, launcher: str = "torchrun"
    ) -> list[Fork]:
        """Start the job on some ranks, of which one has the fault (rank, batch, what)."""
        all_words = (json.dumps(fault), "--config", self.config, *words)
        return self.forks.start_ranks(WORKER, size, *all_words, launcher=launcher)

    def __call__(
        self, size: int, *words: str, fault: Fault | None = None, launcher: str = "torchrun"
    ) -> tuple[list[int], list[str]]:
        """Run the job on some ranks; return their exit codes and what each printed."""
        ended = [rank.wait() for rank in self.start(size, *words, fault=fault, launcher=launcher)]
        return [rank.code for rank in ended], [rank.out + rank.err for rank in ended]


@pytest.fixture
def build(forks: Forks, config: Path) -> Builders:
    return Builders(forks, config)


def strings_of(config: Path, path: Path | None = None) -> Any:
    cache: Cache = open_cache(path or config.with_name("cache.zarr"))
    cache.verify()
    return cache.strings("string")


@pytest.fixture(scope="module")
def alone(forks: Forks, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The strings of the cache that one rank builds."""
    config = written_config(tmp_path_factory.mktemp("alone"), tiny_encoder_folder)
    codes, printed = Builders(forks, config)(1)
    assert codes == [0], printed
    return strings_of(config)


def test_any_number_of_ranks_gives_the_same_bits(
    build: Builders, config: Path, alone: Any, tmp_path: Path
) -> None:
    assert len(alone.text) == NUM_STRINGS
    for size in (2, 3):
        codes, printed = build(
            size, "--set", f"cache.path={tmp_path / 'shared.zarr'}", "--overwrite"
        )
        assert codes == [0] * size, printed
        assert "1,300 strings encoded anew (" in printed[0]
        assert f"strings/s, {size} ranks)" in printed[0]
        assert not any("\n" in text for text in printed[1:]), "rank 0 alone speaks"
        shared = strings_of(config, tmp_path / "shared.zarr")
        assert shared.text == alone.text
        assert torch.equal(shared.embeddings, alone.embeddings)
        open_cache(tmp_path / "shared.zarr").path.rename(tmp_path / f"{size}.zarr")


def test_the_tasks_that_srun_starts_share_one_build(build: Builders, config: Path) -> None:
    codes, printed = build(2, launcher="srun")
    assert codes == [0, 0], printed
    assert "1,300 strings encoded anew (" in printed[0]
    assert "strings/s, 2 ranks)" in printed[0]
    assert printed[1] == "", "rank 0 alone speaks"
    assert len(strings_of(config).text) == NUM_STRINGS
    codes, printed = build(2, "--set", "split.seed=9")
    assert codes == [2, 2]
    assert "".join(printed).count("was built from something else") == 1


FAULTS = {
    "a bad table": (
        None,
        ("--set", "data.strings.0.column=nothing"),
        "string column 'nothing' is missing",
    ),
    "a bad config": (None, ("--set", "data.nothing=1"), "unknown key"),
    "damaged weights on rank 1": ((1, 1, "encoder"), (), "rank 1: its weights are damaged"),
    "damaged weights on rank 0": ((0, 1, "encoder"), (), "its weights are damaged"),
    "a full disk on rank 1": ((1, 1, "disk"), (), "no space left for"),
}


@pytest.mark.parametrize(("fault", "arguments", "message"), FAULTS.values(), ids=FAULTS)
def test_an_error_on_any_rank_ends_all_with_one_message(
    build: Builders,
    config: Path,
    fault: tuple[int, int, str] | None,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    codes, printed = build(2, *arguments, fault=fault)
    assert codes == [2, 2]
    assert message in printed[0]
    assert "".join(printed).count("error: ") == 1
    assert "Traceback" not in "".join(printed)
    assert not config.with_name("cache.zarr").exists()
    if fault is not None:
        assert build(1)[0] == [0], "the next build goes on"


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_a_rank_that_dies_ends_the_others_and_its_work_is_kept(
    build: Builders, config: Path, alone: Any, dies: int
) -> None:
    codes, printed = build(3, fault=(dies, 1, "kill"))
    assert codes[dies] == -9
    assert [code for rank, code in enumerate(codes) if rank != dies] == [2, 2], printed
    assert ["another rank of this build ended" in text for text in printed] == [
        dies != 0,
        False,
        False,
    ]
    pieces = list(CacheFolder(config.with_name("cache.zarr")).vectors.rglob("*.npz"))
    assert len(pieces) == 2, "those of the other ranks"
    codes, printed = build(2)
    assert codes == [0, 0], printed
    found = open_cache(config.with_name("cache.zarr"))
    assert 0 < found.report["num_encoded"] < NUM_STRINGS
    assert torch.equal(found.strings("string").embeddings, alone.embeddings)


def test_all_ranks_killed_at_any_moment_go_on_with_another_number(
    build: Builders, config: Path, alone: Any, tmp_path: Path
) -> None:
    started = time.perf_counter()
    build(2, "--set", f"cache.path={tmp_path / 'whole.zarr'}")
    seconds, rng = time.perf_counter() - started, np.random.default_rng(0)
    for size in (2, 3):
        builders = build.start(2)
        time.sleep(rng.uniform(0.3, 0.9) * seconds)
        for builder in builders:
            builder.kill()
        codes, printed = build(size)
        assert codes == [0] * size, printed
        assert torch.equal(strings_of(config).embeddings, alone.embeddings)


def test_batches_are_assigned_whole_once_and_evenly() -> None:
    lengths = torch.tensor(np.random.default_rng(0).integers(4, 80, 5000))
    batches = torch.arange(5000).split(100)
    for size in (1, 2, 3, 7):
        shares = assigned_batches(batches, lengths, size)
        assigned = [batch for share in shares for batch in share]
        assert sorted(int(batch[0]) for batch in assigned) == list(range(0, 5000, 100))
        costs = [sum(len(batch) * int(lengths[batch].max()) for batch in share) for share in shares]
        assert max(costs) <= 1.2 * sum(costs) / size
    assert assigned_batches([], lengths, 3) == ((), (), ())


def test_after_a_kill_the_batches_are_those_of_before(
    tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches planned over what is left would differ, and with them the last bits of the vectors.
    config = EncoderConfig(source=str(tiny_encoder_folder))
    texts = sorted({"C" * n + "O" * m for n in range(1, 9) for m in range(1, 9)})
    tokens = tokenize(load_tokenizer(config), texts, 64, 269).tokens
    encoder, batches = load_encoder(config), []

    def recorded(model: StringEncoder, part: TokenTable, **keywords: Any) -> np.ndarray:
        batches.append(tuple(part.values.tolist()))
        return encode_all(model, part, **keywords)

    monkeypatch.setattr(vectors, "PIECE", 6)
    monkeypatch.setattr(vectors, "encode_all", recorded)
    folder = tmp_path / "vectors"
    StringVectors(config, encoder, folder, {}, ALONE).encode_missing(texts, tokens)
    planned = list(batches)
    assert len(planned) > 8
    pieces = sorted(folder.glob("*.npz"))
    for lost in (pieces[0], pieces[3], pieces[4]):
        lost.unlink()
    batches.clear()
    rest = StringVectors(config, encoder, folder, {}, ALONE)
    rest.encode_missing(texts, tokens)
    assert 0 < len(batches) < len(planned)
    assert set(batches) <= set(planned)
    assert rest.of(texts).shape == (len(texts), encoder.width)


def test_ranks_take_the_argument_that_deepspeeds_launcher_adds(
    build: Builders, config: Path, alone: Any
) -> None:
    # what that launcher announces beside it is what torchrun does: jobs/test_train.py starts both
    codes, printed = build(2, "--local_rank=0")
    assert codes == [0, 0], printed
    assert "strings/s, 2 ranks)" in printed[0]
    assert torch.equal(strings_of(config).embeddings, alone.embeddings)


def test_a_rank_that_nobody_joins_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "JOINING", timedelta(seconds=1))
    with (
        pytest.raises(RankError, match="rank 1 of 2 does not find the others"),
        ranks.joined_ranks(),
    ):
        pytest.fail("joined whom?")
