"""Faults injected into a build: a kill, a stop at every step, a second builder, a full disk. What
is published is always whole.

Builders that are killed are real processes.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from forks import Forks

from embedcache.build import vectors
from embedcache.build.decide import Existing, build_cache
from embedcache.build.identity import wanted_identity
from embedcache.cache import folder as cache_folder
from embedcache.cache import manifest, writer
from embedcache.cache.folder import CacheFolder
from embedcache.cache.layout import ROW_ARRAYS
from embedcache.cache.reader import Cache
from embedcache.errors import BusyCacheError, CacheError, MissingCacheError

pytestmark = pytest.mark.slow  # together 48 s of CPU, in make test alone

FIELDS = [array.name for array in ROW_ARRAYS]


class Stopped(BaseException):
    """As sudden as a kill, but at a chosen place."""


@pytest.fixture
def study(make_study: Callable, tmp_path: Path) -> Any:
    return make_study(tmp_path)


def published(study: Any) -> Cache | None:
    """Return the cache at the path after checking all of it, or None if there is none."""
    try:
        cache = study.open()
    except MissingCacheError:
        return None
    cache.verify()
    return cache


def same_content(cache: Cache, reference: Cache) -> None:
    assert cache.identity == reference.identity
    assert cache.scaling == reference.scaling
    for field in FIELDS:
        np.testing.assert_array_equal(
            getattr(cache.rows(), field), getattr(reference.rows(), field)
        )
    np.testing.assert_allclose(
        cache.strings("polymer").embeddings, reference.strings("polymer").embeddings, atol=1e-6
    )


@pytest.fixture(scope="module")
def longer(
    make_study: Callable, frame_of: Callable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Cache]:
    """A study of many small shards, the same with another seed, and the finished cache of that."""
    folder = tmp_path_factory.mktemp("longer")
    study = make_study(folder, frame_of(480))
    other = study.but(split={"seed": 1})
    other.build()
    finished = folder / "finished.zarr"
    Path(study.cache.path).rename(finished)
    return study, other, vectors.Cache(finished, manifest.read_root(finished))


@pytest.mark.dist
def test_a_kill_at_any_moment_leaves_the_old_cache_or_a_build_that_goes_on(
    longer: tuple[Any, Any, Cache], forks: Forks, tmp_path: Path
) -> None:
    study, other, reference = longer
    rng = np.random.default_rng(0)
    forks.call(os.getpid).wait()  # the server has started
    started = time.perf_counter()
    forks.call(build_cache, *study.arguments()).wait()
    seconds = time.perf_counter() - started
    old = study.open().identity
    assert old != reference.identity
    shutil.copytree(study.cache.path, tmp_path / "old.zarr")
    outcomes = []
    for _ in range(3):
        shutil.rmtree(study.cache.path)
        shutil.copytree(tmp_path / "old.zarr", study.cache.path)
        builder = forks.call(build_cache, *other.arguments(), Existing.OVERWRITE)
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        builder.kill()
        cache = published(study)
        assert cache is not None or CacheFolder(study.cache.path).replaced.exists(), (
            "the old cache is gone"
        )
        outcomes.append("old" if cache is None or cache.identity == old else "new")
        assert other.build(overwrite=True).status in ("built", "up to date")
        same_content(other.open(), reference)
        assert not CacheFolder(study.cache.path).partial.exists()
    assert "old" in outcomes, "no kill came before the end: the test shows nothing"


@pytest.mark.dist
def test_a_kill_while_appending_leaves_the_old_cache_or_the_grown_one(
    make_study: Callable,
    frame_of: Callable,
    forks: Forks,
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, frame_of(480))
    frame_of(240, 14, seed=3).with_columns(pl.lit("[*]CCCC[*]").alias("smiles")).write_parquet(
        tmp_path / "more.parquet"
    )
    grown = study.but(path=[study.data.path, str(tmp_path / "more.parquet")])
    study.build()
    old = study.open().identity
    shutil.copytree(study.cache.path, tmp_path / "old.zarr")
    started = time.perf_counter()
    grown.build(append=True)
    seconds, rng = time.perf_counter() - started, np.random.default_rng(1)
    finished = tmp_path / "finished.zarr"
    Path(study.cache.path).rename(finished)
    reference = vectors.Cache(finished, manifest.read_root(finished))
    outcomes = []
    for _ in range(3):
        shutil.rmtree(study.cache.path, ignore_errors=True)
        shutil.copytree(tmp_path / "old.zarr", study.cache.path)
        builder = forks.call(build_cache, *grown.arguments(), Existing.APPEND)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        builder.kill()
        cache = published(study)
        assert cache is not None or CacheFolder(study.cache.path).replaced.exists(), (
            "the old cache is gone"
        )
        outcomes.append("old" if cache is None or cache.identity == old else "new")
        assert grown.build(append=True).status in ("appended to", "up to date")
        same_content(grown.open(), reference)
        assert grown.open().strings("polymer").text == reference.strings("polymer").text
        assert not CacheFolder(study.cache.path).partial.exists()
    assert "old" in outcomes, "no kill came before the end: the test shows nothing"


@pytest.mark.parametrize(
    "step",
    [
        (Path, "rename", 1),
        (Path, "rename", 2),
        (manifest, "seal", 1),
        (writer.StoreWriter, "add_rows", 2),
    ],
    ids=lambda step: step[1],
)
def test_a_stop_while_appending_is_mended_by_the_next_build(
    make_study: Callable, frame_of: Callable, tmp_path: Path, step: tuple[Any, str, int]
) -> None:
    study = make_study(tmp_path)
    frame_of(60, 14, seed=3).write_parquet(tmp_path / "more.parquet")
    grown = study.but(path=[study.data.path, str(tmp_path / "more.parquet")])
    study.build()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *step)
        with pytest.raises(Stopped):
            grown.build(append=True)
    assert grown.build(append=True).status in ("appended to", "up to date")
    assert published(grown).layout.num_rows == 300
    assert not CacheFolder(study.cache.path).partial.exists()


STEPS = [
    (Path, "rename", 1),
    (Path, "rename", 2),
    (Path, "replace", 1),
    (Path, "replace", 3),
    (vectors, "save_piece", 3),
    (writer.StoreWriter, "__init__", 1),
    (writer.StoreWriter, "add_strings", 1),
    (writer.StoreWriter, "add_rows", 3),
    (writer.StoreWriter, "finish", 1),
    (manifest, "seal", 1),
    (manifest, "file_digest", 4),
    (shutil, "rmtree", 1),
    (shutil, "rmtree", 2),
]


def stop_at(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    then: BaseException | None = None,
) -> list[int]:
    """Make the `call`-th call of a function stop the build before it does anything; return a list
    that counts the calls.
    """
    original, calls = getattr(owner, name), [0]

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise then or Stopped
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)
    return calls


@pytest.mark.parametrize(
    ("owner", "name", "call"), STEPS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_stop_at_any_step_is_mended_by_the_next_build(
    study: Any, built_study: Any, owner: Any, name: str, call: int
) -> None:
    # the same table and settings, hence the same identity
    shutil.copytree(built_study.cache.path, study.cache.path)
    old, other = study.open().identity, study.but(split={"seed": 1}, encoder={"pooling": "cls"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PIECE", 2)
        calls = stop_at(patch, owner, name, call)
        with pytest.raises(Stopped):
            other.build(overwrite=True)
        assert calls[0] == call
    cache = published(study)
    assert cache is not None or CacheFolder(study.cache.path).replaced.exists()
    assert other.build(overwrite=True).status in ("built", "up to date")
    assert published(other).identity != old
    assert not CacheFolder(study.cache.path).partial.exists()


def test_the_old_cache_comes_back_if_the_build_is_not_repeated(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.build()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Path, "rename", 2)  # between the two renames
        with pytest.raises(Stopped):
            study.but(split={"seed": 1}).build(overwrite=True)
    assert published(study) is None
    assert study.build().status == "up to date"


def test_a_finished_but_unpublished_build_is_published_without_work(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Path, "rename", 1)
        with pytest.raises(Stopped):
            study.build()
    assert published(study) is None
    monkeypatch.setattr(
        "embedcache.build.files.read_table", lambda *_: pytest.fail("the table was read again")
    )
    assert study.build().status == "built"


def test_a_finished_but_unpublished_build_of_something_else_is_not_published(study: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, Path, "rename", 1)
        with pytest.raises(Stopped):
            study.build()
    other = study.but(split={"seed": 1})
    assert other.build().status == "built"
    assert published(study).identity == wanted_identity(
        other.data, other.targets, other.split, other.encoder
    )


def test_encoded_strings_survive_a_kill(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PIECE", 2)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, vectors, "save_piece", 3)
        with pytest.raises(Stopped):
            study.build()
    assert study.but(split={"seed": 1}).build().num_encoded == 1, (
        "two pieces of two strings were kept, one string was left"
    )


def test_a_damaged_piece_is_encoded_again(
    study: Any, monkeypatch: pytest.MonkeyPatch, built_study: Any
) -> None:
    monkeypatch.setattr(vectors, "PIECE", 2)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, manifest, "seal", 1)
        with pytest.raises(Stopped):
            study.build()
    first, second, _ = sorted(CacheFolder(study.cache.path).vectors.rglob("*.npz"))
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[:50])
    assert study.build().num_encoded == 4
    np.testing.assert_allclose(
        study.open().strings("polymer").embeddings,
        built_study.open().strings("polymer").embeddings,
        atol=1e-6,
    )


@pytest.mark.dist
def test_two_builders_make_one_cache(
    longer: tuple[Any, Any, Cache], forks: Forks, tmp_path: Path
) -> None:
    _, other, reference = longer
    arguments = (
        *other.arguments()[:-1],
        other.cache.model_copy(update={"path": str(tmp_path / "cache.zarr")}),
    )
    builders = [forks.call(build_cache, *arguments) for _ in range(2)]
    assert [builder.wait().code for builder in builders] == [0, 0]
    same_content(
        vectors.Cache(tmp_path / "cache.zarr", manifest.read_root(tmp_path / "cache.zarr")),
        reference,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.zarr", "cache.zarr.lock"]


def test_a_builder_that_waits_too_long_says_for_whom(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "WAIT_S", 0.1)
    own = CacheFolder(study.cache.path)
    with own.locked():
        assert json.loads(own.builder.read_text())["pid"] == os.getpid()
        with pytest.raises(
            BusyCacheError, match=rf"is being built by process {os.getpid()} on .* since 20"
        ):
            study.build()
    assert study.build().status == "built"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for the cache."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_old_cache_stays(
    make_study: Callable, frame_of: Callable, tmp_path: Path, full_disk: Path
) -> None:
    study = make_study(tmp_path)
    path = str(full_disk / "cache.zarr")
    build_cache(*study.arguments()[:-1], study.cache.model_copy(update={"path": path}))
    frame_of(20_000).write_parquet(study.data.path)
    big = (
        *study.arguments()[:-1],
        study.cache.model_copy(update={"path": path, "rows_per_chunk": 4096}),
    )
    with pytest.raises(
        CacheError, match=r"(?s)no space left for .*the cache that was there is intact"
    ):
        build_cache(*big, Existing.OVERWRITE)
    vectors.Cache(Path(path), manifest.read_root(Path(path))).verify()
    assert not CacheFolder(path).store.exists(), (
        "the unfinished cache must not go on filling the disk"
    )


def test_what_is_still_being_written_is_deleted_too(tmp_path: Path) -> None:
    folder = CacheFolder(str(tmp_path / "cache.zarr"))
    ends = time.monotonic() + 0.3

    def write() -> None:  # as zarr does: folders are made where they are missing
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                (folder.store / "rows" / "c").mkdir(parents=True, exist_ok=True)
                (folder.store / "rows" / "c" / "0").write_bytes(b"late")

    thread = threading.Thread(target=write)
    thread.start()
    folder.discard_store()
    thread.join()
    assert not folder.store.exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit on the size of any file that this process writes: the kernel refuses as a full disk
    does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refused_write_is_a_clear_error(
    make_study: Callable, frame_of: Callable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = make_study(tmp_path, frame_of(20_000)).but()
    request.getfixturevalue("small_files")
    big = (*study.arguments()[:-1], study.cache.model_copy(update={"rows_per_chunk": 20_000}))
    with pytest.raises(CacheError, match=r"(?s)no space left for .*nothing was published"):
        build_cache(*big)
    assert not Path(study.cache.path).exists()


@pytest.mark.parametrize(
    "step",
    [(manifest, "sync", 1), (vectors, "save_piece", 1), (writer.StoreWriter, "add_rows", 2)],
    ids=lambda step: step[1],
)
def test_a_disk_that_fills_at_any_step(study: Any, step: tuple[Any, str, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *step, then=OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(CacheError, match="no space left"):
            study.build()
    assert published(study) is None
    assert study.build().status == "built"


def test_a_folder_that_cannot_be_written_is_a_clear_error(study: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        build_cache(
            *study.arguments()[:-1],
            study.cache.model_copy(update={"path": str(tmp_path / "file" / "cache.zarr")}),
        )


def test_a_bad_table_leaves_nothing_behind(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of().with_columns(pl.lit(float("nan")).alias("x")))
    before = set(tmp_path.iterdir())
    with pytest.raises(Exception, match="NaN"):
        study.build()
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {"cache.zarr.lock"}
