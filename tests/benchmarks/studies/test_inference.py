"""The operations per row that the roofline divides by are those that torch counts; the run that is
timed is one that evaluation reads.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.studies.inference import write_run
from benchmarks.studies.roofline import flop_per_row
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.experiment import load_experiment
from fusionnet.model import constant
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.run import load_run


def test_the_operations_of_a_row_are_those_that_torch_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the counter does not know oneDNN's operator
    monkeypatch.setattr(constant, "can_lay_out", lambda weight: False)
    tasks = (
        Task(name="ef", column="y", head=(16, 8)),
        Task(name="opt", column="b", kind="binary", head=(12,)),
    )
    sizes = {
        "adapter_width": 16,
        "numeric_hidden": 8,
        "numeric_width": 12,
        "category_width": 4,
        "fusion_width": 32,
        "num_layers": 3,
        "num_heads": 4,
    }
    model = ModelConfig(**sizes, feedforward=48, linear_skip=True)
    network = FusionNetwork(model, tasks, (("a", 10),), 5, (3,)).eval()
    evaluate = RowEvaluator(network, torch.float32)
    tables = evaluate.tables([torch.randn(4, 10)])
    zeros = torch.zeros(8, 1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        evaluate(tables, RowInputs(zeros, torch.randn(8, 5), zeros))
    assert (
        flop_per_row(network, SimpleNamespace(model=model, tasks=tasks))
        == counter.get_total_flops() / 8
    )


def test_the_run_that_is_timed_is_one(tiny_experiment: Path, tmp_path: Path) -> None:
    overrides = ["encoder.mode=frozen", "train.precision=fp32", "run.name=stage1"]
    write_run(tmp_path / "run", load_experiment(tiny_experiment, overrides))
    assert load_run(tmp_path / "run").epoch == 1
