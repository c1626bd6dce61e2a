"""Frames of every kind become the same inputs, by the same checks as the table that the run was
trained on.
"""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embedcache.cache.reader import open_cache
from embedcache.errors import EncoderError, TableError
from fusionnet.rows.tensors import RowInputs, joined
from fusionnet.trained.encoder import encode_new
from fusionnet.trained.frames import frame_blocks, open_frame
from fusionnet.trained.run import TrainedRun, load_run

NAMES = [field.name for field in fields(RowInputs)]


@pytest.fixture(scope="module")
def trained(made_run: Path) -> TrainedRun:
    return load_run(made_run)


@pytest.fixture(scope="module")
def frame(tiny_experiment: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_experiment.parent / "table.parquet")


def inputs_of(run: TrainedRun, frame: object, block_rows: int = 1000) -> RowInputs:
    return joined([block.inputs for block in frame_blocks(run, open_frame(run, frame), block_rows)])


def assert_same(found: RowInputs, wanted: RowInputs) -> None:
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0)


def test_inputs_equal_the_rows_of_the_cache(
    trained: TrainedRun, frame: pl.DataFrame, tiny_experiment: Path
) -> None:
    rows = open_cache(tiny_experiment.parent / "cache.zarr").rows()
    found = inputs_of(trained, frame)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(rows, name))


@pytest.mark.parametrize("block_rows", [1, 7, 420])
def test_blocks_of_any_size_hold_the_same_rows_in_order(
    block_rows: int, trained: TrainedRun, frame: pl.DataFrame
) -> None:
    assert_same(inputs_of(trained, frame, block_rows), inputs_of(trained, frame))


def test_frames_and_files_of_every_kind_are_the_same(
    trained: TrainedRun, frame: pl.DataFrame, tmp_path: Path
) -> None:
    wanted = inputs_of(trained, frame)
    frame.write_csv(tmp_path / "rows.csv")
    frame.write_parquet(tmp_path / "rows.parquet")
    bare = frame.drop("outcome", "good", "gappy", "patient", "real").reverse().reverse()
    categorical = frame.with_columns(pl.col("smiles", "kind").cast(pl.Categorical))
    for same in (
        frame.lazy(),
        bare,
        categorical,
        tmp_path / "rows.parquet",
        str(tmp_path / "rows.csv"),
    ):
        assert_same(inputs_of(trained, same), wanted)


def test_columns_come_along_row_by_row_whatever_their_names(
    trained: TrainedRun, frame: pl.DataFrame
) -> None:
    # Canonical columns are called split, group, string:polymer; a user's column of that name must
    # neither be coded nor replace one.
    awkward = frame.with_columns(
        pl.int_range(pl.len()).alias("split"),
        pl.col("patient").alias("group"),
        pl.lit("x").alias("string:polymer"),
    )
    blocks = list(frame_blocks(trained, open_frame(trained, awkward), 50, keep=awkward.lazy()))
    assert pl.concat([block.kept for block in blocks]).equals(awkward)
    assert_same(joined([block.inputs for block in blocks]), inputs_of(trained, frame))
    for block in blocks:
        np.testing.assert_array_equal(
            block.inputs.numeric[:, 0].numpy(), block.kept["x0"].to_numpy().astype(np.float32)
        )


def test_all_violations_at_once(trained: TrainedRun, frame: pl.DataFrame) -> None:
    broken = frame.with_columns(
        kind=pl.lit("z"), x1=pl.lit(1e6), smiles=pl.lit("[*]CC"), x0=pl.lit(float("nan"))
    ).drop("x2")
    with pytest.raises(TableError) as error:
        open_frame(trained, broken)
    for part in (
        "unknown category 'z'",
        "above 100",
        "has 1 endpoint",
        "'x0': null or NaN",
        "'x2' is missing",
    ):
        assert part in str(error.value)


def test_new_strings_of_fragments_are_refused_where_their_dot_is_unknown(
    trained: TrainedRun,
) -> None:
    """polyBERT's tokenizer would read both parts as one chain."""
    strings = tuple(
        column.model_copy(update={"fragments": True}) for column in trained.data.strings
    )
    run = replace(trained, data=trained.data.model_copy(update={"strings": strings}))
    with pytest.raises(EncoderError, match=r"does not know the '\.' that parts the fragments"):
        encode_new(run, "polymer", ["[*]CC[*].[Li+]"])


def test_what_is_no_frame_is_refused(
    trained: TrainedRun, frame: pl.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match="expected a polars or pandas frame"):
        open_frame(trained, [1, 2])
    with pytest.raises(TableError, match="there is no table"):
        open_frame(trained, tmp_path / "none.csv")
    with pytest.raises(TableError, match="cannot be evaluated"):
        open_frame(trained, frame.lazy().select("nothing"))
    with pytest.raises(TableError, match=r"cannot be evaluated.*none\.parquet"):
        open_frame(trained, pl.scan_parquet(tmp_path / "none.parquet"))


def test_pandas_frames(trained: TrainedRun, frame: pl.DataFrame) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; it is no dependency")
    table = pandas.DataFrame({name: frame[name].to_list() for name in frame.columns})
    table["anything"] = [object() for _ in range(len(table))]  # of a column that nobody reads
    wanted = inputs_of(trained, frame)
    assert_same(inputs_of(trained, table), wanted)
    assert_same(
        inputs_of(
            trained, table.set_index("patient").astype({"kind": "category", "x1": "Float64"})
        ),
        wanted,
    )
    # pandas writes a missing number as NaN
    with pytest.raises(TableError, match="'x0': null or NaN: 1 row"):
        open_frame(trained, table.assign(x0=table["x0"].where(table.index != 3)))
    with pytest.raises(TableError, match="more than once"):
        open_frame(trained, pandas.concat([table, table[["x0"]]], axis=1))
    with pytest.raises(TableError, match="'x0' of the frame mixes types"):
        open_frame(trained, table.astype({"x0": object}).assign(x0=["a", *table["x0"][1:]]))
