"""Benchmarks of the row store write today's format, read what they wrote, and report what they
saw.
"""

import argparse
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store
from benchmarks.studies import loading
from embedcache.cache.layout import RowBlock
from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment


@pytest.mark.parametrize("case", loading.CASES)
def test_loading_times_steps_of_its_own_table(case: str, tmp_path: Path) -> None:
    loading.write_table(tmp_path / "cache.zarr", 50_000, memory_mib=2)
    cache = open_cache(tmp_path / "cache.zarr")
    rows = cache.rows()
    assert len(rows.split) == 50_000
    assert 0 < (rows.split == 1).mean() < 0.2
    found = loading._in_own_process(
        case, str(tmp_path), argparse.Namespace(memory_mib=2, network="small", steps=2)
    )
    assert found["order"].startswith(case)
    assert found["num_rows"] == 50_000
    assert 0 <= found["loading_share"] < 1
    assert found["rows_per_s"] == pytest.approx(8192 / found["step_s"], rel=0.5)


def test_loading_compares_streaming_with_the_resident_run_before_it() -> None:
    runs = [
        (case, {"rows_per_s": speed, "order": case})
        for case, speed in [
            ("resident", 100),
            ("streaming", 90),
            ("resident", 50),
            ("streaming", 40),
        ]
    ]
    found = loading.summary(runs)
    assert found["ratios"] == [0.9, 0.8]
    assert found["streaming_over_resident"] == pytest.approx(0.85)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_every_format_gives_the_rows_back(tiny_experiment: Path, tmp_path: Path) -> None:
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    whole = cache.rows()
    rows = {
        field.name: np.ascontiguousarray(getattr(whole, field.name)) for field in fields(RowBlock)
    }
    rows = {name: values for name, values in rows.items() if values.size}
    found = store.in_turns(store.formats(cache), rows, tmp_path, repeats=1)
    assert set(found) == {"cache.zarr", "cache.zarr, unchecked", "Parquet", "NumPy", "safetensors"}
    assert found["NumPy"]["bytes"] >= sum(values.nbytes for values in rows.values())
    codecs = store.codecs(rows, tmp_path, repeats=1)
    assert all(
        0 < codec["bytes"] == sum(codec["bytes_by_array"].values()) for codec in codecs.values()
    )


def test_a_format_that_changes_a_value_is_not_reported(tmp_path: Path) -> None:
    rows = {
        "numeric": np.zeros((9000, 2), dtype=np.float32),
        "weight": np.ones(9000, dtype=np.float32),
    }
    wrong = store.Format(
        "one value off",
        lambda place, arrays: place.write_bytes(b""),
        lambda place, start, stop: {"numeric": rows["numeric"][start:stop] + 1},
    )
    with pytest.raises(AssertionError, match="bit for bit"):
        store.in_turns({"wrong": wrong}, rows, tmp_path, repeats=1)
