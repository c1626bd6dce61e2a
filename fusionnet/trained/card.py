"""The model card of a run: metadata that the Hugging Face hub reads, and text for people.

The text is `model_card.md.j2`; nothing is looked up on the hub.
"""

import re
from importlib import resources
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fusionnet.config.tasks import Task
from fusionnet.metrics import title
from fusionnet.runfolder.listing import read_listing, write_listed
from fusionnet.train.runlog import LOG, read_records
from fusionnet.trained.folder import is_portable
from fusionnet.trained.measured import measured_on_test_rows
from fusionnet.trained.run import TrainedRun

CARD = "README.md"
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
        tested=measured_on_test_rows(run),
        stopped=_why_stopped(run),
        few=[
            f"{spec.num_strings} distinct {spec.name} strings"
            for spec in run.layout.strings
            if spec.num_strings < FEW_STRINGS
        ],
    )
    return str(ModelCard(f"---\n{metadata(run).to_yaml()}\n---\n\n{text}\n"))


def renew_card(run: TrainedRun) -> None:
    """Write a run's own card again, which says its test metrics once these are in its folder.

    Nothing where the run has none yet, where it is of another epoch, and where what was exported
    to be published has a card of its own.
    """
    listing = read_listing(run.folder)
    if listing is None or CARD not in listing.files or is_portable(run.folder):
        return
    if run.moment == "best":
        write_listed(run.folder, run.run_id, run.folder / CARD, model_card(run).encode())


def metadata(run: TrainedRun) -> ModelCardData:
    """Return what the hub shows and searches: base model, tags, metrics in its model-index.

    No licence: that of a model is its owner's to choose, and nobody has said which.
    """
    sources = dict.fromkeys(spec.encoder.source for spec in run.layout.strings if spec.width)
    on_hub = [
        source for source in sources if _HUB_ID.fullmatch(source) and not Path(source).exists()
    ]
    kinds = list(dict.fromkeys(_hub_task(task) for task in run.tasks))
    tested = [line[:3] for line in measured_on_test_rows(run).lines]
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
        for split, found in (("validation", _metrics(run)), ("test", tested))
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
