"""The bytes of a page compute what the network does, are no coarser than is promised, and where
they are too many the page says so.
"""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from browser import needs_browser, played

from fusionnet.inpage import exported as exporting
from fusionnet.inpage.arrays import ArrayReader, ArrayWriter, Bits
from fusionnet.inpage.exported import (
    TOLERANCE,
    Exported,
    TooLarge,
    exported,
    worst_difference,
)
from fusionnet.inpage.network import network_steps
from fusionnet.inpage.part import _file, embedded_json, live_part

BITS = get_args(Bits)
SHAPES = [(1, 1), (3, 7), (2, 5, 3), (257, 33), (4, 0)]
FORMS: list[dict[str, Any]] = [
    {"fusion": "joint"},
    {"fusion": "joint", "members": 2, "member_layers": 2},
    {"fusion": "modality", "linear_skip": True, "members": 3},
    {"fusion": "mlp", "numeric": "ple"},
    {"fusion": "mlp", "numeric": "periodic", "members": 2, "member_layers": 0},
]


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_rounded_to_their_bits(bits: Bits) -> None:
    arrays = ArrayWriter(bits)
    given = [torch.randn(shape) for shape in SHAPES]
    given.append(torch.zeros(2, 3))
    places = [arrays.weights(each) for each in given]
    read = ArrayReader(arrays.blob())
    for wanted, place in zip(given, places, strict=True):
        found = read(place)
        if bits == 32:
            assert torch.equal(found, wanted.double())
        elif wanted.numel():
            step = wanted.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            # half a step, and the rounding of the scale
            assert ((found - wanted).abs() <= 0.51 * step + 1e-9).all()


@needs_browser
@pytest.mark.slow
def test_the_page_reads_the_same_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for bits in BITS:
        arrays = ArrayWriter(bits)
        places = [arrays.weights(torch.randn(shape)) for shape in SHAPES]
        places.append(arrays.exact(rng.integers(0, 60_000, 5), "u16"))
        places.append(arrays.exact(rng.integers(-(2**31), 2**31, (2, 2)), "i32"))
        parts.append((arrays.blob(), places))
    pages = [{"blob": list(blob), "places": places} for blob, places in parts]
    found = played(
        "",
        f"{_file('js/arrays.js')}\n"
        f"return {embedded_json(pages)}.map(({{ blob, places }}) =>"
        " withArrays(places, new Uint8Array(blob).buffer).map((each) => Array.from(each.values)));",
        tmp_path,
    )
    for (blob, places), values in zip(parts, found, strict=True):
        read = ArrayReader(blob)
        for place, each in zip(places, values, strict=True):
            np.testing.assert_allclose(each, read(place).flatten().numpy(), rtol=1e-7)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(map(str, form.values())))
def test_the_bytes_compute_what_the_network_does(form: dict[str, Any], run_of: Any) -> None:
    run = run_of(**form)
    vectors = list(run.vectors.values())
    worst = []
    for bits in BITS:
        arrays = ArrayWriter(bits)
        network = network_steps(run.model.network, vectors, arrays)
        worst.append(worst_difference(run, json.loads(json.dumps(network)), arrays.blob(), vectors))
    assert worst[-1] < 5e-6  # the network's own fp32
    assert worst[0] > worst[2]
    assert worst[1] < 1e-4


def test_weights_are_as_fine_as_the_promise_asks(
    run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(fusion="mlp")
    assert isinstance(coarse := exported(run, {}, []), Exported)
    assert coarse.worst <= TOLERANCE / 2
    monkeypatch.setattr(exporting, "TOLERANCE", 4e-6)
    assert isinstance(fine := exported(run, {}, []), Exported)
    assert fine.bits > coarse.bits
    assert fine.worst <= 2e-6


def test_a_page_says_what_does_not_fit(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(fusion="mlp", with_trees=True)
    whole = exported(run, {}, [])
    assert isinstance(whole, Exported)
    assert whole.has_all
    assert whole.header["intervals"]
    monkeypatch.setattr(exporting, "MOST_BYTES", len(whole.blob) - 1)
    alone = exported(run, {}, [])
    assert isinstance(alone, Exported)
    assert not alone.has_all
    assert alone.header["intervals"] is alone.header["blend"] is None
    assert all(task["temperature"] == 1 for task in alone.header["tasks"])
    assert "The network alone." in live_part(run, {}, [])
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    assert isinstance(exported(run, {}, []), TooLarge)
    page = live_part(run, {}, [])
    assert "Not in this page." in page
    assert "<script" not in page
    assert f"{len(whole.blob) * 4 / 3 / 1e6:.1f} MB" in page
