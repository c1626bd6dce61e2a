"""The benchmarks' own arithmetic: the bound, what they list, the features that the baselines get."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.electrolyte import boosting, fingerprints, one_hot
from benchmarks.readme import results
from benchmarks.throughput import MODES, _derive, as_markdown, draw
from embedcache.store import open_cache
from jobs.experiment import load_experiment


def test_the_list_and_a_wrong_name(repository: Path) -> None:
    listed = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=repository, capture_output=True, text=True, timeout=120, check=True)
    assert "throughput" in listed.stdout
    assert subprocess.run([sys.executable, "-m", "benchmarks", "speed"], cwd=repository, capture_output=True, timeout=120, check=False).returncode == 2


def test_the_bound_is_amdahls(tmp_path: Path) -> None:
    modes = {mode: {"rows_per_s": 1.0, "step_s": 2.0, "encoder_tokens_per_step": 100, "peak_rss_bytes": 2**30, "extrapolated": False} for mode in MODES}
    modes["naive_128"] |= {"step_s": 100.0, "encoder_tokens_per_step": 10_000, "extrapolated": True, "measured_rows": [1, 2]}
    modes["frozen"]["step_s"] = 1.0
    modes["per_step"]["phases_s"] = {"update": 0.5}
    found = {"modes": modes, "batch_rows": 8192, "precision": "fp32", "command": "c", "commit": "d", "date": "e", "gradient_error": {"per_step": 1e-7},
             "hardware": {"processor": "p", "cores": 2}, "versions": {"torch": "2"}}  # fmt: skip
    _derive(found)
    assert found["speedup"]["per_step_vs_naive_128"] == 50
    bound = found["bound"]["naive_128"]
    assert (bound["f"], bound["r"]) == (pytest.approx(0.99), 100)
    assert bound["bound"] == pytest.approx(1 / (0.01 + 0.99 / 100))  # a saving of all other tokens cannot give more
    assert bound["share_reached"] == pytest.approx(0.995)
    assert "Amdahl bound 50 x" in as_markdown(found)
    draw(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_baselines_see_the_same_rows_and_only_strings_that_train(tiny_experiment: Path) -> None:
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    rows = cache.rows()
    features = one_hot(cache)
    assert features.shape[0] == cache.layout.num_rows
    assert features[rows.split == 0].any(0).all()
    assert (features.sum(1) <= len(cache.layout.strings)).all()
    prints = fingerprints(cache)
    same = rows.string_id == rows.string_id[0]
    assert (prints[same.all(1)] == prints[0]).all()
    assert np.isfinite(prints).all()


def test_boosting_is_scored_on_the_test_rows(tiny_experiment: Path) -> None:
    cache = open_cache(load_experiment(tiny_experiment).cache.path)
    found = boosting(cache, one_hot(cache))
    test = cache.rows().split == 2
    target = cache.rows().targets[test, 0]
    assert 0 < found["mae"] <= found["rmse"] < 3 * target.std()
    assert found["r2"] == pytest.approx(1 - found["rmse"] ** 2 / target.var(), rel=1e-4)


def test_the_readme_holds_what_the_results_say(repository: Path) -> None:
    assert results() in (repository / "README.md").read_text(encoding="utf-8")
