"""Building: every phase in one, up to date at once, stale refused, nothing encoded twice,
statistics of train rows only.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from embedcache.build.identity import wanted_identity
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.standin import write_standin
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.errors import (
    CacheError,
    ConfigError,
    CorruptCacheError,
    EncoderError,
    SplitError,
    StaleCacheError,
    TableError,
    TokenizerError,
)
from embedcache.split.report import split_table
from fusionnet.commands import inspect_cache, verify_cache
from fusionnet.commands.command import run_job

STRATEGIES = [
    {"strategy": "group"},
    {"strategy": "random"},
    {"strategy": "random", "stratify_by": None},
    {"strategy": "leave_strings_out", "folds": 5, "train_folds": 3, "stratify_by": None},
    {"strategy": "leave_strings_out", "folds": 5, "train_folds": 3, "string": "polymer"},
    {"strategy": "column", "column": "fold"},
]


@pytest.fixture
def study(make_study: Callable, tmp_path: Path) -> Any:
    return make_study(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "split", STRATEGIES, ids=lambda split: "-".join(str(value) for value in split.values())
)
def test_each_strategy_keeps_its_law(
    make_study: Callable, frame_of: Callable, tmp_path: Path, split: dict[str, Any]
) -> None:
    frame = frame_of().with_columns(
        pl.Series("fold", ["train", "train", "validation", "test"] * 60)
    )
    study = make_study(
        tmp_path, frame, group="patient" if split["strategy"] != "column" else None, stratum=None
    ).but(split=split)
    report = study.build()
    rows = study.open().rows()
    shares = np.bincount(rows.split, minlength=3) / 240
    assert (shares > 0.05).all()
    if split["strategy"] == "group":
        assert all(len(set(rows.split[rows.group == g].tolist())) == 1 for g in range(12))
    elif split["strategy"] == "leave_strings_out":
        assert all(len(set(rows.split[rows.string_id[:, 0] == s].tolist())) == 1 for s in range(5))
        assert "distinct polymer strings of test are not in train" in split_table(report.split)
    elif split["strategy"] == "column":
        assert [("train", "validation", "test")[code] for code in rows.split] == frame[
            "fold"
        ].to_list()
    else:
        np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=1 / 240)
        assert len({tuple(np.unique(rows.split[rows.group == g])) for g in range(12)}) >= 1
        assert "groups have rows in more than one split" in split_table(report.split)


@pytest.mark.slow
def test_scaling_ignores_rows_that_do_not_train(
    study: Any, make_study: Callable, tmp_path: Path
) -> None:
    study.build()
    before, split = study.open().scaling, study.open().rows().split
    frame = pl.read_parquet(study.data.path)
    shift = pl.Series(split != 0)
    numeric = [
        pl.when(shift).then(pl.col(name) * 0.5 + 1).otherwise(pl.col(name)).alias(name)
        for name in ("x", "y", "t", "same", "outcome")
    ]
    (tmp_path / "other").mkdir()
    other = make_study(tmp_path / "other", frame.with_columns(numeric))
    other.build()
    np.testing.assert_array_equal(other.open().rows().split, split)
    assert other.open().scaling == before
    rows = np.flatnonzero(split == 0)[:1]
    touched = frame.with_columns(
        pl.when(pl.int_range(pl.len()) == int(rows[0])).then(40.0).otherwise(pl.col("x")).alias("x")
    )
    touched.write_parquet(other.data.path)
    other.build(overwrite=True)
    assert other.open().scaling.mean[0] != before.mean[0], (
        "a train row that changed must change the statistics"
    )


def test_statistics_are_those_of_the_train_rows(built_study: Any) -> None:
    cache, frame = built_study.open(), pl.read_parquet(built_study.data.path)
    train = frame.filter(pl.Series(cache.rows().split == 0))
    scaling = cache.scaling
    x, y = (
        train["x"].cast(pl.Float32).cast(pl.Float64),
        train["y"].cast(pl.Float32).cast(pl.Float64).log10(),
    )
    assert scaling.mean[0] == pytest.approx(x.mean(), rel=1e-12)
    assert scaling.std[0] == pytest.approx(x.std(ddof=0), rel=1e-12)
    assert scaling.std[1] == pytest.approx(y.std(ddof=0), rel=1e-12)
    assert scaling.std[4] == 1.0  # `same` is constant
    assert scaling.target_mean[0] == pytest.approx(train["outcome"].mean(), rel=1e-6)
    assert scaling.target_std[0] == pytest.approx(train["outcome"].std(ddof=0), rel=1e-6)
    strings = cache.strings("polymer")
    used = strings.embeddings[
        np.unique(cache.rows().string_id[cache.rows().split == 0, 0])
    ].double()
    np.testing.assert_allclose(
        scaling.vectors["polymer"].mean, used.mean(0).numpy(), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        scaling.vectors["polymer"].std, used.std(0, correction=0).numpy(), rtol=1e-6
    )
    assert scaling.positive_rate == {"opt": pytest.approx(train["good"].mean(), rel=1e-12)}


def test_strings_that_do_not_train_do_not_enter_the_statistics(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(), stratum=None).but(
        split={"strategy": "leave_strings_out", "folds": 5, "train_folds": 3}
    )
    study.build()
    cache = study.open()
    vectors, rows = cache.strings("polymer").embeddings.double().numpy(), cache.rows()
    used = np.unique(rows.string_id[rows.split == 0, 0])
    assert len(used) == 3
    np.testing.assert_allclose(
        cache.scaling.vectors["polymer"].mean, vectors[used].mean(0), rtol=1e-9, atol=1e-12
    )
    assert np.abs(vectors.mean(0) - vectors[used].mean(0)).max() > 1e-3, (
        "all strings must have another mean"
    )


def test_vectors_are_those_of_the_encoder(built_study: Any) -> None:
    strings = built_study.open().strings("polymer")
    tokens = tokenize(load_tokenizer(built_study.encoder), strings.text, 512, 269).tokens
    assert tokens.values.tolist() == strings.tokens.values.tolist()
    expected = load_encoder(built_study.encoder)(tokens)
    np.testing.assert_allclose(strings.embeddings.numpy(), expected.numpy(), rtol=0, atol=1e-6)
    assert len({tuple(vector) for vector in strings.embeddings.tolist()}) == 5, (
        "distinct strings must have distinct vectors"
    )


@pytest.mark.slow
def test_parquet_and_csv_give_the_same_cache(
    make_study: Callable, tmp_path: Path, built_study: Any
) -> None:
    study = make_study(tmp_path, file="table.csv")
    study.build()
    ours, theirs = study.open(), built_study.open()
    assert ours.scaling == theirs.scaling
    assert ours.layout == theirs.layout
    for field in (
        "string_id",
        "numeric",
        "category",
        "targets",
        "weight",
        "group",
        "split",
        "facets",
    ):
        np.testing.assert_array_equal(getattr(ours.rows(), field), getattr(theirs.rows(), field))


@pytest.mark.slow
def test_chunking_changes_no_row(make_study: Callable, tmp_path: Path, built_study: Any) -> None:
    study = make_study(tmp_path)
    study = replace(
        study, cache=study.cache.model_copy(update={"rows_per_chunk": 7, "chunks_per_shard": 3})
    )
    study.build()
    for field in ("string_id", "numeric", "targets", "split"):
        np.testing.assert_array_equal(
            getattr(study.open().rows(), field), getattr(built_study.open().rows(), field)
        )
    np.testing.assert_allclose(
        study.open().scaling.mean, built_study.open().scaling.mean, rtol=1e-12
    )


def test_a_second_build_is_up_to_date_at_once(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study.build()
    monkeypatch.setattr(
        "embedcache.build.files.read_table", lambda *_: pytest.fail("the table was read again")
    )
    second = study.build()
    third = study.build(overwrite=True)
    assert (first.status, second.status, third.status) == ("built", "up to date", "up to date")
    assert (second.split, second.num_rows, second.identity) == (
        first.split,
        first.num_rows,
        first.identity,
    )
    assert not Path(study.cache.path + ".partial").exists()
    built = study.open().provenance["built"]
    assert f"nothing to do: it was built on {built} in " in second.summary()
    assert "strings encoded anew" not in second.summary()
    assert "strings encoded anew" in first.summary()


def test_settings_that_do_not_matter_do_not_rebuild(study: Any) -> None:
    study.build()
    assert study.but(encoder={"mode": "frozen", "lora": {"r": 2}}).build().status == "up to date"


def test_a_stale_cache_is_refused_with_the_difference_and_kept(study: Any) -> None:
    study.build()
    before = study.open().identity
    with pytest.raises(StaleCacheError) as caught:
        study.but(split={"seed": 1}, encoder={"pooling": "cls"}).build()
    for line in ("split.seed: 0 -> 1", "encoder.pooling: mean -> cls", "--overwrite"):
        assert line in str(caught.value)
    assert study.open().identity == before
    study.open().verify()


def test_overwrite_replaces_a_stale_cache(study: Any) -> None:
    study.build()
    other = study.but(split={"seed": 1})
    report = other.build(overwrite=True)
    assert report.status == "built"
    assert report.num_encoded == 0, "the strings and the encoder are the same"
    assert study.open().identity == wanted_identity(
        other.data, other.targets, other.split, other.encoder
    )
    study.open().verify()
    assert not Path(study.cache.path + ".partial").exists()


@pytest.mark.slow
def test_only_new_strings_are_encoded(study: Any, frame_of: Callable) -> None:
    study.build()
    old = study.open().strings("polymer")
    frame = frame_of().with_columns(pl.col("smiles").replace({"[*]CCO[*]": "[*]CCCC[*]"}))
    frame.write_parquet(study.data.path)
    assert study.build(overwrite=True).num_encoded == 1
    new = study.open().strings("polymer")
    for text in set(old.text) & set(new.text):
        assert (new.embeddings[new.text.index(text)] == old.embeddings[old.text.index(text)]).all()
    fresh = study.but(encoder={"pooling": "cls"})
    assert fresh.build(overwrite=True).num_encoded == 5, "another pooling shares no vector"


@pytest.mark.slow
def test_a_damaged_cache_is_named_and_overwrite_repairs_it(study: Any) -> None:
    study.build()
    chunk = Path(study.cache.path) / "strings" / "polymer" / "embeddings" / "c" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[7] ^= 1
    chunk.write_bytes(damaged)
    report = study.build(overwrite=True)
    assert (report.status, report.num_encoded) == ("built", 5)
    study.open().verify()
    rows = next((Path(study.cache.path) / "rows" / "group" / "c").iterdir())
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptCacheError, match="rows/group"):
        study.build()  # not "up to date"
    assert study.build(overwrite=True).status == "built"
    chunk.unlink()
    with pytest.raises(CorruptCacheError, match="--overwrite"):
        study.build()
    assert study.build(overwrite=True).status == "built"


def test_what_is_not_a_cache_is_never_replaced(study: Any) -> None:
    folder = Path(study.cache.path)
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(CacheError, match="is not a cache of this project; it is left alone"):
            study.build(overwrite)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_columns_share_an_encoder_or_have_their_own(
    make_study: Callable, frame_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_standin(tmp_path / "own", "tiny", seed=5)
    loaded: list[str] = []
    monkeypatch.setattr(
        "embedcache.build.strings.load_encoder",
        lambda config: loaded.append(config.source) or load_encoder(config),
    )
    own = {"source": str(tmp_path / "own"), "tokenizer": "any", "pooling": "cls"}
    strings = [
        {"name": "polymer", "column": "smiles"},
        {"name": "own", "column": "smiles", "encoder": own},
        {"name": "again", "column": "smiles"},
    ]
    study = make_study(tmp_path, frame_of(), strings=strings)
    report = study.build()
    assert sorted(loaded) == sorted([study.encoder.source, own["source"]])
    assert report.num_encoded == 10
    cache = study.open()
    assert [spec.name for spec in cache.layout.strings] == ["polymer", "own", "again"]
    assert cache.layout.strings[1].encoder == EncoderConfig(**own)
    polymer, mine, again = (cache.strings(name).embeddings for name in ("polymer", "own", "again"))
    assert (polymer == again).all()
    assert not np.allclose(polymer, mine)
    assert cache.rows().string_id.shape == (240, 3)


def test_unknown_tokens_and_merged_spellings_are_reported(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(
        pl.col("smiles").replace({"[*]CCO[*]": "[*]C[Zz]C[*]"}).alias("smiles")
    )
    report = make_study(
        tmp_path, frame, strings=[{"name": "polymer", "column": "smiles", "kind": "text"}]
    ).build()
    assert report.merged["polymer"] == {}
    assert list(report.unknown["polymer"]) == ["*CC*", "[*]C[Zz]C[*]"]
    (tmp_path / "b").mkdir()
    merged = make_study(tmp_path / "b").build()
    assert merged.merged["polymer"] == {"[*]CC[*]": ("*CC*", "[*]CC[*]")}
    assert "spelled in several ways: [*]CC[*] <- *CC* | [*]CC[*]" in merged.summary()
    assert "parts that the tokenizer does not know" in report.summary()


def test_the_summary_fits_a_screen(built_study: Any) -> None:
    lines = built_study.build().summary().splitlines()
    assert len(lines) <= 25
    assert max(len(line) for line in lines) < 200
    assert "stand-in" in "\n".join(lines)
    assert "absent: aux" in "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "change"),
    [
        (TableError, {"numeric": [{"column": "nothing"}]}),
        (SplitError, {"split": {"folds": 12, "train_folds": 8}}),
        (EncoderError, {"encoder": {"source": "no-such-folder"}}),
        (
            TokenizerError,
            {"strings": [{"name": "polymer", "column": "smiles", "replace": {"CC": "C" * 600}}]},
        ),
        (ConfigError, {"group": None, "stratum": None}),
        (ConfigError, {"split": {"strategy": "leave_strings_out", "string": "solvent"}}),
    ],
)
def test_a_wrong_input_publishes_nothing(
    study: Any, error: type[Exception], change: dict[str, Any]
) -> None:
    with pytest.raises(error):
        study.but(**change).build()
    assert not Path(study.cache.path).exists()
    assert study.build().status == "built"


def test_an_encoder_that_gives_no_numbers_is_refused(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "embedcache.build.vectors.encode_all",
        lambda encoder, tokens, **_: np.full((tokens.num_strings, 24), np.nan, dtype=np.float32),
    )
    with pytest.raises(EncoderError, match="non-finite vectors for 5 strings"):
        study.build()


def test_a_table_that_changes_during_the_build_is_refused(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(config: EncoderConfig) -> Any:
        # written to: its bytes may still read as a table, but not be those that were hashed
        os.utime(study.data.path, (0, 0))
        return load_encoder(config)

    monkeypatch.setattr("embedcache.build.strings.load_encoder", load)
    with pytest.raises(TableError, match="was changed while it was being read"):
        study.build()
    assert not Path(study.cache.path).exists()


def test_the_jobs_verify_and_inspect(
    built_study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(job: ModuleType, *arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["job", *arguments])
        with pytest.raises(SystemExit) as left:
            run_job(job.main)
        return (left.value.code, *capsys.readouterr())

    code, printed, errors = run(verify_cache, built_study.cache.path)
    assert (code, errors) == (0, "")
    assert "is whole" in printed
    code, printed, _ = run(inspect_cache, built_study.cache.path)
    assert (code, "x [mm]" in printed) == (0, True)
    code, printed, _ = run(inspect_cache, built_study.cache.path, "--json")
    found = json.loads(printed)
    assert found["layout"]["num_rows"] == 240
    assert found["scaling"]["columns"] == ["x", "y", "t", "flag", "same"]
    code, _, errors = run(verify_cache, str(tmp_path / "none.zarr"))
    assert code == 2
    assert errors.startswith("error: there is no cache")
