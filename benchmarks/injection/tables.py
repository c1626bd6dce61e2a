"""Tables that are wrong: cells, columns, names, shapes, bytes; as Parquet and as CSV.

A table is refused, or the numbers in the cache are those that another reader finds in the file.
"""

import codecs
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

from benchmarks.injection.cases import Case, Outcome, judged
from benchmarks.injection.damage import damages
from benchmarks.injection.processes import in_fork
from benchmarks.injection.scene import BUILD, Scene
from embedcache.cache.reader import open_cache

NUM_DAMAGED = 60
NUMBERS = ("x0", "x1", "x2")
ODD_CELLS: tuple[Any, ...] = (
    *(math.nan, math.inf, -math.inf, 1e300, -1e300, 1e39, 0.0, -1.0, 5e-324, None, 10**9),
    *("", " ", "x", "NaN", "1e5", "0x10", "1,5", "\uff11", "1_000", "P00", "[*]CC[*]", "CC"),
    *("[*]C(", "*", "[*]" + "C" * 10_000 + "[*]", "[*]CC[*].[*]CC[*]", "[*]CC", "[*][Xx][*]"),
    *("a\0b", "\n", '"', "'; DROP TABLE x; --", "=1+1", "é", "\U0001f600", "\u202eabc", True),
    b"\xff\xfe",
)


