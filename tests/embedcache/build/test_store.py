"""Vectors that outlive caches: nothing is encoded twice, nothing wrong is ever taken, and whatever
is wrong with their folder is a remark.
"""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from jaxtyping import Float32

from embedcache.build import store as store_module
from embedcache.build import vectors as vectors_module
from embedcache.build.store import VectorStore, emptied, pieces_in, summary_of
from embedcache.config.cache import VECTORS, CacheConfig
from embedcache.errors import ConfigError, EncoderError
from embedcache.schema import parse_config

KEY, WIDTH = "0123456789abcdef", 6
Vectors = dict[str, np.ndarray]


def made(texts: list[str], seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    return {text: rng.normal(size=WIDTH).astype(np.float32) for text in texts}


def store_at(root: Path, most_bytes: int = 1 << 20) -> VectorStore:
    return VectorStore(root, KEY, most_bytes)


def same(found: Vectors, wanted: Vectors) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[text], wanted[text]) for text in wanted
    )


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which builds of this test keep vectors."""
    monkeypatch.setenv(VECTORS, str(tmp_path / "kept"))
    return tmp_path / "kept"


def beside(study: Any, name: str, **changes: Any) -> Any:
    """Return the same study with another cache."""
    path = str(Path(study.cache.path).with_name(name))
    study = study.but(**changes) if changes else study
    return replace(study, cache=study.cache.model_copy(update={"path": path}))


def vectors_of(study: Any) -> Float32[np.ndarray, "S E"]:
    return study.open().strings("polymer").embeddings.numpy()


@pytest.mark.slow
def test_another_split_target_or_table_encodes_nothing(
    make_study: Any, frame_of: Callable[..., pl.DataFrame], tmp_path: Path, kept: Path
) -> None:
    study = make_study(tmp_path)
    first = study.build()
    assert (first.num_encoded, first.num_stored) == (5, 0)
    assert "store" not in first.summary()
    others = [
        beside(study, "split.zarr", split={"seed": 3}),
        beside(make_study(tmp_path, targets=[{"name": "ef", "column": "outcome"}]), "target.zarr"),
        beside(make_study(tmp_path, frame_of(seed=4), file="other.parquet"), "table.zarr"),
    ]
    others[0] = replace(others[0], split=others[0].split.model_copy(update={"stratify_by": None}))
    others[1] = replace(others[1], split=others[0].split)
    for other in others:
        report = other.build()
        assert (report.num_encoded, report.num_stored) == (0, 5)
        assert "0 strings encoded anew, 5 from the vector store" in report.summary()
        assert np.array_equal(vectors_of(other), vectors_of(study)), "to the last bit"
    pooled = beside(study, "pooled.zarr", encoder={"pooling": "cls"})
    assert pooled.build().num_encoded == 5, "another pooling shares no vector"
    assert len(list(kept.iterdir())) == 2


def test_the_first_build_is_that_without_a_store(
    make_study: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    study.build()
    monkeypatch.setenv(VECTORS, "off")
    without = beside(study, "without.zarr")
    assert without.build().num_encoded == 5
    assert np.array_equal(vectors_of(study), vectors_of(without))


@pytest.mark.slow
def test_what_an_old_cache_has_is_kept_too(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    study.build()
    monkeypatch.setenv(VECTORS, str(tmp_path / "kept"))
    assert study.but(split={"seed": 2}).build(overwrite=True).num_encoded == 0
    assert beside(study, "again.zarr").build().num_stored == 5


@pytest.mark.slow
def test_an_appended_cache_equals_one_built_at_once_whatever_the_store_has(
    make_study: Any, frame_of: Callable[..., pl.DataFrame], tmp_path: Path, kept: Path
) -> None:
    some = frame_of().filter(pl.col("smiles").str.contains("c1"))  # in a batch of its own
    random = {"strategy": "random", "stratify_by": None}
    beside(make_study(tmp_path, some, file="some.parquet"), "some.zarr", split=random).build()
    frame = frame_of()
    first = frame.filter(~pl.col("smiles").str.contains("O|c1ccccc1"))
    first.write_parquet(tmp_path / "a.parquet")
    frame.write_parquet(tmp_path / "b.parquet")
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    study = make_study(tmp_path)
    grown = beside(study, "grown.zarr", path=paths[:1])
    assert grown.build().num_stored == 1
    grown = beside(study, "grown.zarr", path=paths)
    grown.build(append=True)
    at_once = beside(study, "once.zarr", path=paths)
    assert at_once.build().num_stored == 5
    assert grown.open().strings("polymer").text == at_once.open().strings("polymer").text
    assert np.array_equal(vectors_of(grown), vectors_of(at_once))


@pytest.mark.slow
def test_a_build_that_is_killed_keeps_nothing_until_it_has_all(
    make_study: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    wanted = beside(study, "wanted.zarr")
    monkeypatch.setenv(VECTORS, "off")
    wanted.build()
    monkeypatch.setenv(VECTORS, str(kept))
    monkeypatch.setattr(vectors_module, "PIECE", 2)
    encode, num_batches = vectors_module.encode_all, 0

    def fails(*words: Any, **named: Any) -> Any:
        nonlocal num_batches
        num_batches += 1
        if num_batches == 3:
            raise EncoderError("killed")
        return encode(*words, **named)

    monkeypatch.setattr(vectors_module, "encode_all", fails)
    with pytest.raises(EncoderError, match="killed"):
        study.build()
    assert not kept.exists()
    monkeypatch.setattr(vectors_module, "encode_all", encode)
    assert 0 < study.build().num_encoded < 5
    assert beside(study, "again.zarr").build().num_stored == 5


def test_every_damage_is_seen_and_its_strings_encoded_again(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(9)]
    vectors = made(texts)
    store_at(tmp_path).add(vectors, "encoder")
    (piece,) = pieces_in(tmp_path / KEY)
    content = piece.read_bytes()
    damages = [content[:length] for length in (0, 4, 8, 60, len(content) - 1)]
    damages += [b"\xff" * 100, content + b"x"]
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        damages.append(bytes(changed))
    for damaged in damages:
        piece.write_bytes(damaged)
        store = store_at(tmp_path)
        found = store.find(texts, WIDTH)
        # a text that changed is not found; nothing is found wrong
        assert not found or same(found, vectors)
        if not found and not piece.exists():
            assert "1 damaged piece" in store.remarks[0]
        store.add(vectors, "encoder")
        assert same(store_at(tmp_path).find(texts, WIDTH), vectors)
        for each in pieces_in(tmp_path / KEY):
            each.unlink()


@pytest.mark.slow
def test_a_damaged_piece_is_a_remark_of_the_build(
    make_study: Any, tmp_path: Path, kept: Path
) -> None:
    study = make_study(tmp_path)
    study.build()
    (piece,) = kept.glob("*/*.safetensors")
    content = bytearray(piece.read_bytes())
    content[-3] ^= 1
    piece.write_bytes(content)
    again = beside(study, "again.zarr")
    report = again.build()
    assert report.num_encoded == 5
    assert any("1 damaged piece of the vector store" in line for line in report.remarks)
    assert np.array_equal(vectors_of(again), vectors_of(study))
    assert beside(study, "third.zarr").build().num_stored == 5


def test_vectors_of_another_width_are_not_taken(tmp_path: Path) -> None:
    store_at(tmp_path).add(made(["a"]), "encoder")
    store = store_at(tmp_path)
    assert store.find(["a"], WIDTH + 1) == {}
    assert store.remarks


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for number, text in enumerate("abcd"):
        store_at(tmp_path).add(made([text]), "encoder")
        newest = max(pieces_in(tmp_path / KEY), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (1000 + number, 1000 + number))
    size = newest.stat().st_size
    assert store_at(tmp_path).find(["a"], WIDTH)  # used just now
    VectorStore(tmp_path, KEY[::-1], 3 * size).add(made(["e"]), "encoder")
    left = [text for text in "abcd" if store_at(tmp_path).find([text], WIDTH)]
    assert left == ["a", "d"]
    # what a build itself has read stays, though it be too much
    reader = store_at(tmp_path, size)
    assert reader.find(["a", "d"], WIDTH).keys() == {"a", "d"}
    reader.add(made(["f"]), "encoder")
    assert store_at(tmp_path).find("adf", WIDTH).keys() == {"a", "d", "f"}
    assert not VectorStore(tmp_path, KEY[::-1], size).find(["e"], WIDTH)


def test_a_store_takes_no_more_than_it_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PIECE_STRINGS", 4)
    store = store_at(tmp_path, most_bytes=10 * WIDTH * 4)
    texts = [str(number) for number in range(25)]
    store.add(made(texts), "encoder")
    assert "keeps 10 of these 25 strings" in store.remarks[0]
    assert [len(piece.texts) for piece in store_module.listed(tmp_path / KEY)] != []
    assert len(store_at(tmp_path).find(texts, WIDTH)) == 10


def test_models_in_the_folder_are_never_touched(tmp_path: Path) -> None:
    for name in ("polyBERT/model.safetensors", f"{KEY}/model.safetensors", "a.safetensors"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"a model")
        os.utime(file, (1, 1))
    store_at(tmp_path, 1 << 9).add(made(["a"]), "encoder")
    assert emptied(tmp_path) > 0
    assert [file.read_bytes() for file in tmp_path.rglob("*.safetensors")] == [b"a model"] * 3


def test_a_full_disk_or_a_forbidden_folder_is_a_remark(
    make_study: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path)
    kept.write_bytes(b"a file is where the folder is to be")
    report = study.build()
    assert report.num_encoded == 5
    assert any("cannot be written" in line and "off" in line for line in report.remarks)
    kept.unlink()

    def full(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(store_module, "write_atomically", full)
    report = beside(study, "full.zarr").build()
    assert report.num_encoded == 5
    assert any("No space left" in line for line in report.remarks)

    def closed(folder: Path) -> list[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(store_module, "pieces_in", closed)
    report = beside(study, "closed.zarr").build()
    assert any("cannot be read" in line for line in report.remarks)


def test_builds_at_once_find_what_is_whole_or_nothing(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(40)]
    vectors, size = made(texts), 40 * 4 * WIDTH

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(12):
            some = rng.choice(texts, 8, replace=False).tolist()
            store = store_at(tmp_path, size)  # so small that each takes away from the others
            found = store.find(some, WIDTH)
            assert all(np.array_equal(found[text], vectors[text]) for text in found)
            store.add({text: vectors[text] for text in some}, "encoder")
            assert store.remarks == []

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not [path for path in (tmp_path / KEY).iterdir() if path.name.startswith(".")]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    store_at(tmp_path).add(made(["a"]), "encoder")
    (piece,) = pieces_in(tmp_path / KEY)
    left = piece.with_name(f".{piece.name}.abcd1234.partial")
    left.mkdir()
    (left / "new").write_bytes(b"half")
    store_at(tmp_path).add(made(["b"]), "encoder")
    assert left.exists()  # perhaps somebody writes there
    os.utime(left, (1, 1))
    store_at(tmp_path).add(made(["c"]), "encoder")
    assert not left.exists()


@pytest.mark.parametrize(
    ("value", "environment", "wanted"),
    [
        ("auto", {}, "home/.cache/embedcache/vectors"),
        ("auto", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/embedcache/vectors"),
        (True, {VECTORS: "/named"}, "/named"),
        ("auto", {VECTORS: "off"}, None),
        ("off", {VECTORS: "/named"}, None),
        (False, {}, None),
        (None, {}, None),
        ("~/mine", {VECTORS: "/named"}, "home/mine"),
    ],
)
def test_where_the_store_lies(
    value: Any,
    environment: dict[str, str],
    wanted: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (VECTORS, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    found = parse_config(CacheConfig, {"vectors": value}, "test").vectors_folder
    assert found == (None if wanted is None else tmp_path / wanted)


def test_a_store_inside_of_its_cache_is_refused() -> None:
    values = {"path": "a/cache.zarr", "vectors": "a/cache.zarr/vectors"}
    with pytest.raises(ConfigError, match="lies in the cache itself"):
        parse_config(CacheConfig, values, "test")


def test_the_command_says_where_it_lies_and_deletes_it(tmp_path: Path) -> None:
    assert "no vectors are kept" in summary_of(tmp_path / "nowhere")
    store_at(tmp_path).add(made(["a", "b"]), "models/poly\x1bBERT")
    text = summary_of(tmp_path)
    assert f"{KEY}: 2 strings" in text
    assert "models/poly" in text
    assert "\x1b" not in text
    assert emptied(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)
    assert emptied(tmp_path) == 0
