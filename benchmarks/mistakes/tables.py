"""Tables with cells, types and classes that are not as they should be."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import zarr

from benchmarks.injection.scene import CONFIG
from benchmarks.mistakes.kinds import (
    CSV,
    Bring,
    Mistake,
    build,
    from_file,
    refused,
    said,
    same_cache,
)


def cell(column: str, text: str, row: int = 7) -> Bring:
    """Return what writes one cell of the CSV as a text."""
    return cells(column, lambda number, value: text if number == row else value)


def cells(column: str, change: Callable[[int, str], str]) -> Bring:
    """Return what writes each cell of a CSV's column anew, from its row and text."""

    def bring(folder: Path, clean: pl.DataFrame) -> None:
        texts = clean[column].cast(pl.String).to_list()
        made = [change(row, value) for row, value in enumerate(texts)]
        clean.with_columns(pl.Series(column, made)).write_csv(folder / "table.csv")

    return bring


def _parquet(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Bring:
    """Return what writes a changed table as Parquet."""
    return lambda folder, clean: change(clean).write_parquet(folder / "table.parquet")


def _with_marks(folder: Path, clean: pl.DataFrame) -> None:
    """Write -999 and -999.0 in turn where a label is missing."""
    labels = [
        ("-999" if row % 2 else "-999.0") if value is None else str(value)
        for row, value in enumerate(clean["gappy"])
    ]
    clean.with_columns(gappy=pl.Series(labels)).write_csv(folder / "table.csv")


def _spark(folder: Path, clean: pl.DataFrame) -> None:
    """Write what Spark leaves: parts, a mark of success, checksums; and a nested column."""
    nested = clean.with_columns(meta=pl.struct(a="x0", b=pl.concat_list("x1", "x2")))
    target = folder / "spark.parquet"
    target.mkdir()
    for number, part in enumerate(nested.iter_slices(100)):
        part.write_parquet(target / f"part-0000{number}-9943d681-c000.snappy.parquet")
        (target / f".part-0000{number}-9943d681-c000.snappy.parquet.crc").write_bytes(b"crc\0")
    (target / "_SUCCESS").write_bytes(b"")


def _numbered_groups(dtype: pl.DataType, start: int = 0) -> Callable[..., pl.DataFrame]:
    """Return what makes the groups numbers of a type."""
    number = pl.col("patient").str.slice(1).cast(pl.Int64) + start
    return lambda clean: clean.with_columns(patient=number.cast(dtype))


def _then_upcast(folder: Path, clean: pl.DataFrame) -> None:
    """Write groups as whole numbers, and in a second file as the floats that a join makes."""
    clean = clean.drop("real").with_columns(real=pl.lit(True))
    _numbered_groups(pl.Int64())(clean.head(150)).write_parquet(folder / "table.parquet")
    _numbered_groups(pl.Float64())(clean.tail(150)).write_parquet(folder / "joined.parquet")


def _has_groups(folder: Path, finished: Path) -> list[str]:
    names = zarr.open_group(folder / "cache.zarr", mode="r")["groups/name"][:].tolist()
    wanted = [str(number) for number in range(12)]
    return [] if sorted(names, key=int) == wanted else [f"groups: {names}"]


def _one_class(folder: Path, clean: pl.DataFrame) -> None:
    """Write a table whose test rows are all of one class."""
    part = pl.when(clean["good"] & (pl.int_range(300) % 3 == 0)).then(pl.lit("test"))
    part = part.when(pl.int_range(300) % 2 == 0).then(pl.lit("validation"))
    clean.with_columns(part=part.otherwise(pl.lit("train"))).write_parquet(folder / "table.parquet")


def _tells_which(folder: Path, finished: Path) -> list[str]:
    """Return what is wrong with metrics of one class: those that need both are not there."""
    found = json.loads((folder / "run" / "metrics.json").read_text())["test"]["good"]
    wrong = [name for name in ("auroc", "pr_auc") if found.get(name) is not None]
    return wrong if found["accuracy"] is not None else [*wrong, "no accuracy"]


def _with(clean: pl.DataFrame, column: str, value: float, row: int = 7) -> pl.Series:
    """Return a column with another value in one row."""
    values = clean[column].to_list()
    values[row] = value
    return pl.Series(values)


SPLIT = ("split.strategy=column", "split.column=part", "split.stratify_by=null", "data.group=null")
SPLIT += ("data.stratum=null", "train.epochs=1")
_of_one_class = tuple(word for each in SPLIT for word in ("--set", each))

MISTAKES = (
    Mistake(
        "missing categories that str made nan",
        "larsiusprime/openavmkit#377",
        said("'kind' has the value 'nan'", "data.null_values"),
        cells("kind", lambda row, value: "nan" if value == "a" else value),
        CSV,
    ),
    Mistake(
        "-999 for what was not measured",
        "ukaea/fair-mast#75",
        said("'gappy' has -999", "data.null_values"),
        _with_marks,
        CSV,
    ),
    Mistake(
        "the same with the key that the report names",
        "ukaea/fair-mast#75",
        same_cache(),
        _with_marks,
        from_file("table.csv", "data.null_values=[-999]"),
    ),
    Mistake(
        "thousands set apart by commas",
        "agrc/palletjack#50",
        refused("x1", "'2,115.88'", "row 7", "thousands"),
        cell("x1", "2,115.88"),
        CSV,
    ),
    Mistake(
        "thousands that could be a decimal comma",
        "hayj/SystemTools#5",
        refused("x1", "'727,242'", "row 7", "thousands", "data.csv.decimal"),
        cell("x1", "727,242"),
        CSV,
    ),
    Mistake(
        "a bound instead of a label",
        "ATOMScience-org/AMPL#255",
        refused("outcome", "'<1'", "row 7", "bound"),
        cell("outcome", "<1"),
        CSV,
    ),
    Mistake(
        "a unit in the cell",
        "ATOMScience-org/AMPL#255",
        refused("x1", "'1 nM'", "row 7", "unit"),
        cell("x1", "1 nM"),
        CSV,
    ),
    Mistake(
        "a non-breaking space in a cell",
        "art-from-the-machine/Mantella#56",
        same_cache(),
        cells("x1", lambda row, value: f"\u00a0{value}\u00a0"),
        CSV,
    ),
    Mistake(
        "the typographic minus sign",
        "actualbudget/actual#6206",
        refused("x0", "row 7", "U+2212"),
        cell("x0", "\u22120.5"),
        CSV,
    ),
    Mistake(
        "an apostrophe before a number",
        "hhurz/tableExport.jquery.plugin#296",
        refused("x0", "-0.02", "row 7", "not a number"),
        cell("x0", "'-0.02"),
        CSV,
    ),
    Mistake(
        "a number that a spreadsheet took for a date",
        "Quartz/bad-data-guide#34",
        refused("x1", "'2-Jan'", "row 7", "date"),
        cell("x1", "2-Jan"),
        CSV,
    ),
    Mistake(
        "numbers with exponents",
        "calpaterson/csvbase#55",
        same_cache(),
        cells("x2", lambda row, value: f"{float(value):.17e}"),
        CSV,
    ),
    Mistake(
        "whole numbers with a decimal point as classes",
        "bojieli/ai-agent-book#360",
        same_cache(),
        cells("good", lambda row, value: "1.0" if value == "true" else "0.0"),
        CSV,
    ),
    Mistake(
        "classes -1 and 1",
        "mljar/mljar-supervised#236",
        refused("good", "binary", "0, 1", "-1"),
        cells("good", lambda row, value: "1" if value == "true" else "-1"),
        CSV,
    ),
    Mistake(
        "classes in words",
        "scikit-learn-contrib/imbalanced-learn#705",
        refused("in 1 way", "good", "not a number", "'female'", "`classes`"),
        cells("good", lambda row, value: "male" if value == "true" else "female"),
        CSV,
    ),
    Mistake(
        "an infinite feature",
        "theislab/chemCPA#56",
        refused("x0", "infinite", "row 7"),
        _parquet(lambda clean: clean.with_columns(x0=_with(clean, "x0", math.inf))),
        build(),
    ),
    Mistake(
        "an infinite label",
        "bhklab/PharmacoGx#52",
        refused("outcome", "infinite", "row 7"),
        _parquet(lambda clean: clean.with_columns(outcome=_with(clean, "outcome", math.inf))),
        build(),
    ),
    Mistake(
        "a feature without any value",
        "scikit-learn/scikit-learn#18681",
        refused("x0", "no value"),
        _parquet(lambda clean: clean.with_columns(x0=pl.lit(None, pl.Float64))),
        build("--set", "data.numeric.0.if_null=mean"),
    ),
    Mistake(
        "decimals of a data base",
        "pola-rs/polars#12730",
        same_cache(),
        lambda folder, clean: clean.with_columns(
            pl.col("x0", "x1").cast(pl.Decimal(38, 18))
        ).write_parquet(folder / "table.parquet"),
        build(),
    ),
    Mistake(
        "a folder that Spark wrote, with a nested column",
        "pola-rs/polars#14377",
        same_cache(),
        _spark,
        from_file("spark.parquet"),
    ),
    Mistake(
        "whole numbers that a join made floats, in a second file",
        "pandas-dev/pandas#8596",
        said("rows: 300", "12 groups", differences=_has_groups),
        _then_upcast,
        build("--set", "data.path=[table.parquet, joined.parquet]"),
    ),
    Mistake(
        "numbers of 18 digits that a join made floats",
        "pandas-dev/pandas#9958",
        refused("group column 'patient'", "floats", "300 rows"),
        _parquet(_numbered_groups(pl.Float64(), 143349558619761320)),
        build(),
    ),
    Mistake(
        "test rows of one class",
        "deepchem/deepchem#706",
        said("auroc", "\u2013", differences=_tells_which),
        _one_class,
        (
            *build(*_of_one_class),
            ("train", "--config", CONFIG, *_of_one_class),
            ("evaluate_model", "--run", "run", "--no-baselines"),
        ),
    ),
)