def cases(random: Random, project: Path) -> Iterator[Case]:
    """Yield wrong tables, in both formats in turn."""
    number = 0
    for column in ("smiles", "x0", "x2", "outcome", "good", "kind", "patient", "real"):
        for cell in random.sample(ODD_CELLS, 16):
            number += 1
            label = f"{column}: a cell is {cell!r:.40}"
            yield _case(label, partial(with_cell, column, cell, random.randrange(300)), number)
    for name, change in SHAPES.items():
        for _ in range(2):
            number += 1
            yield _case(name, change, number)
    for ending in ("parquet", "csv"):
        place = project.parent / "tables" / ending
        place.mkdir(parents=True, exist_ok=True)
        file = f"table.{ending}"
        _table_as(ending, project, place / file)
        for label, damage in damages(random, place, [file], NUM_DAMAGED // 2):
            play = partial(_play_bytes, ending, damage)
            yield Case("table damaged", label, play)
    for name, text in TEXTS.items():
        yield Case("table damaged", f"a CSV with {name}", partial(_play_text, text))


def _table_as(ending: str, project: Path, target: Path) -> None:
    """Write the project's table in a format."""

    def write() -> bool:
        write_frame(pl.read_parquet(project / "table.parquet"), target)
        return True

    in_fork(write)


def write_frame(frame: pl.DataFrame, target: Path) -> None:
    """Write a table in the format that its name ends in."""
    if target.suffix == ".csv":
        frame.write_csv(target)
    else:
        frame.write_parquet(target)


def with_cell(column: str, cell: Any, row: int, frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table with one other cell; a cell of another type makes the column text or bytes."""
    values = frame[column].to_list()
    values[row] = cell
    try:
        return frame.with_columns(pl.Series(column, values, strict=True))
    except (TypeError, pl.exceptions.PolarsError):
        texts = [None if value is None else str(value) for value in values]
        return frame.with_columns(pl.Series(column, texts))


SHAPES: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "no rows": lambda frame: frame.head(0),
    "one row": lambda frame: frame.head(1),
    "two rows": lambda frame: frame.head(2),
    "one group": lambda frame: frame.with_columns(patient=pl.lit("P")),
    "a group per row": lambda frame: frame.with_columns(
        patient=pl.int_range(pl.len()).cast(pl.String)
    ),
    "a group in two strata": lambda frame: frame.with_columns(real=pl.int_range(pl.len()) % 2 == 0),
    "no column smiles": lambda frame: frame.drop("smiles"),
    "no column x0": lambda frame: frame.drop("x0"),
    "no column outcome": lambda frame: frame.drop("outcome"),
    "no column patient": lambda frame: frame.drop("patient"),
    "no columns": lambda frame: frame.select([]),
    "x0 named X0": lambda frame: frame.rename({"x0": "X0"}),
    "x0 named x0 with a space": lambda frame: frame.rename({"x0": "x0 "}),
    "no labels": lambda frame: frame.with_columns(outcome=pl.lit(None, pl.Float64)),
    "labels that are NaN": lambda frame: frame.with_columns(outcome=pl.lit(math.nan)),
    "labels that are infinite": lambda frame: frame.with_columns(outcome=pl.lit(math.inf)),
    "labels of one class": lambda frame: frame.with_columns(good=pl.lit(True)),
    "labels of three classes": lambda frame: frame.with_columns(good=pl.int_range(pl.len()) % 3),
    "a constant number": lambda frame: frame.with_columns(x0=pl.lit(1.0)),
    "x0 of lists": lambda frame: frame.with_columns(x0=pl.concat_list("x0", "x1")),
    "x0 of structs": lambda frame: frame.with_columns(x0=pl.struct("x0", "x1")),
    "x0 of dates": lambda frame: frame.with_columns(x0=pl.lit("2020-01-01").str.to_date()),
    "x0 of durations": lambda frame: frame.with_columns(
        x0=pl.duration(days=pl.int_range(pl.len()))
    ),
    "x0 of bytes": lambda frame: frame.with_columns(x0=pl.lit(b"\xff")),
    "x0 of text numbers": lambda frame: frame.with_columns(pl.col("x0").cast(pl.String)),
    "x0 of decimals": lambda frame: frame.with_columns(pl.col("x0").cast(pl.Decimal(20, 6))),
    "x0 of huge integers": lambda frame: frame.with_columns(x0=pl.lit(2**62)),
    "x0 of categories": lambda frame: frame.with_columns(
        pl.col("kind").cast(pl.Categorical).alias("x0")
    ),
    "x0 of nulls": lambda frame: frame.with_columns(x0=pl.lit(None)),
    "strings of bytes": lambda frame: frame.with_columns(smiles=pl.lit(b"[*]CC[*]")),
    "strings of numbers": lambda frame: frame.with_columns(smiles=pl.lit(5)),
    "strings of lists": lambda frame: frame.with_columns(smiles=pl.concat_list("smiles")),
    "one string": lambda frame: frame.with_columns(smiles=pl.lit("[*]CC[*]")),
    "kinds of floats": lambda frame: frame.with_columns(kind=pl.col("x0")),
    "kinds of lists": lambda frame: frame.with_columns(kind=pl.concat_list("kind")),
    "a kind per row": lambda frame: frame.with_columns(kind=pl.int_range(pl.len()).cast(pl.String)),
    "3,000 more columns": lambda frame: frame.with_columns(
        *(pl.lit(number).alias(f"more{number}") for number in range(3000))
    ),
    "every row twice": lambda frame: pl.concat([frame, frame]),
    "rows in another order": lambda frame: frame.reverse(),
    "floats of 32 bits": lambda frame: frame.with_columns(pl.col(NUMBERS).cast(pl.Float32)),
}
HEAD = b"patient,real,smiles,kind,x0,x1,x2,outcome,good,gappy\n"
ROW = b"P00,true,[*]CC[*],a,0.1,50,1,1.5,true,10\n"
TEXTS: dict[str, bytes] = {
    "an unclosed quote in its header": b'"' + HEAD + ROW,
    "an unclosed quote in a row": HEAD + b'"' + ROW,
    "a field of 200,000 characters": HEAD + ROW + b"x" * 200_000 + ROW,
    "no header": ROW * 30,
    "a header alone": HEAD,
    "nothing": b"",
    "a column twice": HEAD.replace(b"gappy", b"x0") + ROW * 30,
    "an empty name": HEAD.replace(b"gappy", b"") + ROW * 30,
    "semicolons": (HEAD + ROW * 30).replace(b",", b";"),
    "tabs": (HEAD + ROW * 30).replace(b",", b"\t"),
    "a cell too many in a row": HEAD + ROW * 30 + ROW.replace(b"\n", b",5\n"),
    "a cell too few in a row": HEAD + ROW * 30 + b"P00,true,[*]CC[*]\n",
    "a byte order mark": b"\xef\xbb\xbf" + HEAD + ROW * 30,
    "UTF-16": (HEAD + ROW * 30).decode().encode("utf-16"),
    "Latin-1": HEAD + ROW * 30 + "ä".encode("latin-1") + ROW,
    "zeros": b"\0" * 1000,
    "carriage returns": (HEAD + ROW * 30).replace(b"\n", b"\r"),
    "blank lines": HEAD + ROW * 10 + b"\n\n" + ROW * 10,
    "an archive in it": b"PK\x03\x04" + HEAD + ROW,
    "Parquet's mark": b"PAR1" + HEAD + ROW + b"PAR1",
}


def _case(label: str, change: Callable[[pl.DataFrame], pl.DataFrame], number: int) -> Case:
    ending = "parquet" if number % 2 else "csv"
    return Case("table", f"{label}; {ending}", partial(_play, ending, change))


def write_changed(
    scene: Scene, source: str, change: Callable[[pl.DataFrame], pl.DataFrame], file: str
) -> str:
    """Write changed rows of a finished table; return the file, Parquet for what CSV lacks."""

    def write() -> bool:
        frame = change(pl.read_parquet(scene.finished / source))
        try:
            write_frame(frame, scene / file)
        except pl.exceptions.PolarsError:  # CSV has no lists
            write_frame(frame, (scene / file).with_suffix(".parquet"))
        return True

    in_fork(write)
    return next(scene.folder.glob(f"{Path(file).stem}.*")).name


def _play(ending: str, change: Callable[[pl.DataFrame], pl.DataFrame], scene: Scene) -> Outcome:
    """Build a cache from a changed table."""
    scene.bring(("encoder", "columns.yaml", "small.yaml"))
    return _build(scene, write_changed(scene, "table.parquet", change, f"table.{ending}"))


def _play_bytes(ending: str, damage: Callable[[Path], None], scene: Scene) -> Outcome:
    """Build a cache from a damaged file."""
    scene.bring(("encoder", "columns.yaml", "small.yaml"))
    _table_as(ending, scene.finished, scene / f"table.{ending}")
    damage(scene.folder)
    return _build(scene, f"table.{ending}")


def _play_text(text: bytes, scene: Scene) -> Outcome:
    """Build a cache from a CSV file."""
    scene.bring(("encoder", "columns.yaml", "small.yaml"))
    (scene / "table.csv").write_bytes(text)
    return _build(scene, "table.csv")


def _build(scene: Scene, file: str) -> Outcome:
    done = scene.call(*BUILD, "--set", f"data.path={file}")
    return judged(done, partial(_numbers, scene, file))


def frame_of(path: Path) -> pl.DataFrame:
    """Return a table as polars reads it, of a CSV the text without blank lines."""
    if path.suffix.lower() == ".csv":
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith(codecs.BOM_UTF16_LE) else "utf-8-sig")
        lines = [line for line in text.splitlines(keepends=True) if line.strip()]
        return pl.read_csv(io.StringIO("".join(lines)), infer_schema_length=None)
    return pl.read_parquet(path, glob=False)


def _as_numbers(column: pl.Series) -> np.ndarray:
    """Return a column's numbers; truth values may be written in words."""
    if column.dtype == pl.String:
        column = column.str.to_lowercase().replace({"true": "1", "false": "0"})
    return column.cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy()


def _are_stored(mine: np.ndarray, theirs: np.ndarray, missing: bool) -> bool:
    """Return whether numbers of the cache are those of the table, as fp32 has them."""
    with np.errstate(over="ignore"):
        wanted = theirs.astype(np.float32)
    return bool(np.array_equal(mine, wanted, equal_nan=missing))


def _numbers(scene: Scene, file: str) -> list[str]:
    """Return where the cache's numbers are not those of the table, read once more."""
    path = scene / file
    frame = (
        pl.read_csv(path, infer_schema_length=None)
        if path.suffix == ".csv"
        else pl.read_parquet(path)
    )
    cache = open_cache(scene / "cache.zarr")
    rows = cache.rows()
    lines = [] if len(frame) == len(rows.weight) else [f"{len(rows.weight)} rows of {len(frame)}"]
    if lines:
        return lines
    for index, name in enumerate(NUMBERS):
        theirs = _as_numbers(frame[name])
        if not _are_stored(rows.numeric[:, index], theirs, missing=False):
            lines.append(f"{name} is not the table's")
    for index, target in enumerate(cache.layout.targets):
        theirs = _as_numbers(frame[target.column])
        if not _are_stored(rows.targets[:, index], theirs, missing=True):
            lines.append(f"{target.column} is not the table's")
    texts = cache.strings("polymer").text
    mine = [texts[row] for row in rows.string_id[:, 0]]
    if mine != frame["smiles"].to_list():
        lines.append("strings are not the table's")
    return lines
