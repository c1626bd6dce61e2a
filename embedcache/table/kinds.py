"""What files a table may be, for who asks without reading one: this imports no polars."""

from pathlib import Path

from embedcache.errors import TableError

KINDS = (
    "a file that ends in .parquet, .csv, .tsv (also .gz, .bz2, .xz, .zst), .arrow, .feather or"
    " .xlsx, or a folder of Parquet files"
)


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder and the folders in it, sorted."""
    found = [file.relative_to(folder) for file in folder.rglob("*.parquet")]
    return [
        folder / file
        for file in sorted(found)
        if not any(part.startswith((".", "_")) for part in file.parts)
    ]


def no_table(file: Path, named: str = "data.path") -> TableError:
    """Return the error on a file that there is not; `named` is the key or flag that names it."""
    place = "" if file.is_absolute() else f", seen from the folder {Path.cwd()}"
    return TableError(f"there is no table {file}{place}; {named} must name {KINDS}")
