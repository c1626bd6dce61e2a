"""A user's way with encoders of the published architectures: build, train, prove, export, read."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from architectures import REAL, write_architecture
from shared_fixtures import tiny_config, tiny_frame
from transformers import AutoModel

from embedcache.cache.reader import open_cache
from fusionnet.experiment import load_experiment
from fusionnet.trained.export import export_run
from fusionnet.trained.run import load_run
from fusionnet.workflow.building import build_experiment
from fusionnet.workflow.training import train_experiment

MODES: dict[str, dict[str, Any]] = {
    "per_step": {},
    "encoded twice": {"memory_budget_gib": 1e-9},
    "prefix": {"mode": "prefix", "lora": {"first_layer": 1}},
}
RUNS = [("bert", "per_step"), ("roberta", "prefix"), ("deberta with relative positions", "prefix")]
RUNS += [("modernbert", "per_step"), ("modernbert", "prefix")]
RUNS += [("albert", "per_step"), ("albert", "encoded twice")]  # one adapter in all passes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), RUNS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21
def test_a_run_is_proven_and_its_adapter_gives_its_vectors_in_peft(
    name: str, mode: str, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    settings = REAL[name].settings
    folder = write_architecture(tmp_path / "encoder", tokenizer_of=tiny_encoder_folder, **settings)
    tiny_frame().write_parquet(tmp_path / "table.parquet")
    wanted = tiny_config(tmp_path, folder)
    wanted["encoder"] |= {"pooling": "mean", **MODES[mode]}
    wanted["train"] |= {"prove": 2, "precision": "fp32"}
    wanted["optim"] = {"lr_encoder": 0.01, "warmup_epochs": 0}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(wanted))
    experiment = load_experiment(file)
    build_experiment(experiment)
    train_experiment(experiment, str(file), verbose=False)  # raises where a proof fails
    run = load_run(tmp_path / "run", "best")
    assert (run.folder / "tiny_proof.json").is_file()
    export_run(run.folder)
    tokens = open_cache(experiment.cache.path).strings("polymer").tokens
    ids, mask = tokens.padded()
    base = AutoModel.from_pretrained(folder).eval()
    words = {"input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        plain = base(**words).last_hidden_state
        theirs = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()
        hidden = theirs(**words).last_hidden_state
    pooled = [(each * mask.unsqueeze(2)).sum(1) / mask.sum(1, True) for each in (hidden, plain)]
    torch.testing.assert_close(pooled[0], run.vectors["polymer"], rtol=1e-4, atol=1e-4)
    assert (pooled[0] - pooled[1]).abs().max() > 0.01
