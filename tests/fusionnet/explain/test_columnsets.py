"""What belongs together is shuffled together: one-hot columns, groups, a whole patient, all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedcache.cache.layout import Layout, RowBlock
from embedcache.cache.reader import open_cache
from embedcache.config.columns import NumericColumn, indicator_of
from fusionnet.explain.columnsets import ColumnSet, column_sets, one_hot_sets
from fusionnet.explain.permutation import shuffled
from fusionnet.rows.tensors import RowInputs


def layout_of(*groups: str) -> Layout:
    numeric = tuple(
        NumericColumn(column=f"x{number}", feature_group=group)
        for number, group in enumerate(groups)
    )
    return Layout(
        num_rows=0, strings=(), numeric=numeric, categories=(), targets=(), absent_targets=(),
        groups=(), strata=(), facets=(),
    )  # fmt: skip


@pytest.fixture
def rows(tiny_experiment: Path) -> RowBlock:
    return open_cache(tiny_experiment.parent / "cache.zarr").rows()


@pytest.fixture
def layout(tiny_experiment: Path) -> Layout:
    return open_cache(tiny_experiment.parent / "cache.zarr").layout


ONE_HOT = np.eye(3, dtype=np.float32)[[0, 2, 1, 1, 0, 2, 2]]
FLAG = np.array([[0, 1, 1, 0, 1, 0, 1]], dtype=np.float32).T


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ([ONE_HOT], [(0, 1, 2)]),
        ([FLAG, ONE_HOT], [(1, 2, 3)]),
        ([ONE_HOT, FLAG], [(0, 1, 2)]),
        ([ONE_HOT, FLAG, 1 - FLAG], [(0, 1, 2), (3, 4)]),
        ([ONE_HOT[:, :2], FLAG], []),  # rows without any
        ([FLAG, np.full_like(FLAG, 2)], []),
        ([2 * ONE_HOT], []),
        ([np.where(ONE_HOT == 1, np.float32("nan"), ONE_HOT)], []),
        ([ONE_HOT[:0]], []),
    ],
    ids=str,
)
def test_one_hot_columns_are_found_among_flags(
    columns: list[np.ndarray], wanted: list[tuple[int, ...]]
) -> None:
    table = np.concatenate(columns, axis=1)
    assert one_hot_sets(layout_of(*["a"] * table.shape[1]), table) == wanted


def test_one_hot_columns_of_two_feature_groups_are_none() -> None:
    assert one_hot_sets(layout_of("a", "a", "b"), ONE_HOT) == []


def test_shuffled_one_hot_columns_stay_one_hot_and_nothing_else_moves() -> None:
    table = torch.from_numpy(np.concatenate([ONE_HOT, FLAG], axis=1))
    nothing = torch.zeros(len(table), 1, dtype=torch.int64)
    inputs = RowInputs(nothing, table, nothing)
    order = torch.tensor([3, 0, 6, 1, 2, 5, 4])
    moved = shuffled(inputs, ColumnSet("", "one-hot", numeric=(0, 1, 2)), order).numeric
    assert (moved[:, :3].sum(1) == 1).all()
    assert torch.equal(moved[:, :3], table[order][:, :3])
    assert torch.equal(moved[:, 3:], table[:, 3:])
    assert torch.equal(inputs.numeric, torch.from_numpy(np.concatenate([ONE_HOT, FLAG], axis=1)))


def test_every_column_is_in_one_single_set_and_all_are_in_the_last(
    layout: Layout, rows: RowBlock
) -> None:
    sets = column_sets(layout, rows, "patient")
    kinds = [each.kind for each in sets]
    assert kinds == ["string", "string", *["number"] * 3, "category", "group of features", "all"]
    assert [each.names(layout) for each in sets[:6]] == [
        ("smiles",), ("other",), ("x0",), ("x1",), ("x2",), ("kind",),
    ]  # fmt: skip
    assert sets[-2].names(layout) == ("x1", "x2")
    assert sets[-1].names(layout) == ("smiles", "other", "x0", "x1", "x2", "kind")


def test_what_is_constant_in_a_group_is_a_set_of_its_own(layout: Layout, rows: RowBlock) -> None:
    own = rows.numeric.copy()
    own[:, 0], own[:, 2] = rows.group, np.where(rows.group == 3, np.nan, 1.5)
    constant = replace(rows, numeric=own, category=rows.group[:, None] % 2)
    (found,) = (
        each for each in column_sets(layout, constant, "patient") if each.kind == "constant"
    )
    assert found.names(layout) == ("x0", "x2", "kind")
    assert "patient" in found.name
    assert all(each.kind != "constant" for each in column_sets(layout, constant, None))


def test_a_number_goes_with_what_says_that_it_was_missing() -> None:
    column = NumericColumn(column="x", if_null="indicator")
    layout = layout_of("a").model_copy(update={"numeric": (column, indicator_of(column))})
    numeric = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]], dtype=np.float32)
    nothing = np.zeros((3, 0), dtype=np.int32)
    block = RowBlock(
        nothing, nothing.astype(np.int64), numeric, nothing, numeric[:, :0], numeric[:, 0],
        *[np.zeros(3, dtype=kind) for kind in (np.int32, np.int32, np.int8, np.int16)], nothing,
    )  # fmt: skip
    first, *_ = column_sets(layout, block, None)
    assert first == ColumnSet("x", "number", numeric=(0, 1))
