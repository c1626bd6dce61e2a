"""What the device decides, once, at the start of a run.

How many rows one forward pass takes, in which precision, compiled or not, and on how many threads.
"""

import os

import torch

from embedcache.cache.layout import Layout
from embedcache.errors import ConfigError
from embedcache.launcher import threads_per_rank
from fusionnet.config.model import ModelConfig
from fusionnet.config.tasks import Task
from fusionnet.config.train import PrecisionName, TrainConfig
from fusionnet.train.precision import multiplies_bf16
from fusionnet.train.world import World

THREADS_PER_CORE = 4  # at most
# activations of one layer stay near the caches; measured in benchmarks/results
CPU_MICRO_BATCH_ROWS = 1024
# of the free memory for a micro-batch's activations; the rest is for the encoder's, gradients, and
# the allocator's gaps
GPU_SHARE = 0.5
# compiling took over 45 s on an H100 (torch 2.11), where a step takes milliseconds
COMPILE_STEPS = 20_000


def settled_precision(precision: PrecisionName, world: World) -> PrecisionName:
    """Return the precision that all ranks compute in (collective).

    `auto` becomes bf16 if every rank's device has instructions for it, else fp32.
    """
    if precision != "auto":
        return precision
    return "bf16" if world.least(int(multiplies_bf16(world.device))) else "fp32"


def is_compiled(train: TrainConfig, device: torch.device, num_steps: int) -> bool:
    """Return whether the network runs by torch.compile.

    `auto`: not on a CPU, and on a GPU where the run has steps enough to win back the compiling.
    """
    if train.compile == "auto":
        return device.type != "cpu" and num_steps >= COMPILE_STEPS
    return train.compile


def micro_batches_per_rank(
    train: TrainConfig,
    model: ModelConfig,
    tasks: tuple[Task, ...],
    layout: Layout,
    world: World,
    num_rows: int,
) -> int:
    """Return how many micro-batches each rank reads per optimizer step, the same on every rank.

    A step has no more rows than the table has for training, which are `num_rows`.
    """
    rows = micro_batch_rows(train, model, tasks, layout, world)
    return max(1, -(-min(train.batch_rows, num_rows) // (world.size * rows)))


def micro_batch_rows(
    train: TrainConfig, model: ModelConfig, tasks: tuple[Task, ...], layout: Layout, world: World
) -> int:
    """Return how many rows a micro-batch may have; on a GPU as many as memory allows."""
    if train.micro_batch_rows is not None:
        return train.micro_batch_rows
    if world.device.type == "cpu":
        return CPU_MICRO_BATCH_ROWS
    free = torch.cuda.mem_get_info(world.device)[0]
    return world.least(rows_that_fit(free, activation_bytes(model, tasks, layout)))


def rows_that_fit(free_bytes: int, bytes_per_row: int) -> int:
    """Return the rows of a micro-batch for this much free memory.

    They are a power of two, so that small differences between two starts do not change a run's
    random numbers.
    """
    return 1 << max(0, int(GPU_SHARE * free_bytes / bytes_per_row).bit_length() - 1)


def activation_bytes(model: ModelConfig, tasks: tuple[Task, ...], layout: Layout) -> int:
    """Return a bound of the bytes that autograd keeps of one row in the network, in fp32.

    Counted by layer: a product keeps its input; a norm, an activation or a dropout its input or
    mask; a residual nothing. Under autocast a product's input is kept in half the bytes, beside the
    fp32 one of its norm, which together is no more than what is counted here.
    """
    width = model.fusion_width
    num_strings = sum(bool(spec.width) + bool(spec.features) for spec in layout.strings)
    num_groups = num_tokens = 1
    layer = 12 * width + 4 * model.feedforward
    if model.fusion == "modality":
        num_groups = len({column.feature_group for column in layout.numeric})
        # tokens, and their queries, keys and values
        num_tokens = 1 + num_strings + num_groups + len(layout.categories)
        layer = num_tokens * (layer + 3 * width)
    strings = num_strings * (3 * model.adapter_hidden + 6 * model.adapter_width)
    numbers = num_groups * 6 * (model.numeric_hidden + model.numeric_width)
    numbers += len(layout.numeric) * (1 + _embedding_numbers(model))
    heads = sum(4 * sum(task.head) + width for task in tasks)
    layers, own = model.num_layers * layer, 0
    if model.members > 1:
        of_each = model.num_own_layers * layer
        if model.fusion == "modality" and model.num_own_layers:  # one token leaves the last
            of_each -= layer - layer // num_tokens - 3 * num_tokens * width
        layers += (model.members - 1) * of_each
        heads *= model.members
        own = 2 * model.members * num_tokens * width  # tokens of all, and what is read of them
    return 4 * (layers + strings + numbers + heads + own + 4 * width)


def _embedding_numbers(model: ModelConfig) -> int:
    """Return how many numbers autograd keeps of the embedding of one numeric feature."""
    sizes = model.numeric_embedding
    made = {"linear": 0, "ple": sizes.bins, "periodic": 6 * sizes.frequencies}[model.numeric]
    return made + (0 if model.numeric == "linear" else 3 * sizes.width)


def set_threads(asked: int | None, world: World) -> None:
    """Share this machine's cores among its ranks.

    torchrun would leave one thread each, which is far too few for few ranks. Raises ConfigError
    where so many are asked for that they would only wait for each other.
    """
    cores = os.cpu_count() or 1
    if asked is not None and asked > THREADS_PER_CORE * cores:
        raise ConfigError(
            f"train.cpu_threads is {asked:,}, this machine has {cores} cores; set at most"
            f" {THREADS_PER_CORE * cores}, or leave it unset"
        )
    if world.device.type == "cpu":
        torch.set_num_threads(asked or threads_per_rank(world.local_size))
