"""Rows evaluated at speed have the network's own outputs, in every form and precision, whatever the
blocks; memory does not grow with their number.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from forks import Forks
from torch.nn import functional

from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.model import evaluator as inference
from fusionnet.model.constant import ConstantLinear
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs

TASKS = (
    Task(name="ef", column="y", head=(16, 8)),
    Task(name="opt", column="b", kind="binary", head=(12,)),
    Task(name="aux", column="z", head=(8, 8, 4)),
)
SMALL = ModelConfig(
    adapter_hidden=24,
    adapter_width=16,
    numeric_hidden=8,
    numeric_width=12,
    category_width=4,
    fusion_width=32,
    num_layers=3,
    num_heads=4,
    feedforward=48,
    linear_skip=True,
)
FORMS = ("joint", "modality", "mlp")


def network(
    fusion: str, num_numeric: int = 5, cardinalities: tuple[int, ...] = (3, 2), **changes: int | str
) -> FusionNetwork:
    """Return a network in which no weight, bias or norm is trivial."""
    torch.manual_seed(0)
    parts = ["x", "y", "x", "y", "y"][:num_numeric]
    net = FusionNetwork(
        SMALL.model_copy(update={"fusion": fusion, **changes}),
        TASKS,
        (("a", 10), ("b", 6)),
        num_numeric,
        cardinalities,
        parts,
        numeric_edges=[[-1.0, -0.2, 0.3, 2.0], *[[-0.5, 0.5]] * 4][:num_numeric],
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return net.eval()


def inputs(
    num_rows: int, num_numeric: int = 5, cardinalities: tuple[int, ...] = (3, 2)
) -> tuple[list[torch.Tensor], RowInputs]:
    ids = torch.stack([torch.randint(0, 4, (num_rows,)), torch.randint(0, 3, (num_rows,))], dim=1)
    category = (
        torch.stack([torch.randint(0, size, (num_rows,)) for size in cardinalities], 1)
        if cardinalities
        else torch.zeros(num_rows, 0, dtype=torch.int64)
    )
    vectors, numeric = [torch.randn(4, 10), torch.randn(3, 6)], torch.randn(num_rows, num_numeric)
    return vectors, RowInputs(ids, numeric, category)


def evaluated(
    net: FusionNetwork, dtype: torch.dtype, vectors: list[torch.Tensor], rows: RowInputs
) -> torch.Tensor:
    evaluate = RowEvaluator(net, dtype)
    return evaluate(evaluate.tables(vectors), rows)


@pytest.mark.parametrize("fusion", FORMS)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 1025])
def test_fp32_outputs_are_the_networks(fusion: str, num_rows: int) -> None:
    net, given = network(fusion), inputs(num_rows)
    found = evaluated(net, torch.float32, *given)
    assert found.shape == (num_rows, 3)
    torch.testing.assert_close(found, net(*given), rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
    assert not found.is_inference()  # a policy's loss may multiply by it


@pytest.mark.parametrize("fusion", FORMS)
@pytest.mark.parametrize("member_layers", [0, 1, 2, 3])
def test_all_members_outputs_are_the_networks(fusion: str, member_layers: int) -> None:
    net = network(fusion, members=3, member_layers=member_layers)
    for num_rows in (1, 33):
        given = inputs(num_rows)
        found = evaluated(net, torch.float32, *given)
        assert found.shape == (num_rows, 9)
        torch.testing.assert_close(found, net(*given), rtol=1e-4, atol=1e-4)
        assert (found[:, :3] - found[:, 3:6]).abs().mean() > 0.1


@pytest.mark.parametrize("fusion", FORMS)
@pytest.mark.parametrize("numeric", ["ple", "periodic"])
def test_embedded_numbers_are_the_networks(fusion: str, numeric: str) -> None:
    net, given = network(fusion, numeric=numeric), inputs(33)
    found = evaluated(net, torch.float32, *given)
    torch.testing.assert_close(found, net(*given), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        net.numeric_embedding.weight.zero_()
    assert (net(*given) - found).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", FORMS)
def test_rounding_is_no_worse_than_autocasts(fusion: str) -> None:
    net, given = network(fusion), inputs(1023)
    vectors, rows = given
    exactly = replace(rows, numeric=rows.numeric.double())
    exact = net.double()([table.double() for table in vectors], exactly).float()
    net.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = net(*given).float()
    ours, theirs = (
        (outputs - exact).square().mean(0).sqrt()
        for outputs in (evaluated(net, torch.bfloat16, *given), cast)
    )
    assert (ours <= 1.2 * theirs).all()
    assert (ours > 1e-5).all()  # otherwise the products are not bf16 at all


@pytest.mark.parametrize("fusion", FORMS)
def test_residuals_and_norms_are_fp32_and_products_are_not(
    fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The errors above are those of a narrow network of three layers; rounding a residual in every
    # layer would still pass there.
    net, given = network(fusion), inputs(9)
    evaluate = RowEvaluator(net, torch.bfloat16)
    tables = evaluate.tables(given[0])
    norms, products = [], []
    norm, product = functional.layer_norm, ConstantLinear.__call__
    monkeypatch.setattr(
        functional, "layer_norm", lambda x, *rest: norms.append(x.dtype) or norm(x, *rest)
    )
    monkeypatch.setattr(
        ConstantLinear,
        "__call__",
        lambda self, x: products.append((self.dtype, x.shape[-1])) or product(self, x),
    )
    evaluate(tables, given[1])
    assert len(norms) > SMALL.num_layers
    assert set(norms) == {torch.float32}
    assert {dtype for dtype, _ in products} == {torch.bfloat16}
    assert SMALL.fusion_width in {width for _, width in products}
    assert len(products) > 2 * SMALL.num_layers


@pytest.mark.parametrize("fusion", FORMS)
@pytest.mark.parametrize(("num_numeric", "cardinalities"), [(0, ()), (0, (3, 2)), (5, ())])
def test_parts_may_be_missing(
    fusion: str, num_numeric: int, cardinalities: tuple[int, ...]
) -> None:
    net, given = network(fusion, num_numeric, cardinalities), inputs(33, num_numeric, cardinalities)
    torch.testing.assert_close(
        evaluated(net, torch.float32, *given), net(*given), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("fusion", "num_layers"), [("joint", 0), ("joint", 1), ("mlp", 0), ("modality", 1)]
)
def test_any_number_of_layers(fusion: str, num_layers: int) -> None:
    net, given = network(fusion, num_layers=num_layers), inputs(33)
    torch.testing.assert_close(
        evaluated(net, torch.float32, *given), net(*given), rtol=1e-4, atol=1e-4
    )


def test_blocks_do_not_matter_and_strings_may(monkeypatch: pytest.MonkeyPatch) -> None:
    net, given = network("joint"), inputs(50)
    whole = evaluated(net, torch.float32, *given)
    monkeypatch.setattr(inference, "CPU_BLOCK_ROWS", 7)
    torch.testing.assert_close(evaluated(net, torch.float32, *given), whole, rtol=1e-5, atol=1e-5)
    others = [table.flip(0) for table in given[0]]
    assert (evaluated(net, torch.float32, others, given[1]) - whole).abs().max() > 0.1


def test_products_have_few_sizes_however_many_the_batches_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # oneDNN generates code for each and keeps it: batches of 300 sizes took a gigabyte.
    net, (vectors, rows) = network("joint"), inputs(1100)
    seen: set[int] = set()
    product = ConstantLinear.__call__
    monkeypatch.setattr(
        ConstantLinear, "__call__", lambda self, x: seen.add(len(x)) or product(self, x)
    )
    evaluate = RowEvaluator(net, torch.float32)
    tables = evaluate.tables(vectors)
    whole = evaluate(tables, rows)
    for num_rows in (*range(1, 40), *range(90, 1100, 37)):
        torch.testing.assert_close(
            evaluate(tables, rows.take(slice(num_rows))), whole[:num_rows], rtol=1e-4, atol=1e-4
        )
    assert len(seen) <= 16
    assert max(seen) == inference.CPU_BLOCK_ROWS


def test_strings_are_projected_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (vectors, rows) = network("joint"), inputs(50)
    seen: list[int] = []
    for adapter in net.adapters.values():
        adapter.register_forward_hook(lambda *_: seen.append(-1))
        adapter.second.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    evaluate = RowEvaluator(net, torch.float32)
    tables = evaluate.tables(vectors)
    for _ in range(3):
        evaluate(tables, rows)
    assert seen == [4, 3]
    assert [len(table) for table in tables] == [4, 3, 3, 2]


def test_the_network_is_not_changed() -> None:
    net, given = network("joint"), inputs(9)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluated(net, torch.bfloat16, *given)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


PEAK = """
import sys
from fusionnet import RewardModel
from fusionnet.train.runlog import peak_rss_bytes
model = RewardModel.load(sys.argv[1])
for file in sys.argv[2:]:
    rows = sum(len(part) for part in model.batches(file, reward=True))
    print(rows, peak_rss_bytes() >> 20)
"""


@pytest.mark.dist
def test_memory_does_not_grow_with_the_rows(
    make_run: Callable[..., Path], tiny_experiment: Path, forks: Forks, tmp_path: Path
) -> None:
    # In a process of its own: the peak after 160,000 rows, and after 8 times as many, whose inputs,
    # as the model reads them, take 39 MiB more.
    run = make_run(tmp_path / "run", reward={"terms": [{"task": "ef", "weight": 1.0}]})
    table = pl.read_parquet(tiny_experiment.parent / "table.parquet")
    for name, copies in (("few", 384), ("many", 3072)):
        pl.concat([table] * copies).write_parquet(tmp_path / f"{name}.parquet", row_group_size=8192)
    script = tmp_path / "peak.py"
    script.write_text(PEAK)
    done = forks.run(script, run, tmp_path / "few.parquet", tmp_path / "many.parquet")
    (few, before), (many, after) = (map(int, line.split()) for line in done.out.splitlines())
    assert (few, many) == (161_280, 1_290_240)
    assert after - before < 24
