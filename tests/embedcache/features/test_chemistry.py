"""Computed features: RDKit's own numbers, of the views that are promised, with nothing invented."""

import math
import os

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from embedcache.config.columns import StringColumn
from embedcache.errors import CacheError, ConfigError
from embedcache.features import chemistry, computing
from embedcache.features.chemistry import feature_names, features_of
from embedcache.features.computing import computed_chunks
from embedcache.schema import parse_config

UNITS = {  # the unit: two of them with capped ends
    "[*]CC[*]": "CCCC",
    "[*]CC([*])C": "CCCC(C)C",
    "[*]CCO[*]": "CCOCCO",
    "[*]OCC[*]": "OCCOCC",
    "[*]=CC=[*]": "C=CC=CC=C",
    "[*][Si](C)(C)O[*]": "C[SiH](C)O[Si](C)(C)O",
    "[*][C@H](C)C(=O)O[*]": "CCC(=O)O[C@H](C)C(=O)O",
    "[*]/C=C/C[*]": "C=CC/C=C/C",
    "[*]c1ccc([*])[nH]1": "c1ccc([nH]1)-c1ccc[nH]1",
    "[*]CCO[*].[Li+]": "CCOCCO.[Li+].[Li+]",
}


def descriptors(smiles: str, prefix: str) -> dict[str, float]:
    """Return RDKit's descriptors, asked one by one, under the names of a view."""
    molecule = Chem.MolFromSmiles(smiles)
    values = {name: of(molecule) for name, of in Descriptors.descList if name != "Ipc"}
    return {f"{prefix}: {name}": value for name, value in values.items()}


def named(text: str, kind: str, feature: str) -> dict[str, float]:
    names, values = feature_names(feature, kind), features_of([text], kind, feature)
    assert values.dtype == np.float32
    assert values.shape == (1, len(names))
    assert len(set(names)) == len(names)
    return dict(zip(names, values[0].tolist(), strict=True))


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    assert found.keys() == wanted.keys()
    return np.allclose(list(found.values()), list(wanted.values()), rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("unit", "dimer"), UNITS.items())
def test_a_repeat_unit_is_looked_at_as_it_is_and_doubled(unit: str, dimer: str) -> None:
    wanted = descriptors(unit, "rdkit unit") | descriptors(dimer, "rdkit dimer")
    assert same(named(unit, "psmiles", "rdkit"), wanted)


def test_a_molecule_is_looked_at_once() -> None:
    assert same(named("CC(=O)O", "smiles", "rdkit"), descriptors("CC(=O)O", "rdkit"))


def test_fingerprints_are_counts() -> None:
    make = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    views = [Chem.MolFromSmiles(smiles) for smiles in ("[*]CC([*])C", "CCCC(C)C")]
    wanted = np.concatenate([make.GetCountFingerprintAsNumPy(view) for view in views])
    found = features_of(["[*]CC([*])C"], "psmiles", "morgan")[0]
    assert found.tolist() == wanted.tolist()
    assert found.max() > 1


def test_what_cannot_be_computed_is_missing_and_infinity_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unit = named("[*]CC[*]", "psmiles", "rdkit")
    assert math.isnan(unit["rdkit unit: MaxPartialCharge"])  # an endpoint has none
    assert math.isfinite(unit["rdkit dimer: MaxPartialCharge"])
    odd = {name: 1.0 for name, _ in Descriptors.descList}
    odd |= {"MolWt": math.inf, "BertzCT": 1e39, "qed": -math.inf, "Phi": 1e20}
    monkeypatch.setattr(chemistry.Descriptors, "CalcMolDescriptors", lambda *_, **__: odd)
    found = named("CC", "smiles", "rdkit")
    missing = {name for name, value in found.items() if math.isnan(value)}
    assert missing == {"rdkit: MolWt", "rdkit: BertzCT", "rdkit: qed"}
    assert found["rdkit: Phi"] == np.float32(1e20)


@pytest.mark.parametrize("text", ["", "no molecule", "[*]C", "C"])
def test_what_a_null_stands_for_may_be_no_unit(text: str) -> None:
    found = features_of([text], "psmiles", "rdkit")[0]
    assert np.isnan(found).all() == (text in ("", "no molecule"))


def test_several_processes_compute_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"[*]{'C' * k}[*]" for k in range(1, 8)]
    monkeypatch.setattr(computing, "CHUNK", 2)
    alone = list(computed_chunks(texts, "psmiles", "morgan"))
    monkeypatch.setattr(computing, "FEWEST", 2)
    monkeypatch.setattr(computing.joblib, "cpu_count", lambda: 2)
    shared = list(computed_chunks(texts, "psmiles", "morgan"))
    assert [chunk for chunk, _ in shared] == [chunk for chunk, _ in alone]
    for (_, mine), (_, theirs) in zip(alone, shared, strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "FEWEST", 1)
    monkeypatch.setattr(computing.joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(computing, "features_of", lambda *_: os._exit(9))
    with pytest.raises(CacheError, match="was killed; is there enough memory"):
        list(computed_chunks(["[*]CC[*]"] * 3, "psmiles", "morgan"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"kind": "text", "features": ["rdkit"]}, "are of molecules"),
        ({"features": ["rdkit", "rdkit"]}, "features has twice: rdkit"),
        ({"features": ["mordred"]}, "'rdkit' or 'morgan'"),
        ({"features": [{"table": "a.csv"}]}, "key: is required"),
    ],
)
def test_features_that_cannot_be_are_refused(column: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(StringColumn, {"name": "p", "column": "p", **column}, "test")
