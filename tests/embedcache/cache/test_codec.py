"""A codec decides bytes on disk and nothing else: content, identity and checks are the same."""

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import Cache


def with_codec(study: Any, codec: str, path: Path | None = None) -> Any:
    """Return the study with a cache of this codec, perhaps elsewhere."""
    changed = {"codec": codec} if path is None else {"codec": codec, "path": str(path)}
    return replace(study, cache=study.cache.model_copy(update=changed))


def assert_same_content(one: Cache, other: Cache) -> None:
    rows, others = one.rows(), other.rows()
    for field in fields(RowBlock):
        np.testing.assert_array_equal(getattr(rows, field.name), getattr(others, field.name))
    for spec in one.layout.strings:
        strings, others = one.strings(spec.name), other.strings(spec.name)
        assert strings.text == others.text
        assert torch.equal(strings.embeddings, others.embeddings)
        assert torch.equal(strings.tokens.values, others.tokens.values)


@pytest.fixture(scope="module")
def shuffled(built_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    study = with_codec(built_study, "shuffle", tmp_path_factory.mktemp("shuffled") / "cache.zarr")
    study.build()
    return study


@pytest.mark.slow
def test_the_content_and_the_identity_do_not_depend_on_the_codec(
    built_study: Any, shuffled: Any
) -> None:
    plain, cache = built_study.open(), shuffled.open()
    assert (plain.codec, cache.codec) == ("zstd", "shuffle")
    cache.verify()
    assert cache.identity == plain.identity
    assert cache.scaling == plain.scaling
    assert_same_content(cache, plain)


def test_plain_zarr_reads_either_without_a_warning(built_study: Any, shuffled: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, cache = (
            {
                name: array[:]
                for name, array in zarr.open_group(study.cache.path, mode="r").members(None)
                if isinstance(array, zarr.Array)
            }
            for study in (built_study, shuffled)
        )
    assert set(plain) == set(cache)
    for name, values in plain.items():
        np.testing.assert_array_equal(values, cache[name], err_msg=name)


def test_noise_of_few_digits_takes_fewer_bytes(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(5000))
    study = replace(study, cache=study.cache.model_copy(update={"rows_per_chunk": 5000}))
    other = with_codec(study, "shuffle", tmp_path / "other.zarr")
    study.build()
    other.build()
    sizes = [made.open().array_sizes()["rows/numeric"]["bytes"] for made in (study, other)]
    assert sizes[1] < 0.97 * sizes[0]


def test_a_cache_that_is_there_is_not_written_again_for_its_codec(shuffled: Any) -> None:
    before = Path(shuffled.cache.path, "zarr.json").stat().st_mtime_ns
    assert with_codec(shuffled, "zstd").build().status == "up to date"
    assert Path(shuffled.cache.path, "zarr.json").stat().st_mtime_ns == before
    assert shuffled.open().codec == "shuffle"


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["zstd", "shuffle"])
def test_appending_keeps_the_codec(
    make_study: Callable, frame_of: Callable, tmp_path: Path, codec: str
) -> None:
    study = with_codec(make_study(tmp_path), codec)
    study.build()
    (tmp_path / "more").mkdir()
    more = make_study(tmp_path / "more", frame_of(100, seed=1)).data.path
    grown = with_codec(study, "zstd" if codec == "shuffle" else "shuffle")
    grown = grown.but(path=[study.data.path, more])
    assert grown.build(append=True).status == "appended to"
    cache = grown.open()
    cache.verify()
    assert cache.codec == codec
    assert cache.layout.num_rows == 340
