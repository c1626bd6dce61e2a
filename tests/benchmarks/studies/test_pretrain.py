"""The probe of frozen vectors: what it says where the answer is known."""

import json

import numpy as np
import pytest

from benchmarks.harness.publish import markdown
from benchmarks.harness.stamp import RESULTS
from benchmarks.studies import pretrain


def test_a_linear_property_is_read_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 8)) * np.logspace(-3, 3, 8)
    property_ = vectors @ (rng.normal(size=8) / np.logspace(-3, 3, 8))
    assert pretrain.probe(vectors, property_, seed=0) == pytest.approx(1, abs=1e-3)
    assert pretrain.probe(vectors, rng.normal(size=300), seed=0) < 0.05


def test_the_nearest_is_another_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(20, 6))
    vectors = np.concatenate([half, half + 1e-3 * rng.normal(size=half.shape)])
    pairs = (np.arange(40) + 20) % 40
    assert pretrain.nearest(vectors).tolist() == pairs.tolist()
    assert pretrain.nearest(7 * vectors - 3).tolist() == pairs.tolist()


def test_likeness_is_between_that_of_random_and_of_the_most_alike_pairs() -> None:
    strings = [f"[*]CC([*]){'C' * num}{end}" for num in range(6) for end in ("O", "N")]
    fingerprints = pretrain._fingerprints(strings)
    most = pretrain._likeness(pretrain._most_alike(fingerprints), fingerprints)
    random = pretrain._likeness(np.roll(np.arange(12), 5), fingerprints)
    assert 0 < random < most < 1


def test_what_is_published_is_what_the_report_says() -> None:
    found = json.loads((RESULTS / "pretrain.json").read_text())
    assert markdown(pretrain.report(found), found) == (RESULTS / "pretrain.md").read_text()
