"""Every metric of a report in one plain line."""

from collections.abc import Sequence

from fusionnet.config.tasks import METRICS, Task
from fusionnet.metrics import title

MEANINGS = {
    "mae": "mean absolute error: how far predictions are off on average; less is better",
    "rmse": "root of the mean squared error: as MAE, but large errors count more; less is better",
    "r2": "share of the labels' variance that predictions explain: 1 is perfect, 0 is no better"
    " than the labels' mean, below 0 is worse",
    "spearman": "whether predictions put rows in the right order: 1 is perfect, 0 is none at all",
    "accuracy": "share of rows whose class is right; where one class is frequent, always saying it"
    " is right often too",
    "auroc": "chance that a row of the class has a larger score than one without it: 1 is perfect,"
    " 0.5 is guessing",
    "f1": "one number for recall and precision, low where either is low: 1 is perfect",
    "recall": "share of the true positives that were found",
    "precision": "share of the rows called positive that are",
    "auprc": "precision, averaged over all thresholds: 1 is perfect, guessing has the share of"
    " positives",
    "balanced_accuracy": "mean over classes of the share that was found: guessing has 1 / classes",
    "kappa": "agreement beyond chance, where classes far off count more: 1 is perfect, 0 is chance",
}
OF_CLASSES = (
    "of several classes, F1, AUROC and AUPRC are means over classes, each against all others"
)


def explanations(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """Return (title, meaning) of the metrics that the tasks have, in the order of the tables."""
    found: dict[str, str] = {}
    for task in tasks:
        for metric in METRICS[task.kind]:
            found.setdefault(title(metric), MEANINGS[metric])
        for transform in ("log10", "log1p"):
            if task.transform == transform:
                found[f"… of {transform}"] = "the same metric of the label's logarithm"
    if any(task.has_codes for task in tasks):
        found["several classes"] = OF_CLASSES
    return list(found.items())
