"""Appending: a cache that grew equals one that was built at once, bit for bit; nothing that was
there moves; whatever else differs is refused.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from budgets import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from embedcache.build import vectors
from embedcache.cache.layout import ROW_ARRAYS
from embedcache.cache.reader import Cache
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.errors import ConfigError, StaleCacheError, TableError
from embedcache.schema import parse_config
from embedcache.split.folds import assign_few, assign_rows, shares, split_of_fold
from fusionnet.commands import build_cache, inspect_cache
from fusionnet.commands.command import run_job
from fusionnet.experiment import load_experiment
from fusionnet.workflow.checked_cache import open_checked_cache

pytestmark = pytest.mark.slow  # together 48 s of CPU, in make test alone

FIELDS = [array.name for array in ROW_ARRAYS]
NEW = [f"[*]{'C' * k}O[*]" for k in range(3, 10)]  # seven strings that the first file does not have
STRATEGIES: dict[str, dict[str, Any]] = {
    "group": {"strategy": "group"},
    "random": {"strategy": "random"},
    "strings": {"strategy": "leave_strings_out", "folds": 5, "train_folds": 3, "stratify_by": None},
    "scaffold": {"strategy": "scaffold", "folds": 4, "stratify_by": None},
    "column": {"strategy": "column", "column": "fold"},
    "folds": {"strategy": "folds", "column": "fold", "folds": None, "train_folds": 1},
}


@pytest.fixture(scope="session")
def frames(frame_of: Callable) -> list[pl.DataFrame]:
    """Three tables: the second has a few new groups, strings, categories and sites and a new
    target, the third many.
    """
    first, second, third = frame_of(240, 12, 0), frame_of(50, 15, 1), frame_of(150, 40, 2)
    second = second.with_columns(
        pl.when(pl.int_range(pl.len()) % 6 == 5)
        .then(pl.lit(NEW[0]))
        .otherwise(pl.col("smiles"))
        .alias("smiles"),
        pl.when(pl.int_range(pl.len()) == 7)
        .then(pl.lit("0"))
        .otherwise(pl.col("kind"))
        .alias("kind"),
        pl.lit(9, dtype=pl.Int64).alias("site"),
        pl.Series("auxiliary", np.linspace(0, 1, 50)),
    )
    names = pl.Series([NEW[k % 7] for k in range(150)])
    third = third.with_columns(
        pl.when(pl.int_range(pl.len()) % 2 == 0)
        .then(names)
        .otherwise(pl.col("smiles"))
        .alias("smiles")
    )
    folds = np.array(["train", "train", "validation", "test"])
    return [
        frame.with_columns(pl.Series("fold", folds[[int(p[1:]) % 4 for p in frame["patient"]]]))
        for frame in (first, second, third)
    ]


@pytest.fixture
def grown(make_study: Callable, tmp_path: Path, frames: list[pl.DataFrame]) -> Callable[..., Any]:
    """Make a study of the first files, in a folder of its own."""
    files = []
    for number, frame in enumerate(frames):
        files.append(str(tmp_path / f"{number}.parquet"))
        frame.write_parquet(files[-1], row_group_size=64)

    def make(folder: str, num_files: int, **changes: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        study = make_study(tmp_path / folder, frames[0], categories=[{"column": "kind"}])
        return study.but(path=files[:num_files], **changes)

    return make


def with_files(study: Any, files: list[str]) -> Any:
    return replace(
        study, data=parse_config(DataConfig, {**study.data.model_dump(), "path": files}, "test")
    )


def contents(cache: Cache) -> dict[str, str]:
    """Return the digest of every file of the cache but its root, which holds the time and duration
    of the build.
    """
    root = json.loads((cache.path / "zarr.json").read_text())
    return {name: entry["sha256"] for name, entry in root["attributes"]["files"].items()}


def same(mine: Cache, theirs: Cache) -> None:
    assert contents(mine) == contents(theirs)
    assert mine.layout == theirs.layout
    assert mine.scaling == theirs.scaling
    assert mine.identity == theirs.identity
    assert mine.report["split"] == theirs.report["split"]
    assert mine.report["merged"] == theirs.report["merged"]
    assert mine.provenance["rows_of_files"] == theirs.provenance["rows_of_files"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cache_that_grew_is_the_one_that_is_built_at_once(grown: Callable, strategy: str) -> None:
    change = {"split": STRATEGIES[strategy]}
    at_once = grown("once", 3, **change)
    at_once.build()
    for number in (1, 2, 3):
        report = grown("grew", number, **change).build(append=number > 1)
    assert report.status == "appended to"
    grew = grown("grew", 3, **change).open()
    same(grew, at_once.open())
    grew.verify()
    assert grown("grew", 3, **change).build().status == "up to date"
    assert not Path(f"{grew.path}.partial").exists()


@examples(cost=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(61, 239), min_size=1, max_size=2),
    chunk=st.integers(5, 90),
    strategy=st.sampled_from(["group", "random"]),
    seed=st.integers(0, 9),
)
def test_it_does_so_wherever_the_files_are_cut(
    make_study: Callable,
    frame_of: Callable,
    tmp_path_factory: pytest.TempPathFactory,
    cuts: set[int],
    chunk: int,
    strategy: str,
    seed: int,
) -> None:
    folder, frame = tmp_path_factory.mktemp("cut"), frame_of(240, 12, seed)
    (folder / "once").mkdir()
    bounds = [0, *sorted(cuts), 240]
    files = []
    for first, last in pairwise(bounds):
        files.append(str(folder / f"{first}.csv"))
        frame[first:last].write_csv(files[-1])
    study = make_study(folder).but(split={"strategy": strategy})
    study = replace(
        study, cache=study.cache.model_copy(update={"rows_per_chunk": chunk, "chunks_per_shard": 2})
    )
    for number in range(1, len(files) + 1):
        with_files(study, files[:number]).build(append=number > 1)
    once = replace(
        with_files(study, files),
        cache=study.cache.model_copy(update={"path": str(folder / "once" / "cache.zarr")}),
    )
    once.build()
    same(study.open(), once.open())


def test_what_was_there_stays_and_what_is_new_follows_sorted(grown: Callable) -> None:
    grown("a", 1).build()
    before = grown("a", 1).open()
    rows, strings, layout = before.rows(), before.strings("polymer"), before.layout
    grown("a", 2).build(append=True)
    after = grown("a", 2).open()
    for field in FIELDS:
        old, new = getattr(rows, field), getattr(after.rows(0, 240), field)
        np.testing.assert_array_equal(new[:, : old.shape[1]] if field == "targets" else new, old)
    found = after.strings("polymer")
    assert found.text == [*strings.text, NEW[0]]
    assert (found.embeddings[:5] == strings.embeddings).all()
    assert found.num_rows.sum() == 290
    assert after.layout.categories[0].values == (
        "a",
        "b",
        "c",
        "0",
    ), "a new category comes after the old ones, though it sorts before them"
    assert after.layout.facets[1].values == ("1", "2", "3", "9")
    assert after.layout.groups == (*layout.groups, "P12", "P13", "P14")
    assert [target.name for target in layout.targets] == ["ef", "opt"]
    assert [target.name for target in after.layout.targets] == ["ef", "opt", "aux"]
    assert np.isnan(after.rows().targets[:240, 2]).all()
    assert (
        after.rows().targets[240:, 2].tolist() == np.linspace(0, 1, 50).astype(np.float32).tolist()
    )
    assert after.scaling.mean != before.scaling.mean, "the scaling is that of all train rows"


def test_only_new_strings_reach_the_encoder(
    grown: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown("a", 1).build()
    plain, seen = vectors.encode_all, []
    monkeypatch.setattr(
        vectors,
        "encode_all",
        lambda encoder, tokens, **kwargs: (
            seen.append(tokens.num_strings) or plain(encoder, tokens, **kwargs)
        ),
    )
    assert grown("a", 2).build(append=True).num_encoded == 1
    assert sum(seen) == 1
    assert grown("a", 3).build(append=True).num_encoded == 6


def test_hidden_states_grow_too(grown: Callable) -> None:
    change = {"encoder": {"mode": "prefix", "lora": {"first_layer": 1}}}
    grown("once", 2, **change).build()
    grown("grew", 1, **change).build()
    grown("grew", 2, **change).build(append=True)
    same(grown("grew", 2, **change).open(), grown("once", 2, **change).open())


def test_groups_keep_their_split_and_few_new_ones_fill_the_split_that_lacks_rows(
    grown: Callable,
) -> None:
    grown("a", 2).build()
    rows = grown("a", 2).open().rows()
    for group in range(15):
        assert len(set(rows.split[rows.group == group].tolist())) == 1
    real = rows.stratum == 1
    for stratum in (real, ~real):
        share = np.bincount(rows.split[stratum], minlength=3) / stratum.sum()
        assert np.abs(share - [0.5, 0.25, 0.25]).max() < 0.1


@given(
    rows=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    placed=st.lists(st.integers(0, 300), min_size=3, max_size=3),
)
def test_the_last_of_a_few_goes_where_most_is_missing(rows: list[int], placed: list[int]) -> None:
    config = SplitConfig(folds=4, train_folds=2, validation_folds=1).plan()
    held = np.array([placed[0], 0, *placed[1:]])  # by fold
    split = split_of_fold(assign_few(np.array(rows), held, config), config)
    smallest = len(rows) - 1 - int(np.argmin(rows[::-1]))  # dealt last
    others = np.array(placed)
    for place, count in enumerate(rows):
        others[split[place]] += count if place != smallest else 0
    missing = shares(config) * (others.sum() + rows[smallest]) - others
    assert missing[split[smallest]] == missing.max()


def test_files_that_are_alike_are_not_dealt_alike() -> None:
    label, config = np.zeros(500, dtype=np.int16), SplitConfig().plan()
    assert (assign_rows(label, config) != assign_rows(label, config, first_row=500)).any()
    assert (
        assign_rows(label, config, first_row=500) == assign_rows(label, config, first_row=500)
    ).all()


def test_more_files_are_refused_unless_it_is_said_what_to_do(grown: Callable) -> None:
    grown("a", 1).build()
    before = contents(grown("a", 1).open())
    with pytest.raises(
        StaleCacheError,
        match=(
            r"(?s)first 1 of the 3 files of data\.path; to add the other 2.*--append.*--overwrite"
        ),
    ):
        grown("a", 3).build()
    assert contents(grown("a", 1).open()) == before
    assert grown("a", 3).build(overwrite=True).status == "built"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"split": {"seed": 1}}, "split.seed: 0 -> 1"),
        ({"encoder": {"pooling": "cls"}}, "encoder.pooling: mean -> cls"),
        ({"report_by": ["site"]}, 'data.report_by: ["real", "site"] -> ["site"]'),
    ],
)
def test_appending_to_something_else_is_refused_with_the_difference(
    grown: Callable, change: dict[str, Any], line: str
) -> None:
    grown("a", 1).build()
    before = contents(grown("a", 1).open())
    with pytest.raises(StaleCacheError, match="Only files can be appended") as caught:
        grown("a", 2, **change).build(append=True)
    assert line in str(caught.value)
    assert contents(grown("a", 1).open()) == before


def test_files_in_another_order_edited_or_fewer_are_refused(grown: Callable) -> None:
    study = grown("a", 2)
    study.build()
    first, second = study.data.files
    for files in ([second, first], [first]):
        with pytest.raises(
            StaleCacheError, match=r"table: sha256 [0-9a-f]{8}\.\., sha256 [0-9a-f]{8}\.\. -> "
        ):
            with_files(study, files).build(append=True)
    pl.read_parquet(first).with_columns(pl.col("x") + 0.1).write_parquet(first)
    with pytest.raises(StaleCacheError, match="Only files can be appended"):
        grown("a", 3).build(append=True)


def test_the_files_that_are_appended_to_need_not_be_there(grown: Callable, tmp_path: Path) -> None:
    grown("once", 2).build()
    grown("a", 1).build()
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(TableError, match=r"there is no table .*0\.parquet"):
        grown("a", 2).build()
    grown("a", 2).build(append=True)
    same(grown("a", 2).open(), grown("once", 2).open())


def test_without_a_cache_appending_is_building(grown: Callable) -> None:
    assert grown("a", 2).build(append=True).status == "built"
    grown("b", 2).build()
    same(grown("a", 2).open(), grown("b", 2).open())


WRONG = [
    ({"kind": "d"}, {}, "unknown category 'd': 1 row; row 3"),
    ({"x": float("nan")}, {}, "numeric column 'x': null or NaN: 1 row; row 3"),
    ({"smiles": "CCO"}, {}, "'CCO' is not a psmiles"),
    (
        {"patient": "P01"},
        {},
        "stratum column: 1 group with another value than in the files before, e.g. 'P01'",
    ),
]


@pytest.mark.parametrize(("cells", "change", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_a_violation_names_the_appended_file_and_its_own_rows(
    grown: Callable,
    frames: list[pl.DataFrame],
    tmp_path: Path,
    cells: dict[str, Any],
    change: dict[str, Any],
    message: str,
) -> None:
    categories = [{"column": "kind", "values": ["c", "a", "b", "0"]}]
    grown("a", 1, categories=categories, **change).build()
    before = contents(grown("a", 1, categories=categories).open())
    place = pl.int_range(pl.len()) == 3
    wrong = frames[1].with_columns(
        pl.when(place).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in cells.items()
    )
    if "patient" in cells:
        wrong = wrong.filter((pl.col("patient") != "P01") | place).with_columns(
            pl.when(place).then(True).otherwise(pl.col("real")).alias("real")
        )
    wrong.write_parquet(tmp_path / "1.parquet")
    with pytest.raises(TableError) as caught:
        grown("a", 2, categories=categories).build(append=True)
    assert str(tmp_path / "1.parquet") in str(caught.value)
    assert message in str(caught.value)
    assert contents(grown("a", 1, categories=categories).open()) == before
    assert not (Path(grown("a", 1).cache.path + ".partial") / "store").exists()


def test_an_appended_file_may_lack_labels_but_not_features(
    grown: Callable, frames: list[pl.DataFrame], tmp_path: Path
) -> None:
    grown("a", 1).build()
    unlabelled = (
        frames[1]
        .with_columns(pl.lit(None, dtype=pl.Float64).alias("outcome"), pl.lit(True).alias("good"))
        .drop("auxiliary")
    )
    unlabelled.write_parquet(tmp_path / "1.parquet")
    grown("a", 2).build(append=True)
    rows = grown("a", 2).open().rows(240)
    assert np.isnan(rows.targets[:, 0]).all()
    assert (rows.targets[:, 1] == 1).all()
    unlabelled.drop("x").write_parquet(tmp_path / "2.parquet")
    with pytest.raises(
        TableError, match=r"2\.parquet breaks .*(?s:.*)numeric column 'x' is missing"
    ):
        grown("a", 3).build(append=True)


def test_a_file_that_is_listed_twice_or_none_is_refused(grown: Callable) -> None:
    study = grown("a", 1)
    for files, message in (
        ([study.data.path[0]] * 2, "has twice"),
        ([], "at least one file"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_files(study, files)


def test_one_file_is_the_same_alone_or_in_a_list(grown: Callable) -> None:
    study = grown("a", 1)
    study.build()
    assert (
        replace(study, data=study.data.model_copy(update={"path": study.data.files[0]}))
        .build()
        .status
        == "up to date"
    )


def test_the_job_appends_and_a_run_sees_the_grown_cache(
    tiny_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    table[:100].write_parquet(tmp_path / "more.parquet")
    shutil.copytree(tiny_experiment.parent / "cache.zarr", tmp_path / "cache.zarr")
    config = tmp_path / "grown.yaml"
    files = [str(tiny_experiment.parent / "table.parquet"), str(tmp_path / "more.parquet")]
    config.write_text(
        yaml.safe_dump(
            {
                "extends": str(tiny_experiment),
                "data": {"path": files},
                "cache": {"path": str(tmp_path / "cache.zarr")},
            }
        )
    )

    def run(job: Any, *arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr("sys.argv", ["job", *arguments])
        with pytest.raises(SystemExit) as left:
            run_job(job.main)
        printed = capsys.readouterr()
        return left.value.code, printed.out + printed.err

    code, printed = run(build_cache, "--config", str(config))
    assert (code, "--append" in printed) == (2, True)
    code, printed = run(build_cache, "--config", str(config), "--append")
    assert (code, "appended to" in printed) == (0, True)
    assert open_checked_cache(load_experiment(config), str(config)).layout.num_rows == 520
    code, printed = run(inspect_cache, str(tmp_path / "cache.zarr"))
    assert "table.parquet, more.parquet" in printed
