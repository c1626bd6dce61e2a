"""The model card of a run: metadata that the Hugging Face hub reads, and text for people.

The text is `model_card.md.j2`; nothing is looked up on the hub.
"""

import json
import re
from importlib import resources
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fusionnet.config.tasks import Task
from fusionnet.metrics import title
from fusionnet.train.runlog import LOG, read_records
from fusionnet.trained.run import TrainedRun

METRICS = "metrics.json"  # of test rows, which evaluation writes
OWN_ROWS = "the run's own test rows"  # as it says where it evaluated no other table
FEW_STRINGS = 1000  # of a column; a model that has seen fewer extrapolates
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REGRESSION, _CLASSIFICATION = "tabular-regression", "tabular-classification"


def model_card(run: TrainedRun, portable: str = "") -> str:
    """Return the run's model card in Markdown, headed by its metadata in YAML.

    `portable` is what the card calls a folder or hub id of safetensors; unset: it is the run's own
    folder.
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(with_unit=_with_unit, bound=_bound)
    file = resources.files("fusionnet.trained").joinpath("model_card.md.j2")
    text = environment.from_string(file.read_text(encoding="utf-8")).render(
        run=run,
        portable=portable,
        loaded_by=f'from_pretrained("{portable}")' if portable else f'load("{run.folder.name}")',
        features=_features(run),
        split=run.config["split"]["strategy"],
        metrics=_metrics(run),
        test_metrics=_test_metrics(run),
        stopped=_why_stopped(run),
        few=[
            f"{spec.num_strings} distinct {spec.name} strings"
            for spec in run.layout.strings
            if spec.num_strings < FEW_STRINGS
        ],
    )
    return str(ModelCard(f"---\n{metadata(run).to_yaml()}\n---\n\n{text}\n"))


def metadata(run: TrainedRun) -> ModelCardData:
    """Return what the hub shows and searches: base model, tags, metrics in its model-index.

    No licence: that of a model is its owner's to choose, and nobody has said which.
    """
    sources = dict.fromkeys(spec.encoder.source for spec in run.layout.strings if spec.width)
    on_hub = [
        source for source in sources if _HUB_ID.fullmatch(source) and not Path(source).exists()
    ]
    kinds = list(dict.fromkeys(_hub_task(task) for task in run.tasks))
    results = [
        EvalResult(
            task_type=_hub_task(task),
            dataset_type="table",
            dataset_name=run.data.title,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{task.column} {title(metric)}",
            metric_value=value,
        )
        for split, found in (("validation", _metrics(run)), ("test", _test_metrics(run)))
        for task, metric, value in found
        if value is not None
    ]
    return ModelCardData(
        library_name="fusionnet",
        base_model=on_hub or None,
        pipeline_tag=kinds[0],
        tags=[*kinds, *(["lora"] if run.recipe.is_live else [])],
        metrics=list(dict.fromkeys(metric for _, metric, _ in _metrics(run))),
        model_name=run.name,
        eval_results=results or None,
    )


def _hub_task(task: Task) -> str:
    return _REGRESSION if task.kind == "regression" else _CLASSIFICATION


def _metrics(run: TrainedRun) -> list[tuple[Task, str, float | None]]:
    """Return the validation metrics of the exported epoch, of the network alone."""
    return [
        (task, metric, run.record[f"{task.name}_{metric}"])
        for task in run.tasks
        for metric in task.metrics
    ]


def _test_metrics(run: TrainedRun) -> list[tuple[Task, str, float | None]]:
    """Return the metrics of the run's test rows, if its folder has those of this epoch."""
    try:
        found = json.loads((run.folder / METRICS).read_bytes())
        evaluated = found["checkpoint"], found["epoch"], found["rows"]
        if evaluated != (run.moment, run.epoch, OWN_ROWS):
            return []
        values = found["test"]
        return [
            (task, metric, None if (value := values[task.column][metric]) is None else float(value))
            for task in run.tasks
            for metric in task.metrics
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # not evaluated, or the file was edited: the card does without


def _why_stopped(run: TrainedRun) -> str:
    """Return why the training ended before its last epoch, "" where it did not."""
    records = read_records(run.folder / LOG)
    return str(records[-1].get("stopped", "")) if records else ""


def _features(run: TrainedRun) -> list[str]:
    """Return what the model reads, in words."""
    layout = run.layout
    features = [f"{spec.column} ({spec.kind}; {spec.in_words})" for spec in layout.strings]
    if layout.numeric:
        features.append(f"{len(layout.numeric)} numeric features")
    return features + [column for column, _ in layout.categories]


def _with_unit(task: Task) -> str:
    return f"{task.column} [{task.unit}]" if task.unit else task.column


def _bound(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"
