"""Benchmarks of the row store write today's format, read what they wrote, and report what they
saw.
"""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store
from benchmarks.store_formats import Format, codecs, formats, row_arrays
from benchmarks.studies import loading
from benchmarks.studies.loading_table import write_table
from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment


@pytest.mark.slow
def test_loading_times_steps_of_its_own_table(tmp_path: Path) -> None:
    write_table(tmp_path / "cache.zarr", 5_000, memory_mib=1)
    cache = open_cache(tmp_path / "cache.zarr")
    rows = cache.rows()
    assert len(rows.split) == 5_000
    assert 0 < (rows.split == 1).mean() < 0.2
    chosen = argparse.Namespace(memory_mib=1, network="small", steps=2, batch_rows=256)
    # resident rows are timed by tiny_steps.py
    found = loading.in_own_process("streaming", str(tmp_path), chosen)
    assert found["order"].startswith("streaming")
    assert found["num_rows"] == 5_000
    assert 0 <= found["loading_share"] < 1
    assert found["rows_per_s"] == pytest.approx(256 / found["step_s"], rel=0.5)


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
@pytest.mark.slow
def test_every_format_gives_the_rows_back(tiny_experiment: Path, tmp_path: Path) -> None:
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    rows = row_arrays(cache)
    found = store.in_turns(formats(cache), rows, tmp_path, repeats=1)
    assert set(found) == {"cache.zarr", "cache.zarr, unchecked", "Parquet", "NumPy", "safetensors"}
    assert found["NumPy"]["bytes"] >= sum(values.nbytes for values in rows.values())
    found = store.in_turns(codecs(), rows, tmp_path, repeats=1)
    assert all(codec["bytes"] > 0 for codec in found.values())


def test_a_format_that_changes_a_value_is_not_reported(tmp_path: Path) -> None:
    rows = {
        "numeric": np.zeros((9000, 2), dtype=np.float32),
        "weight": np.ones(9000, dtype=np.float32),
    }
    wrong = Format(
        "one value off",
        lambda place, arrays: place.write_bytes(b""),
        lambda place, start, stop: {"numeric": rows["numeric"][start:stop] + 1},
    )
    with pytest.raises(AssertionError, match="bit for bit"):
        store.in_turns({"wrong": wrong}, rows, tmp_path, repeats=1)
