"""Where strings lie to each other: two main directions of their vectors, also before fine-tuning.

Axes: S distinct strings, E encoder width, n strings that are drawn.
"""

from collections.abc import Iterator, Mapping

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from embedcache.text import visible
from fusionnet.config.tasks import Task
from fusionnet.evaluation.plots import Drawing
from fusionnet.evaluation.rows import RunRows
from fusionnet.trained.run import TrainedRun

MOST_STRINGS = 2000
MOST_NAMED = 25
LONGEST_NAME = 22
COLORS = mpl.colormaps["cividis"]  # its lightness rises evenly, so grey print tells values apart


def string_maps(
    run: TrainedRun,
    rows: RunRows,
    names: Mapping[str, Mapping[str, str]],
    cached: Mapping[str, Float[np.ndarray, "S E"]],
) -> Iterator[Drawing]:
    """Yield one drawing per string column with an encoder.

    `names` are what the table calls some strings; `cached` are the vectors before fine-tuning, by
    string column, of columns that were fine-tuned.
    """
    for place, spec in enumerate(run.layout.strings):
        if not spec.width or spec.num_strings < 3:
            continue
        texts = list(run.strings[spec.name])
        chosen = np.unique(np.linspace(0, len(texts) - 1, MOST_STRINGS).round().astype(int))
        after = run.vectors[spec.name][:, : spec.width].cpu().numpy()
        panels = {"fine-tuned" if spec.name in cached else "as the encoder has them": after}
        if spec.name in cached:
            panels = {"before fine-tuning": cached[spec.name], **panels}
        labels = [visible(names.get(spec.name, {}).get(texts[k], ""), LONGEST_NAME) for k in chosen]
        means = _mean_labels(run, rows, place, texts)[chosen]
        figure = _figure({key: each[chosen] for key, each in panels.items()}, means, labels, run)
        remark = (
            f"Each point is one of {len(chosen):,} strings, by the two directions in which their"
            f" vectors differ most (PCA). Shades: mean label of {run.tasks[0].column}, grey: no"
            " label. Near points look alike to the encoder; a map of two directions hides the rest."
        )
        yield Drawing(f"map_{spec.name}", f"{spec.column}: map of the strings", remark, figure)


def _mean_labels(
    run: TrainedRun, rows: RunRows, place: int, texts: list[str]
) -> Float[np.ndarray, " S"]:
    """Return the mean label of the first target by string; NaN of strings without any."""
    label = rows.block.targets[:, 0].astype(np.float64)
    known = np.isfinite(label)
    own = rows.texts[run.layout.strings[place].name]
    number = {text: k for k, text in enumerate(texts)}
    of_rows = np.array([number.get(text, -1) for text in own])[rows.block.string_id[:, place]]
    known &= of_rows >= 0
    sums = np.bincount(of_rows[known], label[known], minlength=len(texts))
    counts = np.bincount(of_rows[known], minlength=len(texts))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def main_directions(
    vectors: Float[np.ndarray, "n E"],
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " 2"]]:
    """Return each vector's place along the two main directions, and their shares of variance."""
    centred = torch.from_numpy(vectors).double()
    centred = centred - centred.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    places, variance = u[:, :2] * s[:2], s.square()
    missing = 2 - places.shape[1]  # of vectors of one number
    share = variance[:2] / variance.sum().clamp_min(torch.finfo(torch.float64).tiny)
    pad = torch.nn.functional.pad
    return pad(places, (0, missing)).numpy(), pad(share, (0, missing)).numpy()


def _figure(
    panels: Mapping[str, Float[np.ndarray, "n E"]],
    means: Float[np.ndarray, " n"],
    labels: list[str],
    run: TrainedRun,
) -> Figure:
    figure = Figure(figsize=(4.6, 0.4 + 3.2 * len(panels)), layout="constrained")
    finite = means[np.isfinite(means)]
    scale = Normalize(*((finite.min(), finite.max()) if len(finite) else (0.0, 1.0)))
    panel_axes = np.atleast_1d(figure.subplots(len(panels), 1))
    for axes, (title, vectors) in zip(panel_axes, panels.items(), strict=True):
        places, share = main_directions(vectors)
        _scatter(axes, places, means, scale)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel=f"direction 1 ({share[0]:.0%} of the variance)")
        axes.set(ylabel=f"direction 2 ({share[1]:.0%})", xticks=[], yticks=[])
        if len(labels) <= MOST_NAMED:
            for name, place in zip(labels, places, strict=True):
                offset = {"xytext": (4, 3), "textcoords": "offset points"}
                axes.annotate(name, tuple(place), fontsize=6, color="#444444", **offset)
    mapped = ScalarMappable(scale, COLORS)
    figure.colorbar(
        mapped, ax=list(panel_axes), label=_label(run.tasks[0]), shrink=0.8 / len(panels)
    )
    return figure


def _scatter(
    axes: Axes, places: Float[np.ndarray, "n 2"], means: Float[np.ndarray, " n"], scale: Normalize
) -> None:
    known = np.isfinite(means)
    x, y = places.T
    axes.scatter(x[~known], y[~known], s=14, color="#bbbbbb", linewidths=0)
    colors = COLORS(scale(means[known]))
    axes.scatter(x[known], y[known], s=22, c=colors, edgecolors="#333333", linewidths=0.3)


def _label(task: Task) -> str:
    unit = f" [{visible(task.unit, LONGEST_NAME)}]" if task.unit else ""
    return f"mean {visible(task.column, LONGEST_NAME)}{unit}"
