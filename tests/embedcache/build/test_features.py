"""Features of strings in the cache: those of their strings, appended, identified, scaled by what
trains.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import zarr

from embedcache.build import features as stage
from embedcache.build.identity import wanted_identity
from embedcache.build.moments import feature_scaling
from embedcache.build.rotation import rotated
from embedcache.build.store import summary_of
from embedcache.cache.consistency import vector_hashes
from embedcache.cache.reader import Cache
from embedcache.config.split import SPLITS
from embedcache.errors import CorruptCacheError, StaleCacheError, TableError
from embedcache.features import origin
from embedcache.features.chemistry import feature_names, features_of
from embedcache.scaling import FeatureScaling, Scaling
from fusionnet.evaluation.features import string_features

NEW = "[*]CCCC[*]"


def own_table(folder: Path, strings: list[str], offset: float = 0.0) -> Path:
    file = folder / "own.csv"
    rows = [f"{text},{k + offset},{k * k if k % 2 else ''}" for k, text in enumerate(strings)]
    file.write_text("\n".join(["smiles,tg,modulus", *rows, ""]))
    return file


@pytest.fixture
def study(make_study: Any, tmp_path: Path) -> Any:
    """A study with all kinds of features, of which nothing is built."""
    file = own_table(
        tmp_path,
        ["*CC*", "*CCO*", "*CC(*)C", "*CC(*)c1ccccc1", "*c1ccc(*)[nH]1", NEW],
    )
    features = ["morgan", {"table": str(file), "key": "smiles"}, "rdkit"]
    column = {"name": "polymer", "column": "smiles", "features": features}
    return make_study(tmp_path, strings=[column])


def check(cache: Cache) -> None:
    """Every feature is that of its string."""
    strings, spec = cache.strings("polymer"), cache.layout.strings_of("polymer")
    assert [each.name for each in spec.features] == ["morgan", "own.csv", "rdkit"]
    names = spec.feature_columns
    computed = [feature_names(name, "psmiles") for name in ("morgan", "rdkit")]
    assert names == (*computed[0], "own.csv: tg", "own.csv: modulus", *computed[1])
    found = strings.features.numpy()
    first, last = len(computed[0]), len(computed[0]) + 2
    for name, part in (("morgan", found[:, :first]), ("rdkit", found[:, last:])):
        assert np.array_equal(part, features_of(strings.text, "psmiles", name), equal_nan=True)
    place = {text: row for row, text in enumerate(strings.text)}
    assert found[place["[*]CC([*])C"], first] == 2
    assert np.isnan(found[place["[*]CC([*])C"], first + 1])
    assert found[place["[*]CC([*])c1ccccc1"], first:last].tolist() == [3, 9]


@pytest.mark.slow
def test_a_build_has_them_and_tells_of_what_is_missing(study: Any) -> None:
    report = study.build()
    cache = study.open()
    check(cache)
    cache.verify()
    array = zarr.open_array(f"{study.cache.path}/strings/polymer/features", mode="r")
    assert array.attrs["columns"] == list(cache.layout.strings[0].feature_columns)
    text = report.summary()
    assert "with 2,482 features: morgan 2,048, own.csv 2, rdkit 432" in text
    missing = np.isnan(cache.strings("polymer").features.numpy())
    assert f"{missing.sum()} of their 12,410 values are missing or infinite, in" in text
    assert study.build().status == "up to date"


@pytest.mark.slow
def test_appended_is_built_at_once_and_only_new_strings_are_computed(
    study: Any, frame_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.build()
    more = tmp_path / "more.parquet"
    frame_of(30, 5, 1).with_columns(pl.lit(NEW).alias("smiles")).write_parquet(more)
    both = study.but(path=[study.data.path, str(more)])
    computed: list[str] = []
    chunks = stage.computed_chunks

    def counted(texts: Any, kind: str, feature: Any) -> Any:
        computed.extend(texts)
        return chunks(texts, kind, feature)

    monkeypatch.setattr(stage, "computed_chunks", counted)
    both.build(append=True)
    assert computed == [NEW, NEW]  # of two features
    at_once = replace(
        both, cache=both.cache.model_copy(update={"path": str(tmp_path / "once.zarr")})
    )
    at_once.build()
    for cache in (both.open(), at_once.open()):
        check(cache)
    grown, whole = both.open(), at_once.open()
    assert torch.equal(
        grown.strings("polymer").features.nan_to_num(-1),
        whole.strings("polymer").features.nan_to_num(-1),
    )
    assert grown.scaling == whole.scaling


@pytest.mark.slow
def test_a_killed_build_goes_on(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PIECE_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "string_features", stage.string_features)
        patch.setattr("embedcache.build.phases.encode_strings", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.build()
    monkeypatch.setattr(
        stage, "computed_chunks", lambda texts, *_: iter(()) if not texts else 1 / 0
    )
    study.build()
    check(study.open())


@pytest.mark.slow
def test_descriptors_outlive_a_cache(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = study.cache.model_copy(update={"vectors": str(tmp_path / "store")})
    study = replace(study, cache=cache)
    study.build()
    wanted = study.open().strings("polymer").features
    other = replace(
        study.but(split={"seed": 1}),
        cache=cache.model_copy(update={"path": str(tmp_path / "other.zarr")}),
    )
    computed: dict[str, list[str]] = {}
    chunks = stage.computed_chunks

    def counted(texts: Any, kind: str, feature: Any) -> Any:
        computed[feature] = list(texts)
        return chunks(texts, kind, feature)

    monkeypatch.setattr(stage, "computed_chunks", counted)
    other.build()
    assert computed["rdkit"] == []
    assert len(computed["morgan"]) == 5
    check(other.open())
    found = other.open().strings("polymer").features
    assert torch.equal(found.nan_to_num(-1), wanted.nan_to_num(-1))
    assert "rdkit of psmiles" in summary_of(tmp_path / "store")


def test_other_features_are_another_identity(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = {"name": "polymer", "column": "smiles"}
    own = {"table": str(tmp_path / "own.csv"), "key": "smiles"}
    study = study.but(strings=[{**column, "features": [own]}])
    study.build()
    fewer = study.but(strings=[{**column, "features": ["rdkit", own]}])
    with pytest.raises(StaleCacheError, match=r"features: table 1 -> rdkit, table 1"):
        fewer.build()
    own_table(tmp_path, ["*CC*", "*CCO*", "*CC(*)C", "*CC(*)c1ccccc1", "*c1ccc(*)[nH]1"], 1.0)
    with pytest.raises(StaleCacheError, match=r"features.table 1: sha256 .* -> sha256"):
        study.build()
    study.build(overwrite=True)
    assert study.open().strings("polymer").features[:, 0].min() == 1.0


def test_a_missing_table_needs_its_known_digest(study: Any, tmp_path: Path) -> None:
    arguments = study.arguments()[:4]
    identity = wanted_identity(*arguments)
    (tmp_path / "own.csv").unlink()
    with pytest.raises(TableError, match=r"no table .*own.csv; features.table must name"):
        wanted_identity(*arguments)
    assert wanted_identity(*arguments, known_tables=identity.entries) == identity


def test_another_rdkit_is_another_identity(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = study.arguments()[:4]
    before = wanted_identity(*arguments)
    monkeypatch.setattr(origin, "version", lambda name: "2031.1")
    lines = before.difference(wanted_identity(*arguments))
    assert len(lines) == 1
    assert lines[0].startswith("data.strings[polymer].features.computed by: RDKit ")


def test_a_string_without_an_entry_is_refused_or_left_out(make_study: Any, tmp_path: Path) -> None:
    file = own_table(tmp_path, ["*CC*", "*CCO*", "*CC(*)C", "*CC(*)c1ccccc1"])
    column = {"name": "polymer", "column": "smiles"}
    column["features"] = [{"table": str(file), "key": "smiles"}]  # type: ignore[assignment]
    study = make_study(tmp_path, strings=[column])
    with pytest.raises(
        TableError, match=r"1 string of column .*'\[\*\]c1ccc.*has no features in .*own.csv"
    ):
        study.build()
    report = study.but(on_invalid="skip").build()
    assert report.num_invalid > 0
    assert len(study.open().strings("polymer").text) == 4


def test_features_of_another_string_are_noticed(study: Any, tmp_path: Path) -> None:
    column = {"name": "polymer", "column": "smiles"}
    own = {"table": str(tmp_path / "own.csv"), "key": "smiles"}
    study = study.but(strings=[{**column, "features": [own]}])
    study.build()
    strings = study.open().strings("polymer")
    text, tokens = strings.text, strings.tokens
    right = vector_hashes(text, tokens, strings.embeddings, strings.features)
    wrong = vector_hashes(text, tokens, strings.embeddings, strings.features.flip(0))
    assert (right != wrong).any()
    array = zarr.open_array(f"{study.cache.path}/strings/polymer/features", mode="r+")
    array[:] = array[:][::-1]
    with pytest.raises(CorruptCacheError, match="strings/polymer/features"):
        study.open().strings("polymer")


def test_scaling_is_by_train_strings_alone(make_study: Any, tmp_path: Path) -> None:
    strings = ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C", "[*]CC([*])c1ccccc1", "[*]c1ccc([*])[nH]1"]
    scalings, test = [], ""
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = own_table(folder, strings)
        if number:  # a test string has other features
            lines = file.read_text().splitlines()
            file.write_text("\n".join(f"{test},9e9,7" if test in x else x for x in lines))
        column = {"name": "polymer", "column": "smiles"}
        column["features"] = [{"table": str(file), "key": "smiles"}]  # type: ignore[assignment]
        study = make_study(folder, strings=[column])
        study = study.but(
            split={
                "strategy": "leave_strings_out",
                "folds": 5,
                "train_folds": 3,
                "stratify_by": None,
            }
        )
        study.build()
        cache = study.open()
        rows = cache.rows()
        trained = np.unique(rows.string_id[rows.split == SPLITS.index("train"), 0])
        (tested,) = np.unique(rows.string_id[rows.split == SPLITS.index("test"), 0]).tolist()
        test = cache.strings("polymer").text[tested]
        own = cache.strings("polymer").features.numpy()[trained]
        assert cache.scaling.string_features["polymer"] == feature_scaling(own)
        scalings.append(cache.scaling)
        other = rotated(cache, study.split.model_copy(update={"rotation": 1}))
        again = study.but(split={"rotation": 1})
        again.build(overwrite=True)
        assert other.scaling == again.open().scaling
    assert scalings[0] == scalings[1]


def test_robust_scale_and_smooth_clip() -> None:
    nan = np.nan
    raw = np.array(
        [
            [0, 5, 0, nan, 1e30],
            [1, 5, 0, nan, 0],
            [2, 5, 0, nan, 0],
            [3, 5, 8, nan, 0],
            [nan, 5, 0, nan, nan],
        ],
        dtype=np.float32,
    )
    scaling = feature_scaling(raw)
    # quartiles .75 and 2.25; all alike; quartiles alike; none; quartiles far apart for one value
    assert scaling.center == (1.5, 5, 0, 0, 0)
    assert scaling.scale[:4] == (1 / 1.5, 0, 2 / 8, 0)
    found = scaling.apply(torch.from_numpy(raw))
    z = np.array([-1.0, -1 / 3, 1 / 3, 1.0, 0.0])
    assert np.allclose(found[:, 0], z / np.sqrt(1 + (z / 3) ** 2))
    assert found[:, [1, 3]].abs().max() == 0
    assert np.allclose(found[3, 2], 2 / np.sqrt(1 + (2 / 3) ** 2))
    assert found.isfinite().all()
    assert found.abs().max() < 3
    huge = FeatureScaling((0.0,), (1e38,)).apply(torch.tensor([[3e38], [-3e38]]))
    assert np.allclose(huge[:, 0], [3, -3])
    assert feature_scaling(np.zeros((0, 2), dtype=np.float32)) == FeatureScaling(
        (0.0, 0.0), (0.0, 0.0)
    )


def test_scaling_travels_as_json_and_impossible_ones_are_refused() -> None:
    plain = Scaling.of_targets(())
    features = {"p": FeatureScaling((0.1, 1e38), (0.3, 0.0))}
    scaling = replace(plain, string_features=features)
    assert Scaling.from_json(scaling.to_json()) == scaling
    for wrong in (FeatureScaling((0.0,), (-1.0,)), FeatureScaling((0.0,), (1.0, 1.0))):
        with pytest.raises(ValueError, match="scales below 0, or of another length"):
            Scaling.from_json(replace(plain, string_features={"p": wrong}).to_json())


def test_boosting_reads_the_features_of_each_rows_string(study: Any, tmp_path: Path) -> None:
    column = {"name": "polymer", "column": "smiles"}
    own = {"table": str(tmp_path / "own.csv"), "key": "smiles"}
    study = study.but(strings=[{**column, "features": [own]}])
    study.build()
    cache = study.open()
    rows = cache.rows()
    found = string_features(cache)(rows)
    wanted = cache.strings("polymer").features.numpy()[rows.string_id[:, 0]]
    assert np.array_equal(found, wanted, equal_nan=True)
    plain = study.but(strings=[column])
    plain.build(overwrite=True)
    assert string_features(plain.open())(rows).shape == (len(rows.split), 0)
