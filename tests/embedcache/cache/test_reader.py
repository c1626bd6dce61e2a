"""The store: what was written comes back, any Zarr reader reads it, and no damaged byte is ever
served.
"""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import zarr
from budgets import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from embedcache.build.blocks import reblocked
from embedcache.cache import manifest
from embedcache.cache.identity import FORMAT_VERSION
from embedcache.cache.layout import ROW_ARRAYS, Layout, RowBlock
from embedcache.cache.reader import Cache, open_cache
from embedcache.cache.writer import StoreWriter, rows_per_block
from embedcache.config.cache import CacheConfig
from embedcache.config.split import SPLITS
from embedcache.errors import CorruptCacheError, MissingCacheError, StaleCacheError

FIELDS = [array.name for array in ROW_ARRAYS]


def everything(cache: Cache) -> None:
    """Read all that a run reads."""
    cache.rows()
    for spec in cache.layout.strings:
        cache.strings(spec.name)


@pytest.fixture
def copy(built_study: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "copy.zarr"
    shutil.copytree(built_study.cache.path, folder)
    return folder


def test_rows_are_those_of_the_table(built_study: Any) -> None:
    frame, cache = pl.read_parquet(built_study.data.path), built_study.open()
    rows, layout, text = cache.rows(), cache.layout, cache.strings("polymer").text
    assert [text[k] for k in rows.string_id[:, 0]] == [
        smiles.replace("*CC*", "[*]CC[*]") if smiles == "*CC*" else smiles
        for smiles in frame["smiles"]
    ]
    expected = (
        frame.select(column.column for column in layout.numeric)
        .with_columns(pl.all().cast(pl.Float32))
        .to_numpy()
    )
    np.testing.assert_array_equal(rows.numeric, expected)
    ((column, values),) = layout.categories
    assert [values[k] for k in rows.category[:, 0]] == frame[column].to_list()
    np.testing.assert_array_equal(
        rows.targets[:, 0], frame["outcome"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    )
    np.testing.assert_array_equal(rows.targets[:, 1], frame["good"].cast(pl.Float32).to_numpy())
    assert np.isnan(rows.targets[:, 0]).sum() == frame["outcome"].null_count() > 0
    np.testing.assert_array_equal(rows.weight, np.where(frame["real"], 5.0, 1.0))
    assert [layout.groups[k] for k in rows.group] == frame["patient"].to_list()
    assert [layout.facets[1].values[k] for k in rows.facets[:, 1]] == frame["site"].cast(
        pl.String
    ).to_list()
    assert {name: (rows.split == code).sum() for name, code in layout.splits.items()} == {
        "train": 120,
        "validation": 60,
        "test": 60,
    }


@examples(cost=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, 240), st.integers(0, 240)))
def test_any_range_of_rows_is_a_slice_of_all(built_study: Any, bounds: tuple[int, int]) -> None:
    start, stop = sorted(bounds)
    cache = built_study.open()
    part, whole = cache.rows(start, stop), cache.rows()
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[start:stop])
        assert getattr(part, field).dtype == getattr(whole, field).dtype


