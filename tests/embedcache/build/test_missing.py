"""Missing values, rows that break a rule, and what the report says of the rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from embedcache.build.moments import Moments
from embedcache.build.statistics import ScalingFit
from embedcache.config.split import SPLITS
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError, SplitError, TableError, TokenizerError

BAD = {  # row -> its change, and what the report says
    3: ({"smiles": "not a string"}, "string column 'smiles'"),
    50: ({"x": 99.0}, "numeric column 'x': above 50 mm"),
    51: ({"x": None}, "numeric column 'x': null or NaN"),
    120: ({"kind": "z"}, "unknown category 'z'"),
    200: ({"patient": None}, "group column 'patient': null or empty"),
}


def spoiled(frame: pl.DataFrame, rows: dict[int, tuple[dict[str, Any], str]]) -> pl.DataFrame:
    records = frame.to_dicts()
    for row, (change, _) in rows.items():
        records[row] |= change
    return pl.DataFrame(records, schema=frame.schema)


def with_missing(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with gaps in x: null and NaN."""
    gap = pl.int_range(pl.len()) % 6
    return frame.with_columns(
        x=pl.when(gap == 0).then(None).when(gap == 1).then(float("nan")).otherwise(pl.col("x"))
    )


@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
@pytest.mark.parametrize("fill", ["mean", "median", "indicator", 2.5])
def test_missing_numbers_are_filled_from_the_train_rows(
    fill: str | float, file: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    numeric = [{"column": "y", "transform": "log10"}, {"column": "x", "if_null": fill}]
    study = make_study(tmp_path, with_missing(frame_of()), file, numeric=numeric)
    study.build()
    cache = study.open()
    rows = cache.rows()
    missing = np.arange(240) % 6 < 2
    train = rows.split == SPLITS.index("train")
    known = frame_of()["x"].to_numpy().astype(np.float32)[train & ~missing]
    value = {"mean": known.mean(), "median": np.median(known), "indicator": np.median(known)}
    wanted = value.get(fill, fill) if isinstance(fill, str) else fill
    names = ["y", "x"] + (["x is missing"] if fill == "indicator" else [])
    assert [column.column for column in cache.layout.numeric] == names
    scaled = cache.scaling.apply(torch.from_numpy(rows.numeric)).numpy()
    assert np.isfinite(scaled).all()
    back = scaled[:, 1] * cache.scaling.std[1] + cache.scaling.mean[1]
    np.testing.assert_allclose(back[missing], wanted, rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(rows.numeric[:, 1]), missing & isinstance(fill, str))
    if fill == "indicator":
        np.testing.assert_array_equal(rows.numeric[:, 2], missing)
    if isinstance(fill, str):
        assert cache.scaling.fill[1] == pytest.approx(wanted, rel=1e-6)
        assert cache.scaling.mean[1] == pytest.approx(known.mean(), rel=1e-5)
    assert cache.scaling.fill[0] is None


def test_validation_and_test_rows_do_not_fill(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    numeric = [{"column": "x", "if_null": "median"}]
    frame = with_missing(frame_of())
    study = make_study(tmp_path, frame, numeric=numeric)
    study.build()
    first, split = study.open().scaling, study.open().rows().split
    changed = frame.with_columns(
        x=pl.when(pl.Series(split != SPLITS.index("train"))).then(7.0).otherwise("x")
    )
    (tmp_path / "again").mkdir()
    study = make_study(tmp_path / "again", changed, numeric=numeric)
    study.build()
    assert study.open().scaling.fill == first.fill


def test_a_column_without_any_train_value_cannot_be_filled(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(x=pl.lit(None, dtype=pl.Float64))
    study = make_study(tmp_path, frame, numeric=[{"column": "x", "if_null": "mean"}])
    with pytest.raises(SplitError, match="'x' has no value in any train row"):
        study.build()


@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
def test_null_values_are_missing_in_every_column(
    file: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(
        x=pl.when(pl.int_range(pl.len()) == 4).then(-999.0).otherwise("x"),
        kind=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("n/a")).otherwise("kind"),
        outcome=pl.when(pl.int_range(pl.len()) == 6).then(-999.0).otherwise("outcome"),
    )
    with pytest.raises(TableError, match="-999"):
        make_study(tmp_path, frame, file).build()
    study = make_study(
        tmp_path,
        frame,
        file,
        null_values=["n/a", -999],
        numeric=[{"column": "x", "if_null": 0, "low": -50}],
        categories=[{"column": "kind", "if_null": "c"}],
    )
    study.build()
    rows = study.open().rows()
    assert rows.numeric[4, 0] == 0
    values = study.open().layout.categories[0].values
    assert values[rows.category[5, 0]] == "c"
    assert np.isnan(rows.targets[6, 0])


@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
def test_nan_labels_are_unobserved(
    file: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(
        outcome=pl.when(pl.int_range(pl.len()) == 6).then(float("nan")).otherwise("outcome")
    )
    study = make_study(tmp_path, frame, file)
    study.build()
    assert np.isnan(study.open().rows().targets[6, 0])
    assert np.isfinite(study.open().rows().targets[5, 0])


def test_unknown_and_rare_categories_are_other(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    kinds = ["a", "b"] * 118 + ["rare", "rarer", "a", "b"]
    frame = frame_of().with_columns(kind=pl.Series(kinds))
    rare = [{"column": "kind", "other": "rest", "min_rows": 2}]
    named = [{"column": "kind", "values": ["b", "a"], "other": "rest"}]
    for number, (categories, wanted) in enumerate(
        ((rare, ("a", "b", "rest")), (named, ("b", "a", "rest")))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        study = make_study(folder, frame, categories=categories)
        study.build()
        cache = study.open()
        assert cache.layout.categories == (("kind", wanted),)
        codes = cache.rows().category[:, 0]
        assert [wanted[code] for code in codes] == [
            kind if kind in ("a", "b") else "rest" for kind in kinds
        ]


def test_min_rows_needs_other(make_study: Callable, frame_of: Callable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_rows of 'kind' needs `other`"):
        make_study(tmp_path, frame_of(), categories=[{"column": "kind", "min_rows": 2}])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["t.parquet", "t.csv"])
def test_rows_that_break_a_rule_are_left_out_where_that_is_asked_for(
    file: str, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of()
    with pytest.raises(TableError) as caught:
        make_study(tmp_path, spoiled(frame, BAD), file).build()
    for row, (_, message) in BAD.items():
        assert message in str(caught.value)
        assert f"{row}" in str(caught.value)
    assert "data.on_invalid: skip does without" in str(caught.value)
    study = make_study(tmp_path, spoiled(frame, BAD), file, on_invalid="skip")
    report = study.build()
    assert (report.num_rows, report.num_invalid) == (235, 5)
    summary = report.summary()
    assert "rows: 235 (5 left out by data.on_invalid)" in summary
    for row, (_, message) in BAD.items():
        line = next(line for line in summary.splitlines() if message in line)
        assert line.startswith("  - ")
        assert f"row {row}" in line
    clean = frame.filter(~pl.int_range(pl.len()).is_in(list(BAD)))
    (tmp_path / "clean").mkdir()
    wanted = make_study(tmp_path / "clean", clean, file)
    wanted.build()
    for name in ("numeric", "targets", "category", "string_id", "group", "split"):
        np.testing.assert_array_equal(
            getattr(study.open().rows(), name), getattr(wanted.open().rows(), name)
        )


def test_cells_of_another_number_are_left_out_too(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    study = make_study(tmp_path, frame_of(), "t.csv", on_invalid="skip")
    file = Path(study.data.path)
    lines = file.read_text().splitlines()
    lines[11] = lines[11].replace(",", ",,", 1)
    lines[21] = lines[21].rsplit(",", 1)[0]
    file.write_text("\n".join(lines))
    with pytest.raises(TableError, match=r"header's 12 .*2 rows, e\.g\. 11, 13; rows 10, 20"):
        study.but(on_invalid="refuse").build()
    report = study.build()
    assert (report.num_rows, report.num_invalid) == (238, 2)


def test_a_table_of_which_no_row_is_left_is_refused(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of().with_columns(x=pl.lit(99.0))
    with pytest.raises(TableError, match="no row is left"):
        make_study(tmp_path, frame, on_invalid="skip").build()
    with pytest.raises(TableError, match="'x' is missing"):
        make_study(tmp_path, frame.drop("x"), on_invalid="skip").build()


def test_an_appended_file_adds_to_what_was_left_out(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = spoiled(frame_of(), BAD)
    study = make_study(tmp_path, frame.head(120), "a.parquet", on_invalid="skip")
    study.build()
    frame.tail(120).write_parquet(tmp_path / "b.parquet")
    grown = study.but(path=[study.data.path, str(tmp_path / "b.parquet")])
    report = grown.build(append=True)
    assert (report.num_rows, report.num_invalid, len(report.invalid)) == (235, 5, 5)


def test_remarks_say_what_scores_do_not(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of(120, 12)
    twins = pl.concat([frame, frame.with_columns(patient=pl.col("patient") + "b")])
    flat = pl.when(pl.int_range(pl.len()) == 0).then(1e9).otherwise(pl.col("y"))
    study = make_study(
        tmp_path,
        twins.with_columns(y=flat),
        numeric=[{"column": "x"}, {"column": "y"}, {"column": "same"}],
        categories=[{"column": "kind", "values": ["a", "b", "c", "d"]}],
    ).but(split={"strategy": "random", "seed": 3, "stratify_by": None})
    summary = study.build().summary()
    split = study.open().rows().split
    by_hand = {}
    for code, name in enumerate(SPLITS):
        rows = twins.drop("patient", "site", "real", "t", "flag").rows()
        train = {str(row) for row, each in zip(rows, split, strict=True) if each == 0}
        here = [str(row) for row, each in zip(rows, split, strict=True) if each == code]
        by_hand[name] = sum(row in train for row in here), len(here)
    for name in SPLITS[1:]:
        equal, count = by_hand[name]
        assert 0 < equal < count
        assert f"{equal} of {count} {name} rows" in summary
    assert summary.count("have an equal row in train") == 1
    assert "numeric column 'same' has one value in all train rows, 0.1" in summary
    assert "category column 'kind': no train row has 'd'" in summary
    if split[0] == 0:
        assert "numeric column 'y' is so skewed that a few values flatten the others" in summary
    assert "numeric column 'x'" not in summary


def test_a_feature_that_one_value_flattens_is_told_from_a_wide_one() -> None:
    rng = np.random.default_rng(0)
    wide = {
        "normal": rng.normal(size=5000),
        "lognormal": np.exp(rng.normal(size=5000)),
        "rare": (rng.random(5000) < 0.01).astype(float),
        "constant": np.ones(5000),
    }
    flat = {
        "one": np.append(rng.normal(size=50), 1e6),
        "few": np.concatenate([rng.normal(size=100_000), np.full(5, 1e6)]),
    }
    for name, values in {**wide, **flat}.items():
        moments = Moments(1)
        moments.add(values[:, None])
        assert moments.is_flattened(0) == (name in flat), name


def test_labels_that_are_marks_or_classes_are_told() -> None:
    rng = np.random.default_rng(0)
    labels = {
        "normal": rng.normal(size=200),
        "shares": rng.random(200),
        "classes": np.arange(200) % 3 == 0,
        "marks": np.where(np.arange(200) % 10 == 0, -999, rng.normal(size=200)),
        "one mark": np.where(np.arange(200) == 0, 9999, rng.normal(size=200)),
    }
    told = {}
    for name, values in labels.items():
        fit = ScalingFit((), (TargetColumn(name="y", column="y"),))
        fit.add(np.zeros((200, 0), dtype=np.float32), values.astype(np.float32)[:, None])
        told[name] = [line.removeprefix("target column 'y' ") for line in fit.remarks()]
    assert told["normal"] == told["shares"] == []
    assert told["classes"] == ["has only 0 and 1: is it of kind: binary?"]
    assert [line.split(" in train rows")[0] for line in told["marks"]] == ["has -999"]
    assert "a few labels flatten the others" in told["one mark"][0]
    assert told["one mark"][1].startswith("has 9999 in train rows: if that stands for a missing")


def test_a_sample_of_large_tables_is_compared(
    make_study: Callable, frame_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_of(120, 12)
    study = make_study(tmp_path, pl.concat([frame] * 20)).but(
        split={"strategy": "random", "stratify_by": None}
    )
    monkeypatch.setattr("embedcache.build.remarks.MOST_HASHED", 1200)
    assert "estimated from one row in 2" in study.build().summary()


def test_strings_that_the_encoder_cannot_read_are_left_out_too(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    strings = frame_of()["smiles"].to_list()
    strings[3], strings[7] = f"[*]{'C' * 5000}[*]", "[*]CC[*].[*]CCO[*]"
    frame = frame_of().with_columns(pl.Series("smiles", strings))
    columns = [{"name": "polymer", "column": "smiles", "fragments": True}]
    study = make_study(tmp_path, frame, strings=columns)
    with pytest.raises(TokenizerError, match=r"positions.*data\.on_invalid: skip"):
        study.build()
    report = study.but(on_invalid="skip").build()
    assert (report.num_rows, report.num_invalid) == (238, 2)
    summary = report.summary()
    assert "is longer than its encoder's 512 positions; 1 row: row 3" in summary
    assert "has a '.' between fragments, which its encoder's tokenizer does not know" in summary
    assert all(len(text) < 100 for text in study.open().strings("polymer").text)


@pytest.mark.parametrize("changed", ["x", "outcome", "kind", "smiles", None])
def test_rows_that_differ_in_one_part_are_no_copies(
    changed: str | None, make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = frame_of(120, 12).with_columns(
        outcome=pl.lit(1.0), kind=pl.lit("a"), smiles=pl.lit("[*]CC[*]")
    )
    others = {"x": pl.col("x") + 1, "outcome": pl.lit(2.0), "kind": pl.lit("b")}
    others["smiles"] = pl.lit("[*]CCO[*]")
    twin = frame if changed is None else frame.with_columns(others[changed].alias(changed))
    both = pl.concat([frame, twin]).with_columns(
        part=pl.when(pl.int_range(pl.len()) < 120)
        .then(pl.lit("train"))
        .otherwise(pl.Series(["validation", "test"] * 120))
    )
    study = make_study(tmp_path, both).but(
        group=None,
        stratum=None,
        split={"strategy": "column", "column": "part", "stratify_by": None},
    )
    summary = study.build().summary()
    equal, repeated = "60 of 60 test rows have an equal row", "60 of 60 test rows have the strings"
    assert (equal in summary) == (changed is None)
    assert (repeated in summary) == (changed == "outcome")
