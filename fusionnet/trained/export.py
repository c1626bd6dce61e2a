"""What a run leaves for other tools: the LoRA adapter in PEFT's format, plain safetensors weights,
the tokenizer, a model card.

Everything is made from the best checkpoint as it lies on disk, and written beside its final name,
then put in place by rename.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from embedcache.encoder.lora import save_adapter
from embedcache.encoder.tokenizer import load_tokenizer
from embedcache.files import atomic_write, write_atomically
from fusionnet.assemble import encoder_of_column
from fusionnet.config import Task
from fusionnet.metrics import BINARY_METRICS, REGRESSION_METRICS
from fusionnet.trained.run import TrainedRun, load_run
from fusionnet.trained.vectors import trained_encoder


def export_run(folder: Path) -> None:
    """Write adapter/, tokenizer/, network.safetensors and README.md (the model card) from the run's
    best checkpoint.

    With several encoders the folders are adapter_<string column>/ and tokenizer_<string column>/; a
    frozen run has no adapter.
    """
    run = load_run(folder, "best")
    names = [spec.name for spec in run.layout.strings]
    keys = list(dict.fromkeys(encoder_of_column(run.recipe, names)))
    for name in keys:
        suffix = "" if len(keys) == 1 else f"_{name}"
        if run.recipe.mode != "frozen":
            with atomic_write(folder / f"adapter{suffix}") as partial:
                _write_adapter(run, name, partial)
        config = run.recipe.encoders[names.index(name)]
        with atomic_write(folder / f"tokenizer{suffix}") as partial:
            load_tokenizer(config).save_pretrained(partial)
    weights = {
        key: value.detach().contiguous().cpu() for key, value in run.model.state_dict().items()
    }
    write_atomically(
        folder / "network.safetensors",
        save(weights, metadata={"format": "pt", "epoch": str(run.epoch)}),
    )
    write_atomically(folder / "README.md", model_card(run).encode())


def model_card(run: TrainedRun) -> str:
    """Return the run's model card in Markdown."""
    notices = [f"**{run.note}**", ""] if run.note else []
    if run.standin:
        notices += [
            (
                "**The encoder is a stand-in without published weights: this model shows the"
                " software, not the chemistry.**"
            ),
            "",
        ]
    return "\n".join(
        [f"# {run.name}", "", *notices, *_what(run), *_metrics(run), *_usage(run), *_limits(run)]
    )


def _what(run: TrainedRun) -> list[str]:
    """Return what goes in, what comes out, and from what it was learned."""
    layout, split = run.layout, run.config["split"]
    parts = [
        f"{spec.column} ({spec.kind}; encoder {spec.encoder.source}, {spec.pooling} pooling)"
        for spec in layout.strings
    ]
    parts += [f"{len(layout.numeric)} numeric features"] * bool(layout.numeric) + [
        column for column, _ in layout.categories
    ]
    dealt = f"`{split['strategy']}`" + (
        f" by `{run.data.group}`" if split["strategy"] == "group" else ""
    )
    learned = (
        "frozen vectors"
        if run.recipe.mode == "frozen"
        else f"LoRA of rank {run.recipe.encoders[0].lora.r}"
    )
    strings = ", ".join(f"{spec.num_strings:,} distinct {spec.name}" for spec in layout.strings)
    return [
        f"Predicts {', '.join(_with_unit(task) for task in run.tasks)} from {', '.join(parts)}.",
        "",
        (
            f"Trained on {run.data.title}: {layout.num_rows:,} rows, split {dealt}, {strings}"
            f" strings; {learned}, mode `{run.recipe.mode}`, {run.recipe.train.precision}."
        ),
        (
            f"The weights are those of epoch {run.epoch} of {run.recipe.train.epochs}, the best on"
            " validation rows."
        ),
        "",
    ]


def _metrics(run: TrainedRun) -> list[str]:
    """Return the validation metrics of the exported epoch; test metrics are written by the
    evaluation, not by training.
    """
    record: dict[str, Any] = run.record
    lines = ["## Metrics on validation rows", "", "| target | metric | value |", "|---|---|---|"]
    for task in run.tasks:
        for metric in REGRESSION_METRICS if task.kind == "regression" else BINARY_METRICS:
            value = record[f"{task.name}_{metric}"]
            lines.append(
                f"| {_with_unit(task)} | {metric} |"
                f" {'undefined' if value is None else f'{value:.4g}'} |"
            )
    return [
        *lines,
        "",
        (
            "Metrics on test rows are in `metrics.json` and `report.html` once"
            " `fusionnet evaluate` has run."
        ),
        "",
    ]


def _usage(run: TrainedRun) -> list[str]:
    """Return how to load the run, and what its files are."""
    return [
        "## Use",
        "",
        "```python",
        "from fusionnet import RewardModel",
        f'model = RewardModel.load("{run.folder.name}")',
        "model.predict(frame)  # a polars or pandas frame with the columns below, in raw units",
        "```",
        "",
        "| column | unit | range |",
        "|---|---|---|",
        *(f"| {spec.column} | {spec.kind} | |" for spec in run.layout.strings),
        *(
            f"| {column.column} | {column.unit} | {_bound(column.low)} to {_bound(column.high)} |"
            for column in run.layout.numeric
        ),
        *(
            f"| {column} | one of | {', '.join(values)} |"
            for column, values in run.layout.categories
        ),
        "",
        (
            f"`{run.name}_best.pt` and `{run.name}_final.pt` hold everything (`torch.load(...,"
            " weights_only=True)`); `network.safetensors` the fusion network and the loss;"
            " `adapter/` the LoRA weights in PEFT's format; `tokenizer/` the tokenizer;"
            " `training_log.json` one record per epoch."
        ),
        "",
    ]


def _limits(run: TrainedRun) -> list[str]:
    """Return what the model must not be used for."""
    lines = [
        "## Limits",
        "",
        (
            "Predictions hold for the population, units and ranges of the training table. They are"
            " statistical, and no substitute for a measurement."
        ),
    ]
    if run.layout.absent_targets:
        lines.append(
            "Not trained, since the table has no labels for them:"
            f" {', '.join(run.layout.absent_targets)}."
        )
    few = [
        f"{spec.num_strings} distinct {spec.name} strings"
        for spec in run.layout.strings
        if spec.num_strings < 1000
    ]
    if few:
        lines.append(
            f"The model has seen {' and '.join(few)}; for a string outside of them it extrapolates."
        )
    if any(task.kind == "binary" and task.loss_name == "focal" for task in run.tasks):
        lines.append(
            "Probabilities of tasks trained with focal loss rank rows well but are not calibrated"
            " frequencies."
        )
    return [*lines, ""]


def _write_adapter(run: TrainedRun, column: str, target: Path) -> None:
    """Write one encoder's adapter, without the empty model card that PEFT puts beside it."""
    save_adapter(trained_encoder(run, column), target)
    (target / "README.md").write_text(
        f"LoRA adapter of the '{column}' encoder, from epoch {run.epoch} of {run.name}; see"
        " ../README.md.\n",
        encoding="utf-8",
    )
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def _with_unit(task: Task) -> str:
    return f"{task.column} [{task.unit}]" if task.unit else task.column


def _bound(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"
