"""What a run leaves for other tools: the LoRA adapter in PEFT's format, plain safetensors weights, the tokenizer, a model card."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from embedcache.lora import save_adapter
from embedcache.tokens import load_tokenizer
from fusionnet.assemble import encoder_of_column
from fusionnet.run import TrainedRun, load_run, trained_encoder


def export_run(folder: Path) -> None:
    """Write adapter/, tokenizer/, network.safetensors and README.md (the model card) from the run's best checkpoint."""
    run = load_run(folder, "best")
    names = [spec.name for spec in run.layout.strings]
    for name in dict.fromkeys(encoder_of_column(run.recipe, names)):
        suffix = "" if len(set(encoder_of_column(run.recipe, names))) == 1 else f"_{name}"
        if run.recipe.mode != "frozen":
            _replace(folder / f"adapter{suffix}", lambda target, name=name: save_adapter(trained_encoder(run, name), target))
        config = run.recipe.encoders[names.index(name)]
        _replace(folder / f"tokenizer{suffix}", lambda target, config=config: load_tokenizer(config).save_pretrained(target))
    weights = {key: value.detach().contiguous().cpu() for key, value in run.model.state_dict().items()}
    partial = folder / "network.safetensors.partial"
    save_file(weights, partial)
    partial.replace(folder / "network.safetensors")
    (folder / "README.md").write_text(model_card(run), encoding="utf-8")


def model_card(run: TrainedRun) -> str:
    """Return the run's model card in Markdown."""
    record = min(run.records, key=lambda each: each["val_loss"])
    lines = [
        f"# {run.name}",
        "",
        f"Predicts {', '.join(task.column for task in run.tasks)} from {', '.join(spec.column for spec in run.layout.strings)} "
        f"and {len(run.layout.numeric)} numeric features. Trained on {run.data.path} ({run.layout.num_rows:,} rows), best epoch {record['epoch']}.",
        "",
    ]
    if run.standin:
        lines += ["**The encoder is a stand-in without published weights: this model shows the software, not the chemistry.**", ""]
    lines += ["| metric on validation rows | value |", "|---|---|"]
    shown = {f"{task.name}_" for task in run.tasks}
    lines += [f"| {key} | {value:.4g} |" for key, value in record.items() if isinstance(value, float) and any(key.startswith(name) for name in shown)]
    lines += [
        "",
        "```python",
        "from fusionnet import RewardModel",
        f'model = RewardModel.load("{run.folder.name}")',
        "model.predict(frame)  # a polars or pandas frame with the columns of the config, in raw units",
        "```",
        "",
        f"Files: `{run.name}_best.pt` and `{run.name}_final.pt` (everything, `torch.load(..., weights_only=True)`), `network.safetensors` (fusion network and "
        "loss), `adapter/` (LoRA in PEFT's format), `tokenizer/`, `training_log.json`, `metrics.json` and `report.html` after evaluation.",
        "",
        "Limits: predictions hold for the population, units and ranges of the training table; strings are proxies where the table's are.",
        "",
    ]
    return "\n".join(lines)


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside its final name, then put it in place."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