@examples(cost=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    chunk=st.integers(1, 12),
    shards=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_arbitrary_blocks_come_back_whatever_the_chunks(
    built_study: Any,
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[int],
    chunk: int,
    shards: int,
    seed: int,
) -> None:
    num_rows, rng, source = sum(pieces), np.random.default_rng(seed), built_study.open()
    if num_rows == 0:
        return
    rows, strings = source.rows(), source.strings("polymer")
    chosen = rng.integers(0, 240, num_rows)
    made = {field: getattr(rows, field)[chosen] for field in FIELDS}
    # any bits: NaN, infinities, subnormal numbers
    made["numeric"] = rng.integers(0, 2**32, made["numeric"].shape, dtype=np.uint32).view(
        np.float32
    )
    whole = RowBlock(**made)
    bounds = np.cumsum([0, *pieces]).tolist()
    blocks = [
        RowBlock(**{field: getattr(whole, field)[first:last] for field in FIELDS})
        for first, last in pairwise(bounds)
    ]
    layout = source.layout.model_copy(update={"num_rows": num_rows})
    folder = tmp_path_factory.mktemp("made") / "cache.zarr"
    writer = StoreWriter(folder, layout, CacheConfig(rows_per_chunk=chunk, chunks_per_shard=shards))
    writer.add_strings(layout.strings[0], strings)
    sizes = []
    for block in reblocked(blocks, writer.rows_per_block):
        sizes.append(len(block.weight))
        writer.add_rows(block)
    assert all(size == writer.rows_per_block for size in sizes[:-1])
    writer.finish(source.scaling)
    root = json.loads((source.path / "zarr.json").read_text())["attributes"]
    kept = {name: root[name] for name in ("format_version", "identity", "provenance", "report")}
    manifest.seal(folder, {**kept, "layout": layout.model_dump(mode="json", exclude={"groups"})})
    cache = open_cache(folder)
    cache.verify()
    first, last = sorted(rng.integers(0, num_rows + 1, 2).tolist())
    for start, stop in ((0, num_rows), (first, last)):
        found = cache.rows(start, stop)
        for field in FIELDS:
            assert (
                getattr(found, field).tobytes()
                == np.ascontiguousarray(getattr(whole, field)[start:stop]).tobytes()
            ), field


def test_rows_beyond_the_table_are_refused(built_study: Any) -> None:
    with pytest.raises(IndexError, match="rows 0 to 241 of a cache of 240 rows"):
        built_study.open().rows(0, 241)


def test_a_wrong_shape_cannot_become_a_row_block(
    built_study: Any, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("the hook that checks shapes is off")
    rows = built_study.open().rows()
    with pytest.raises(Exception, match=r"(?i)type"):  # jaxtyping's check is on
        RowBlock(
            **{**{field: getattr(rows, field) for field in FIELDS}, "weight": rows.weight[:-1]}
        )


def test_strings_have_tokens_vectors_and_counts(built_study: Any) -> None:
    strings = built_study.open().strings("polymer")
    assert strings.text == sorted(strings.text)
    assert len(strings.text) == 5
    assert strings.embeddings.shape == (5, 24)
    assert strings.tokens.num_strings == 5
    assert strings.tokens.take(torch.tensor([strings.text.index("[*]CC[*]")])).values.tolist() == [
        265,
        264,
        5,
        33,
        33,
        5,
        266,
    ]
    assert int(strings.num_rows.sum()) == 240
    with pytest.raises(KeyError, match="polymer"):
        built_study.open().strings("solvent")


def test_any_zarr_reader_reads_it(built_study: Any) -> None:
    group = zarr.open_group(built_study.cache.path, mode="r")
    names = {name for name, _ in group.members(max_depth=None)}
    assert {
        "rows/numeric",
        "rows/split",
        "strings/polymer/embeddings",
        "strings/polymer/text",
        "groups/name",
        "scaling",
    } <= names
    assert group["rows/numeric"].metadata.dimension_names == ("row", "feature")
    assert group["rows/numeric"].attrs["columns"] == ["x", "y", "t", "flag", "same"]
    np.testing.assert_array_equal(group["rows/numeric"][:], built_study.open().rows().numeric)
    assert list(group["strings/polymer/text"][:]) == built_study.open().strings("polymer").text
    assert group.attrs["complete"] is True
    assert {"format_version", "identity", "layout", "provenance"} <= set(group.attrs)


def test_no_fill_value_looks_like_data(built_study: Any) -> None:
    for name, array in zarr.open_group(built_study.cache.path, mode="r").members(max_depth=None):
        if isinstance(array, zarr.Array) and array.dtype.kind != "T":
            assert (
                np.isnan(array.fill_value) if array.dtype.kind == "f" else array.fill_value == -1
            ), name


def test_every_path_in_the_cache_is_relative(built_study: Any) -> None:
    root = json.loads((Path(built_study.cache.path) / "zarr.json").read_text())
    assert root["attributes"]["provenance"]["config"]["data"]["path"] == ["table.parquet"]
    assert not any(name.startswith("/") for name in root["attributes"]["files"])


def test_layout_round_trip(built_study: Any) -> None:
    layout = built_study.open().layout
    assert Layout.model_validate_json(layout.model_dump_json()) == layout
    assert layout.splits == {name: code for code, name in enumerate(SPLITS)}
    assert layout.strings[0].standin


@pytest.mark.slow
def test_a_flipped_byte_in_any_file_is_an_error_that_names_it(built_study: Any, copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 30
    rng = np.random.default_rng(0)
    for file in files:
        sound = file.read_bytes()
        damaged = bytearray(sound)
        damaged[int(rng.integers(0, len(sound)))] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(damaged)
        with pytest.raises(CorruptCacheError) as caught:
            everything(open_cache(copy))
        relative = file.relative_to(copy).as_posix()
        assert relative.split("/c/")[0].removesuffix("/zarr.json") in str(caught.value)
        assert "--overwrite" in str(caught.value)
        file.write_bytes(sound)
    everything(open_cache(copy))


def test_a_missing_file_is_an_error_that_names_it(copy: Path) -> None:
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        sound = file.read_bytes()
        file.unlink()
        with pytest.raises(CorruptCacheError, match="is missing"):
            open_cache(copy)
        file.write_bytes(sound)


def test_a_truncated_chunk_is_an_error(copy: Path) -> None:
    chunk = copy / "rows" / "numeric" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CorruptCacheError, match="array 'rows/numeric', chunk 1/0"):
        open_cache(copy)


def test_a_change_by_zarr_itself_is_an_error_though_its_checksums_are_right(copy: Path) -> None:
    zarr.open_group(copy, mode="r+")["rows/weight"][120] = 7.0
    assert zarr.open_group(copy, mode="r")["rows/weight"][120] == 7.0
    with pytest.raises(CorruptCacheError, match="array 'rows/weight', chunk 1"):
        everything(open_cache(copy))


def test_only_the_chunks_that_are_read_are_checked_and_verify_checks_all(copy: Path) -> None:
    chunk = copy / "rows" / "numeric" / "c" / "2" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    cache = open_cache(copy)
    cache.rows(0, 224)
    with pytest.raises(CorruptCacheError, match="array 'rows/numeric', chunk 2/0"):
        cache.rows(200, 240)
    with pytest.raises(CorruptCacheError, match="array 'rows/numeric', chunk 2/0"):
        cache.verify()


def test_damage_after_the_first_reading_is_found_too(copy: Path) -> None:
    cache = open_cache(copy)
    cache.rows()
    chunk = copy / "rows" / "numeric" / "c" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 4] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(CorruptCacheError, match="rows/numeric"):
        cache.rows()
    chunk.unlink()
    with pytest.raises(CorruptCacheError, match="rows/numeric"):
        cache.rows()


def test_another_cache_under_the_same_name_is_not_read(built_study: Any, copy: Path) -> None:
    cache, layout = open_cache(copy), built_study.open().layout
    cache.rows()  # all files have been checked
    shutil.copytree(copy, copy.with_name("again.zarr"))
    shutil.rmtree(copy)
    copy.with_name("again.zarr").rename(copy)
    cache.rows()  # the same content, copied anew, is the same cache
    root = json.loads((copy / manifest.ROOT).read_text())
    content = {key: value for key, value in root["attributes"].items() if key != "digest"}
    content["files"] = {**content["files"], "rows/other": {"bytes": 1, "sha256": "0"}}
    document = {**root, "attributes": {**content, "digest": manifest._digest_of(content)}}
    (copy / manifest.ROOT).write_bytes(manifest._canonical(document))
    for read in (cache.rows, lambda: cache.strings(layout.strings[0].name)):
        with pytest.raises(StaleCacheError, match=r"was replaced or changed while it was being"):
            read()


def test_a_cache_that_is_taken_away_is_told_from_a_damaged_one(copy: Path) -> None:
    cache = open_cache(copy)
    copy.rename(copy.with_name("elsewhere.zarr"))
    with pytest.raises(StaleCacheError, match="put back the cache that was there"):
        cache.rows()


def test_no_cache_is_missing_and_another_zarr_group_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(MissingCacheError, match="there is no cache"):
        open_cache(tmp_path / "none.zarr")
    zarr.create_group(tmp_path / "other.zarr", attributes={"complete": True})
    with pytest.raises(MissingCacheError, match="not a cache of this project"):
        open_cache(tmp_path / "other.zarr")


def test_another_format_version_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcache.cache.root.FORMAT_VERSION", 99)
    with pytest.raises(StaleCacheError, match=f"format {FORMAT_VERSION}, this version reads 99"):
        open_cache(copy)


def test_a_moved_cache_stays_whole(copy: Path, tmp_path: Path) -> None:
    copy.rename(tmp_path / "moved.zarr")
    cache = open_cache(tmp_path / "moved.zarr")
    cache.verify()
    everything(cache)


def test_wide_rows_make_smaller_shards(built_study: Any) -> None:
    layout = built_study.open().layout
    narrow = layout.model_copy(update={"num_rows": 10_000_000, "numeric": layout.numeric[:2]})
    wide = narrow.model_copy(update={"numeric": layout.numeric * 1000})
    config = CacheConfig()
    assert rows_per_block(narrow, config) == config.rows_per_chunk * config.chunks_per_shard
    assert rows_per_block(wide, config) == config.rows_per_chunk
    assert rows_per_block(layout, config) == 240


def test_a_study_without_options_has_empty_columns(make_study: Callable, tmp_path: Path) -> None:
    plain = {
        "numeric": [],
        "categories": [],
        "group": None,
        "stratum": None,
        "row_weight": None,
        "report_by": [],
    }
    study = make_study(tmp_path, targets=[{"name": "ef", "column": "outcome"}], **plain).but(
        split={"strategy": "random", "stratify_by": None}
    )
    study.build()
    rows = study.open().rows()
    assert (rows.numeric.shape, rows.category.shape, rows.facets.shape) == (
        (240, 0),
        (240, 0),
        (240, 0),
    )
    assert (rows.weight == 1).all()
    assert (rows.group == -1).all()
    assert study.open().layout.groups == ()
