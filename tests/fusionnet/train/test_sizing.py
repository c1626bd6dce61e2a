"""A micro-batch's size on a GPU comes from a count of what autograd keeps: the count is held
against what autograd does keep.
"""

from types import SimpleNamespace

import pytest
import torch

from embedcache.cache.layout import Layout
from embedcache.errors import ConfigError
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.config.train import TrainConfig
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs
from fusionnet.train.sizing import (
    COMPILE_STEPS,
    activation_bytes,
    is_compiled,
    micro_batches_per_rank,
    rows_that_fit,
    set_threads,
)
from fusionnet.train.step import step_seed
from fusionnet.train.world import World

TASKS = (
    Task(name="ef", column="y", head=(256, 64)),
    Task(name="opt", column="b", kind="binary"),
    Task(name="aux", column="z"),
)
PARTS = ["patient"] * 6 + ["tissue"] * 5 + ["hydrogel"] * 3 + ["treatment"] * 5
NUM_ROWS, WIDTH = 128, 600


def kept_bytes(network: FusionNetwork, num_strings: int, width: int = WIDTH) -> int:
    """Return the bytes that a forward pass leaves for the backward pass, each tensor once, the
    weights not counted.
    """
    weights = {
        tensor.untyped_storage().data_ptr()
        for tensor in [*network.parameters(), *network.buffers()]
    }
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # the tensor lives on, so that no other takes its place
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    vectors = [torch.randn(4, width) for _ in range(num_strings)]
    ids = torch.randint(0, 4, (NUM_ROWS, num_strings))
    rows = RowInputs(ids, torch.randn(NUM_ROWS, len(PARTS)), torch.randint(0, 8, (NUM_ROWS, 1)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(vectors, rows)
    assert outputs.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["joint", "modality", "mlp"])
@pytest.mark.parametrize(
    ("num_strings", "num_features", "members"), [(1, 0, 1), (3, 0, 1), (2, 50, 1), (1, 0, 4)]
)
def test_the_count_bounds_what_autograd_keeps_of_a_row(
    fusion: str, num_strings: int, num_features: int, members: int
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(fusion=fusion, members=members)
    strings = tuple((f"s{k}", WIDTH) for k in range(num_strings))
    features = {name: num_features for name, _ in strings}
    network = FusionNetwork(
        config, TASKS, strings, len(PARTS), (8,), PARTS, string_features=features
    ).train()
    layout = Layout.model_construct(
        strings=[SimpleNamespace(width=WIDTH, features=[None] * num_features) for _ in strings],
        numeric=[SimpleNamespace(feature_group=part) for part in PARTS],
        categories=[("kind", tuple("abcdefgh"))],
    )
    counted, found = (
        activation_bytes(config, TASKS, layout),
        kept_bytes(network, num_strings, WIDTH + num_features) / NUM_ROWS,
    )
    assert counted / 2 <= found <= counted, (
        f"{found:,.0f} bytes a row are kept, {counted:,} are counted"
    )


@pytest.mark.parametrize("numeric", ["ple", "periodic"])
def test_embeddings_of_numbers_are_counted(numeric: str) -> None:
    config = ModelConfig(numeric=numeric, num_layers=0, fusion="mlp")
    plain = config.model_copy(update={"numeric": "linear"})
    edges = [[float(k) for k in range(config.numeric_embedding.bins + 1)]] * len(PARTS)
    layout = Layout.model_construct(
        strings=(),
        numeric=[SimpleNamespace(feature_group=part) for part in PARTS],
        categories=[("kind", tuple("abcdefgh"))],
    )
    kept, counted = (
        [measure(each) for each in (config, plain)]
        for measure in (
            lambda each: kept_bytes(
                FusionNetwork(each, TASKS, (), len(PARTS), (8,), PARTS, numeric_edges=edges), 0
            ),
            lambda each: NUM_ROWS * activation_bytes(each, TASKS, layout),
        )
    )
    found, expected = kept[0] - kept[1], counted[0] - counted[1]
    assert expected / 2 <= found <= expected


def test_a_micro_batch_is_a_power_of_two_that_fits() -> None:
    assert rows_that_fit(80 << 30, 200_000) == 1 << 17
    assert rows_that_fit(2 * 1024 * 200_000, 200_000) == 1024
    assert rows_that_fit(2 * 1024 * 200_000 - 2, 200_000) == 512
    assert rows_that_fit(1, 200_000) == 1


@pytest.mark.parametrize(
    ("asked", "on_cpu", "short", "long"),
    [
        ("auto", False, False, True),
        (True, True, True, True),
        (False, False, False, False),
    ],
)
def test_a_network_is_compiled_on_gpus_in_long_runs_unless_asked_otherwise(
    asked: object, on_cpu: bool, short: bool, long: bool
) -> None:
    train = TrainConfig(compile=asked)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert is_compiled(train, cpu, COMPILE_STEPS) is on_cpu
    assert is_compiled(train, gpu, COMPILE_STEPS - 1) is short
    assert is_compiled(train, gpu, COMPILE_STEPS) is long


class Ranks(World):
    """So many ranks on CPUs, of which none is started."""

    def __init__(self, size: int) -> None:
        self.rank, self.size, self.local_size, self.device = 0, size, size, torch.device("cpu")


def test_micro_batches_are_cut_from_the_rows_that_there_are() -> None:
    layout = Layout.model_construct(num_rows=300)

    def count(batch_rows: int, size: int) -> int:
        train = TrainConfig(batch_rows=batch_rows, micro_batch_rows=100)
        return micro_batches_per_rank(train, ModelConfig(), TASKS, layout, Ranks(size), 300)

    assert [count(rows, 1) for rows in (10, 100, 250, 300, 10**9)] == [1, 1, 3, 3, 3]
    assert [count(rows, 2) for rows in (10, 300, 10**9)] == [1, 2, 2]


def test_more_threads_than_cores_can_serve_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    set_threads(12, Ranks(1))
    with pytest.raises(ConfigError, match="is 13, this machine has 3 cores; set at most 12"):
        set_threads(13, Ranks(1))
    assert asked == [12]


def test_every_seed_gives_every_step_its_own() -> None:
    seeds = [
        step_seed(seed, step, stream)
        for seed in (0, 1, 2**32 - 1)
        for step in (0, 1, 10**9)
        for stream in (0, 1, 512)
    ]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.manual_seed(seed)
    assert step_seed(7, 3, 1) == (7 * 1_000_003 + 3) * 65_537 + 1
