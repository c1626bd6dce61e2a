"""DeepSpeed's config is derived from ours; a user's file tunes it and cannot contradict it; what
DeepSpeed cannot do is refused by name.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator

from embedcache.errors import ConfigError
from embedcache.schema import parse_config
from fusionnet.config.train import OptimConfig, TrainConfig
from fusionnet.train.dsconfig import check_keys, deepspeed_config
from fusionnet.train.engine import check_precision, parsed_config

OPTIM = OptimConfig(clip=0.5, lr=0.002)


def derived(tmp_path: Path, theirs: Any = None, **train: Any) -> dict[str, Any]:
    """Return the config of 2 ranks x 4 micro-batches of a step of 1,000 rows."""
    if theirs is not None:
        (tmp_path / "ds.json").write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
        train["deepspeed_config"] = str(tmp_path / "ds.json")
    return deepspeed_config(
        TrainConfig(batch_rows=1000, **train),
        OPTIM,
        world_size=2,
        on_gpu=False,
        num_micro_batches=4,
    )


def test_every_number_is_ours(tmp_path: Path) -> None:
    found = derived(tmp_path, zero_stage=1, offload="cpu", precision="bf16")
    assert (
        found["train_micro_batch_size_per_gpu"],
        found["gradient_accumulation_steps"],
        found["gradient_clipping"],
    ) == (125, 4, 0.5)
    assert found["zero_optimization"]["stage"] == 1
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["fp16"]["enabled"] is False
    assert "bf16" not in found  # torch.autocast, not DeepSpeed's
    assert "offload_optimizer" not in derived(tmp_path)["zero_optimization"]


@pytest.mark.parametrize(
    ("train", "num_ranks", "stage"),
    [
        ({}, 1, 0),
        ({}, 2, 2),
        ({"precision": "bf16"}, 1, 0),
        ({"precision": "fp16"}, 1, 2),
        ({"offload": "cpu"}, 1, 2),
        ({"zero_stage": 1}, 1, 1),
        ({"zero_stage": 2}, 1, 2),
        ({"zero_stage": 0}, 3, 0),
    ],
)
def test_a_rank_that_is_alone_partitions_nothing_unless_told_or_forced_to(
    train: dict[str, Any], num_ranks: int, stage: int
) -> None:
    found = deepspeed_config(
        TrainConfig(**train), OPTIM, num_ranks, on_gpu=False, num_micro_batches=1
    )
    assert found["zero_optimization"]["stage"] == stage


def test_a_file_tunes_what_decides_nothing(tmp_path: Path) -> None:
    theirs = {
        "zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": True},
        "wall_clock_breakdown": True,
        "fp16": {"loss_scale_window": 50},
    }
    found, plain = derived(tmp_path, theirs), derived(tmp_path)
    assert found["zero_optimization"] == {
        **plain["zero_optimization"],
        "reduce_bucket_size": 1000,
        "overlap_comm": True,
    }
    assert found["fp16"] == {**plain["fp16"], "loss_scale_window": 50}
    assert found == {
        **plain,
        "zero_optimization": found["zero_optimization"],
        "fp16": found["fp16"],
        "wall_clock_breakdown": True,
    }


def test_auto_and_equal_values_mean_ours(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": 1000,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 4,
        "gradient_clipping": "auto",
        "bf16": {"enabled": True},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "none"},
            "reduce_bucket_size": "auto",
        },
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
        "scheduler": {"type": "auto"},
    }
    found, plain = derived(tmp_path, theirs, precision="bf16"), derived(tmp_path, precision="bf16")
    assert found == {
        **plain,
        "zero_optimization": {
            **plain["zero_optimization"],
            "offload_optimizer": {"device": "none"},
        },
        "scheduler": {},
    }


def test_all_contradictions_are_named_at_once_with_both_values(tmp_path: Path) -> None:
    theirs = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": True},
        "optimizer": {"type": "Lamb", "params": {"lr": 0.1}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}},
    }
    with pytest.raises(ConfigError) as error:
        derived(tmp_path, theirs)
    for line in (
        "train_batch_size: 64 in the file, 1000 here (train.batch_rows)",
        "train_micro_batch_size_per_gpu: 8 in the file, 125 here",
        "gradient_accumulation_steps: 2 in the file, 4 here",
        "gradient_clipping: 1.0 in the file, 0.5 here (optim.clip)",
        "fp16.enabled: True in the file, False here (train.precision)",
        "optimizer.type: Lamb in the file, AdamW here",
        "optimizer.params.lr: 0.1 in the file, 0.002 here (optim.lr)",
        "scheduler.type: WarmupLR in the file",
        "zero_optimization.stage: 3 in the file, 2 here (train.zero_stage)",
        "zero_optimization.offload_optimizer.device: nvme in the file, none here (train.offload)",
    ):
        assert line in str(error.value)
    assert str(error.value).count("in the file") == 10


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    for text, message in (
        ("{", "is not valid JSON"),
        ("[]", "must hold an object"),
        ('{"a":' * 30 + "1" + "}" * 30, "nested deeper than 20 levels"),
        ('{"a":' * 100_000, "nested deeper than 20 levels"),
        (f'{{"steps_per_print": {"9" * 5000}}}', "is not valid JSON"),
    ):
        with pytest.raises(ConfigError, match=message):
            derived(tmp_path, text)
    with pytest.raises(ConfigError, match="is no file"):
        derived(tmp_path, deepspeed_config=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation: did you mean 'zero_optimization'"),
        ({"qqq": 1, "wall_clock_brakdown": True}, "(?s)qqq: no such key.*'wall_clock_breakdown'"),
        ({"zero_optimization": {"reduce_buckett": 5}}, "(?s)cannot use .*reduce_buckett"),
        ({"zero_optimization": {"reduce_bucket_size": "x"}}, "reduce_bucket_size"),
        ({"tensorboard": 5}, "(?s)cannot use .*tensorboard"),
        ({"aio": 5}, "cannot use"),
        ({"checkpoint": {"tag_validation": "x"}}, "tag_validation value of X"),
        ({"elasticity": {"enabled": True}}, "Elastic training has been removed"),
    ],
)
def test_what_deepspeed_does_not_know_is_refused(
    tmp_path: Path, theirs: dict[str, Any], message: str
) -> None:
    config = derived(tmp_path, theirs)
    with pytest.raises(ConfigError, match=message):
        check_keys(config, "ds.json", parsed_config)


def test_what_deepspeed_knows_is_taken(tmp_path: Path, repository: Path) -> None:
    text = (repository / "configs" / "launch" / "deepspeed.json").read_text()
    more = {
        "wall_clock_breakdown": True,
        "flops_profiler": {"enabled": False},
        "comms_logger": {"enabled": False},
        "tensorboard": {"enabled": False},
        "communication_data_type": "fp32",
        "activation_checkpointing": {"partition_activations": False},
    }
    for theirs in (text, more, {}):
        check_keys(derived(tmp_path, theirs), "ds.json", parsed_config)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"zero_stage": 3}, "partitions the weights"),
        ({"zero_stage": 0, "precision": "fp16"}, "needs zero_stage 1 or 2"),
        ({"zero_stage": 0, "offload": "cpu"}, "needs zero_stage 1 or 2"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"offload": "nvme"}, "offload"),
    ],
)
def test_what_does_not_work_is_refused_when_the_config_is_read(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(TrainConfig, values, "train")


@pytest.mark.parametrize("supported", [True, False])
def test_fp16_is_refused_where_the_machine_lacks_it(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda _: supported)
    check_precision("bf16", "cpu")
    if supported:
        check_precision("fp16", "cpu")
    else:
        with pytest.raises(
            ConfigError, match="fp16 is not supported on this machine's cpu; use bf16 or fp32"
        ):
            check_precision("fp16", "cpu")
