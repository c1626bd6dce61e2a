"""Rows, strings and vectors that do not belong together are refused, though every digest and
checksum of the cache is right.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from embedcache.cache import manifest
from embedcache.cache.reader import Cache, open_cache
from embedcache.errors import CorruptCacheError
from embedcache.table.strings import text_hashes
from fusionnet.commands import verify_cache
from fusionnet.commands.command import run_job

Fault = Callable[[zarr.Group], None]


@pytest.fixture(scope="module")
def with_states(make_study: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = make_study(tmp_path_factory.mktemp("consistency")).but(
        encoder={"mode": "prefix", "lora": {"first_layer": 1}}
    )
    study.build()
    return Path(study.cache.path)


def resealed(cache: Path, copy: Path, fault: Fault) -> Path:
    """Return a copy with some arrays rewritten, and a manifest that is right for the new bytes."""
    shutil.copytree(cache, copy)
    attributes = manifest.read_root(copy)
    fault(zarr.open_group(copy, mode="r+"))
    (copy / manifest.ROOT).unlink()
    manifest.seal(
        copy,
        {name: value for name, value in attributes.items() if name not in ("files", "complete")},
    )
    return copy


def everything(cache: Cache) -> None:
    for spec in cache.layout.strings:
        cache.strings(spec.name, with_states=True)
    cache.rows()


def permuted(*names: str) -> Fault:
    def fault(root: zarr.Group) -> None:
        for name in names:
            array = root[f"strings/polymer/{name}"]
            array[:] = array[:][[1, 0, 2, 3, 4]]

    return fault


def all_strings_in_another_order(root: zarr.Group) -> None:
    """As a writer that sorts in another way would leave them: each string is whole, every number
    means another.
    """
    group, order = root["strings/polymer"], [4, 2, 0, 1, 3]
    offsets = group["token_offsets"][:]
    parts = [slice(*offsets[s : s + 2]) for s in order]
    for name in ("token_ids", "prefix"):
        group[name][:] = np.concatenate([group[name][part] for part in parts])
    group["token_offsets"][:] = np.cumsum([0, *(part.stop - part.start for part in parts)])
    for name in ("text", "embeddings", "num_rows", "text_hash", "vector_hash", "prefix_hash"):
        group[name][:] = group[name][:][order]


def shifted_ids(root: zarr.Group) -> None:
    array = root["rows/string_id"]
    array[:] = np.roll(array[:], 1, axis=0)


def set_id(value: int) -> Fault:
    def fault(root: zarr.Group) -> None:
        root["rows/string_id"][117, 0] = value

    return fault


def swapped_tokens(root: zarr.Group) -> None:
    offsets, values = root["strings/polymer/token_offsets"][:], root["strings/polymer/token_ids"]
    ids = values[:]
    ids[offsets[0] + 1 : offsets[1] - 1] = ids[offsets[0] + 1 : offsets[1] - 1][::-1].copy()
    values[:] = ids


def swapped_states(root: zarr.Group) -> None:
    states = root["strings/polymer/prefix"]
    states[:] = np.roll(states[:], 1, axis=0)


FAULTS = {
    "vectors permuted": (
        permuted("embeddings"),
        "tokens, vectors or features of 2 of 5 strings belong to other strings: 0 ",
    ),
    "vectors permuted with their hashes": (
        permuted("embeddings", "vector_hash"),
        "tokens, vectors or features of 2 of 5 strings",
    ),
    "texts permuted": (permuted("text"), "text_hash of 2 of 5 strings"),
    "texts permuted with their hashes": (
        permuted("text", "text_hash"),
        "tokens, vectors or features of 2 of 5 strings",
    ),
    "strings in another order": (
        all_strings_in_another_order,
        "rows name another string of 'polymer' than their own: rows 0, 1, 2, 3, 4, ...",
    ),
    "ids shifted by a row": (
        shifted_ids,
        "rows name another string of 'polymer' than their own: rows ",
    ),
    "an id too large": (
        set_id(5),
        r"1 rows name no string of 'polymer', which has 5: rows 117 \(string 5\)",
    ),
    "an id that is a fill value": (
        set_id(-1),
        r"1 rows name no string of 'polymer', which has 5: rows 117 \(string -1\)",
    ),
    "tokens of a string reversed": (
        swapped_tokens,
        "tokens, vectors or features of 1 of 5 strings",
    ),
    "states shifted by a token": (swapped_states, "prefix of 5 of 5 strings"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_belong_together_is_refused(
    with_states: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    cache = open_cache(resealed(with_states, tmp_path / "copy.zarr", fault))
    for read in (everything, Cache.verify):
        with pytest.raises(CorruptCacheError, match=message) as caught:
            read(cache)
        assert "--overwrite" in str(caught.value)


def test_a_resealed_copy_without_a_fault_is_sound(with_states: Path, tmp_path: Path) -> None:
    cache = open_cache(resealed(with_states, tmp_path / "copy.zarr", lambda root: None))
    cache.verify()
    everything(cache)


def test_rows_that_are_read_are_checked_and_no_others(with_states: Path, tmp_path: Path) -> None:
    cache = open_cache(resealed(with_states, tmp_path / "copy.zarr", set_id(2)))
    assert cache.rows(0, 117).string_id.max() <= 4
    with pytest.raises(CorruptCacheError, match="rows 117"):
        cache.rows(100, 130)


def test_the_job_that_verifies_reads_all_rows(
    with_states: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = resealed(with_states, tmp_path / "copy.zarr", shifted_ids)
    monkeypatch.setattr("sys.argv", ["verify_cache", str(path)])
    monkeypatch.setattr("embedcache.cache.reader.ROWS_PER_CHECK", 100)
    with pytest.raises(SystemExit) as left:
        run_job(verify_cache.main)
    assert left.value.code == 2
    assert "rows name another string of 'polymer'" in capsys.readouterr().err


def test_a_rows_hash_comes_from_its_text(with_states: Path) -> None:
    cache = open_cache(with_states)
    texts, rows = cache.strings("polymer").text, cache.rows()
    assert (
        rows.string_hash[:, 0].tolist()
        == text_hashes([texts[k] for k in rows.string_id[:, 0]]).tolist()
    )
    # FIPS 180-2, B.1
    assert text_hashes(["abc"]).tolist() == [
        int.from_bytes(bytes.fromhex("ba7816bf8f01cfea"), "little", signed=True)
    ]
