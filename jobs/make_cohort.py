"""Make the synthetic reference cohort, a table of the shape that Stage 1 was written for.

Its outcomes come from a stated model (jobs/cohort/outcomes.py).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source
from tqdm import tqdm

from embedcache.errors import UserError
from embedcache.files import atomic_write
from embedcache.system import explained
from fusionnet.commands.command import run_job
from jobs.cohort.generate import cohort_frames


def main() -> None:
    """Write the cohort, and the noise-free outcomes beside it where asked."""
    arguments = parse_arguments()
    started = time.perf_counter()
    for path, with_noise in ((arguments.out, True), (arguments.noise_free, False)):
        if path is not None:
            write_table(
                path,
                arguments.format or path.suffix.lstrip("."),
                partial(frames, arguments, with_noise),
            )
    table = scan(arguments.out)
    facts = table.select(
        rows=pl.len(),
        patients=pl.col("patient_id").n_unique(),
        real=pl.col("patient_id").filter("is_real").n_unique(),
        strings=pl.col("polymer_SMILES").n_unique(),
        ef=pl.col("delta_EF_pct").mean(),
        sd=pl.col("delta_EF_pct").std(),
        rate=pl.col("is_optimal").mean(),
    ).collect(engine="streaming")
    row = facts.row(0, named=True)
    print(
        f"{arguments.out}: {row['rows']:,} rows, {row['patients']} patients ({row['real']} labelled"
        f" real), {row['strings']} distinct PSMILES, {arguments.out.stat().st_size / 1e6:.1f} MB,"
        f" {time.perf_counter() - started:.1f} s\ndelta_EF_pct {row['ef']:.2f} +- {row['sd']:.2f}"
        f" %, is_optimal {100 * row['rate']:.1f} %. The cohort is synthetic: patients, properties"
        " and outcomes come from a stated model, not from measurements."
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the table to write, .parquet or .csv",
    )
    parser.add_argument(
        "--patients", type=positive, default=60, help="one in six is labelled real (60)"
    )
    parser.add_argument(
        "--rows-per-patient",
        type=positive,
        default=7458,
        help="spread evenly over the 24 hydrogels (7458)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--noise-free",
        type=Path,
        metavar="FILE",
        help="also write the noise-free outcomes of the same rows, which training never reads",
    )
    parser.add_argument("--format", choices=["parquet", "csv"], help="unset: by the file's ending")
    arguments = parser.parse_args()
    for path in (arguments.out, arguments.noise_free):
        if (
            path is not None
            and arguments.format is None
            and path.suffix not in (".parquet", ".csv")
        ):
            parser.error(f"{path} ends in neither .parquet nor .csv; give --format")
    if arguments.seed < 0:
        parser.error("--seed must not be negative")
    return arguments


def positive(text: str) -> int:
    """Return a positive integer from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {value}")
    return value


def frames(arguments: argparse.Namespace, with_noise: bool) -> Iterator[pl.DataFrame]:
    """Yield the cohort patient by patient, with a progress bar."""
    made = cohort_frames(arguments.patients, arguments.rows_per_patient, arguments.seed, with_noise)
    with tqdm(
        total=arguments.patients * arguments.rows_per_patient,
        unit="rows",
        unit_scale=True,
        disable=None,
    ) as bar:
        for frame in made:
            yield frame
            bar.update(len(frame))


def write_table(path: Path, kind: str, make_frames: Callable[[], Iterator[pl.DataFrame]]) -> None:
    """Stream frames into a Parquet or CSV file, published by rename."""
    schema = next(make_frames()).schema
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lazy = register_io_source(
            lambda with_columns, predicate, n_rows, batch_size: make_frames(), schema=schema
        )
        with atomic_write(path) as partial:
            if kind == "csv":
                lazy.sink_csv(partial)
            else:
                lazy.sink_parquet(partial, compression="zstd")
    except OSError as error:
        raise UserError(explained(error)) from None


def scan(path: Path) -> pl.LazyFrame:
    """Return the written table, lazily."""
    return pl.scan_csv(path) if path.suffix == ".csv" else pl.scan_parquet(path)


if __name__ == "__main__":
    run_job(main)
