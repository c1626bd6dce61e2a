"""What a config leaves unset of a training, made to fit the train rows.

Measured on validation rows of tables of 300 to 100,000 rows (benchmarks/results/LOG.md). The
specification's numbers belong to 313,236 rows: there everything below comes to them.
"""

import math
from typing import Any

from embedcache.schema import Config
from fusionnet.config.model import ModelConfig, ModelSection
from fusionnet.config.train import TrainConfig, TrainSection

LEAST_BATCH, MOST_BATCH = 16, 8192
STEPS_PER_EPOCH = 32  # about; more where the batch has its largest size
NUM_STEPS = 1000  # about, in all epochs
LEAST_EPOCHS, MOST_EPOCHS = 15, 60
LEAST_PATIENCE = 10
FEW_STEPS = 200  # a training of fewer is told so
# (train rows, fusion_width, layers): the first line that has as many; widths are the
# specification's where it has the specification's rows
_NETWORKS = ((200_000, 512, 4), (5_000, 256, 2), (0, 128, 2))
_MOST_HEADS = 8
_LEAST_NUMERIC = 32  # features of the numbers' encoder


def fitted_train(section: TrainSection, num_rows: int) -> TrainConfig:
    """Return a training of so many train rows, with what the section leaves unset."""
    batch = section.batch_rows or _batch_rows(num_rows)
    epochs = section.epochs or _epochs(num_rows, batch)
    patience = section.early_stopping.patience or max(LEAST_PATIENCE, epochs // 3)
    stopping = section.early_stopping.model_copy(update={"patience": patience})
    found = {"batch_rows": batch, "epochs": epochs, "early_stopping": stopping}
    return TrainConfig.model_validate({**_own(section), **found})


def fitted_model(section: ModelSection, num_rows: int) -> ModelConfig:
    """Return a network for so many train rows, with what the section leaves unset."""
    _, width, layers = next(each for each in _NETWORKS if num_rows >= each[0])
    heads = section.num_heads
    if section.fusion_width is not None:
        width = section.fusion_width
    elif heads is not None:
        width += -width % heads
    divides = (number for number in range(min(_MOST_HEADS, width), 0, -1) if width % number == 0)
    found = {
        "fusion_width": width,
        "num_layers": layers,
        "num_heads": next(divides),
        "feedforward": 4 * width,
        "adapter_hidden": max(1, 3 * width // 4),
        "adapter_width": max(1, width // 2),
        "numeric_hidden": max(_LEAST_NUMERIC, width // 8),
        "numeric_width": max(_LEAST_NUMERIC, width // 4),
    }
    return ModelConfig.model_validate({**found, **_own(section)})


def _batch_rows(num_rows: int) -> int:
    """Return the power of two that comes nearest to `STEPS_PER_EPOCH` steps."""
    wanted = max(1.0, num_rows / STEPS_PER_EPOCH)
    return min(MOST_BATCH, max(LEAST_BATCH, 2 ** round(math.log2(wanted))))


def _epochs(num_rows: int, batch_rows: int) -> int:
    """Return the passes over the rows that give about `NUM_STEPS` steps.

    Where a batch has its largest size they are the specification's.
    """
    if batch_rows >= MOST_BATCH <= num_rows:
        return LEAST_EPOCHS
    steps = max(1, -(-num_rows // batch_rows))
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, round(NUM_STEPS / steps)))


def _own(section: Config) -> dict[str, Any]:
    """Return what a section says of itself, without what is unset."""
    return {key: value for key, value in section if value is not None}
