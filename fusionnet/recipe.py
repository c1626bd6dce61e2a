"""What a model is made of, and the model without its encoders.

Apart from `assemble` because a trained run needs no more: vectors of known strings are in its
checkpoint, and transformers and PEFT, which encoders come from, take seconds to import.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from embedcache.cache.layout import Layout
from embedcache.config.encoder import EncoderConfig, EncodingMode
from embedcache.errors import ConfigError
from embedcache.scaling import Scaling
from embedcache.values import twice
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.config.train import TrainConfig
from fusionnet.model.loss import MultiTaskLoss
from fusionnet.model.network import FusionNetwork
from fusionnet.model.trainable import TrainableModel

# fp16 casts the whole module, inside the engine
AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": None}


@dataclass(frozen=True)
class Recipe:
    """What a model is made of; `encoders` has one entry per string column."""

    tasks: tuple[Task, ...]
    encoders: tuple[EncoderConfig, ...]
    model: ModelConfig
    loss: LossConfig
    train: TrainConfig

    @property
    def mode(self) -> EncodingMode:
        """How often strings are encoded; columns are all trained in one mode, none in `frozen`."""
        return self.encoders[0].mode if self.encoders else "frozen"

    @property
    def is_live(self) -> bool:
        """Whether strings are encoded in training, by encoders that are trained."""
        return self.mode not in ("frozen", "none")


def observed_tasks(tasks: Sequence[Task], layout: Layout) -> tuple[Task, ...]:
    """Return the tasks for which the cache has labels, in the cache's order of targets.

    Those with several classes have the table's, in the order of their codes.
    """
    by_column = {task.column: task for task in tasks}
    observed = tuple(
        by_column[target.column].model_copy(update={"classes": target.classes})
        for target in layout.targets
    )
    named = [f"{task.column}_{label}" for task in observed for label in _labels(task)]
    if found := twice(named):
        raise ConfigError(
            f"two targets and their classes make one name, probability_{found[0]:.200}, of"
            " predictions; rename a column or a class"
        )
    return observed


def _labels(task: Task) -> tuple[str, ...]:
    """Return the classes that predictions have a column for each."""
    return task.classes or () if task.has_codes else ()


def encoder_of_column(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return for each string column the name of the column under which its encoder is kept.

    Columns may share one.
    """
    return [names[recipe.encoders.index(config)] for config in recipe.encoders]


def model_of(
    recipe: Recipe, layout: Layout, scaling: Scaling, encoders: Mapping[str, nn.Module]
) -> TrainableModel:
    """Return a model of these encoders and a fresh network, drawn from torch's global generator."""
    network = FusionNetwork(
        recipe.model,
        recipe.tasks,
        strings=[(spec.name, spec.width) for spec in layout.strings],
        num_numeric=len(layout.numeric),
        feature_groups=[column.feature_group for column in layout.numeric],
        cardinalities=[len(category.values) for category in layout.categories],
        vector_scaling=scaling.vectors,
        numeric_edges=_edges(recipe.model, scaling),
        string_features={spec.name: len(spec.feature_columns) for spec in layout.strings},
    )
    loss = MultiTaskLoss(recipe.tasks, scaling, recipe.loss)
    return TrainableModel(encoders, network, loss, AUTOCAST_DTYPES[recipe.train.precision])


def _edges(model: ModelConfig, scaling: Scaling) -> list[list[float]]:
    """Return the edges of the features' bins, none where the network has no bins."""
    return scaling.bin_edges(model.numeric_embedding.bins) if model.numeric == "ple" else []
