"""The memory that a run will need, by what holds it, told before anything large is made.

A run that is killed for its memory leaves no word. What is counted here is one rank's, from sizes
alone, at its peak on a CPU (a GPU's micro-batches are fitted to its free memory, see `sizing`).
What certainly does not fit (rows, weights, their gradients and Adam's moments) is refused; for the
rest, activations above all, the count is an estimate and a note.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from embedcache.cache.layout import StringSpec
from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.description import described_config
from embedcache.encoder.folder import weight_files
from embedcache.errors import ConfigError
from embedcache.live.bounded import DEFAULT_CPU_BYTES
from fusionnet.recipe import Recipe, model_of
from fusionnet.rows.tensors import row_bytes
from fusionnet.train.proof.prover import MOST_TOKENS
from fusionnet.train.sizing import activation_bytes, micro_batch_rows
from fusionnet.train.world import World

PROGRAM_BYTES = 600 << 20  # resident once everything is imported, measured
# what limits a process's memory on Linux and what is used of it: control groups, version 2 and 1
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# what may be done about each part
REMEDIES = {
    "rows": "train.rows=streaming, or a smaller train.rows_memory_mib",
    "encoder": "encoder.mode=frozen, or a smaller encoder",
    "features": "fewer data.strings.features",
    "network": "a smaller model.fusion_width or model.feedforward",
    "micro-batch": "a smaller train.micro_batch_rows",
    "strings": "a smaller encoder.memory_budget_gib",
    "proof": "train.prove=0",
}


def check_memory(recipe: Recipe, cache: Cache, world: World) -> str | None:
    """Return the line that says what memory a rank will need, and what to change if less is free
    (collective); None on a GPU.

    Raises ConfigError where rows and weights alone are more than is free.
    """
    if world.device.type != "cpu":
        return None
    parts = memory_parts(recipe, cache, world)
    free = world.least(available_bytes() // world.local_size)
    total, certain = sum(parts.values()), sum(parts[part] for part in ("rows", "network"))
    listed = ", ".join(f"{part} {_gib(size)}" for part, size in parts.items() if size >= 1 << 26)
    text = f"about {_gib(total)} GiB of {_gib(free)} free for a rank ({listed})"
    if total <= free:
        return text
    largest = sorted(REMEDIES, key=lambda part: parts[part], reverse=True)[:2]
    advice = "; ".join(f"for {part}: {REMEDIES[part]}" for part in largest)
    if certain > free:
        raise ConfigError(f"this run does not fit into memory: it takes {text}. Change {advice}")
    return f"{text}\nNOTE       this may not fit and be killed without a word. Change {advice}"


def memory_parts(recipe: Recipe, cache: Cache, world: World) -> dict[str, int]:
    """Return the bytes of one rank at its peak, by what holds them."""
    layout, train, live = cache.layout, recipe.train, recipe.is_live
    of_rows = layout.num_rows * row_bytes(layout)
    budget = train.rows_memory_mib << 20
    if train.rows == "streaming" or (train.rows == "auto" and of_rows > budget):
        of_rows = min(of_rows, budget)
    half = 0.5 if train.precision in ("auto", "bf16") else 0.0  # of a cast copy of the weights
    rows = min(
        train.batch_rows,
        micro_batch_rows(train, recipe.model, recipe.tasks, layout, world),
        layout.num_rows,
    )
    pairs = list(zip(recipe.encoders, layout.strings, strict=True))
    distinct = dict.fromkeys(recipe.encoders) if live else {}
    parameters = 4 * network_parameters(recipe, cache)  # bytes
    return {
        "program": PROGRAM_BYTES,
        "rows": of_rows,
        "encoder": int((1 + half) * sum(weight_bytes(config) for config in distinct)),
        # raw, scaled, behind vectors for validation, and in a checkpoint on its way
        "features": sum(
            16 * spec.num_strings * len(spec.feature_columns) for spec in layout.strings
        ),
        # weight, gradient and two moments, and two checkpoints of three of them on their way
        "network": int((4 + half + 6) * parameters),
        "micro-batch": rows * activation_bytes(recipe.model, recipe.tasks, layout),
        "strings": sum(step_bytes(pairs, config, rows) for config in distinct),
        "proof": proof_bytes(pairs if live else [], parameters) if train.prove else 0,
    }


def network_parameters(recipe: Recipe, cache: Cache) -> int:
    """Return the number of the network's parameters, without making them."""
    fp32 = replace(recipe, train=recipe.train.model_copy(update={"precision": "fp32"}))
    with torch.device("meta"):
        model = model_of(fp32, cache.layout, cache.scaling, {})
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(config: EncoderConfig) -> int:
    """Return the size of an encoder's weight files."""
    return sum(file.stat().st_size for file in weight_files(config))


def step_bytes(
    pairs: Sequence[tuple[EncoderConfig, StringSpec]], config: EncoderConfig, rows: int
) -> int:
    """Return about what autograd keeps of the strings that one encoder reads at a time.

    Columns that share it share its memory budget too; strings that they share are counted twice.
    """
    kept = sum(string_bytes(config, spec, rows) for own, spec in pairs if own == config)
    if config.mode in ("per_step", "prefix"):
        return min(config.memory_budget_bytes or DEFAULT_CPU_BYTES, kept)
    return kept


def string_bytes(config: EncoderConfig, spec: StringSpec, rows: int) -> int:
    """Return about what autograd would keep of a column's strings that are encoded at a time."""
    num_strings = rows if config.mode == "naive" else min(spec.num_strings, rows)
    if config.mode in ("per_step", "prefix"):
        num_strings = spec.num_strings
    return int(token_bytes(config, spec) * spec.num_tokens / spec.num_strings * num_strings)


def token_bytes(config: EncoderConfig, spec: StringSpec) -> float:
    """Return about what autograd keeps of one token of a string of mean length."""
    model = described_config(config)
    width, length = spec.width, spec.num_tokens / spec.num_strings
    inner = getattr(model, "intermediate_size", 4 * width)
    heads = getattr(model, "num_attention_heads", 1)
    layers = getattr(model, "num_hidden_layers", 1) - (spec.prefix_layer or 0)
    # the inputs of four products and two norms, the feed-forward's, and attention
    return 4 * layers * (7 * width + 3 * inner + heads * length)


def proof_bytes(pairs: Sequence[tuple[EncoderConfig, StringSpec]], parameters: int) -> int:
    """Return about what the certificate of a step takes: three states of the optimizer's size, four
    gradients, and the plain encoder's activations, which are twice those of training.
    """
    tokens = max((token_bytes(*pair) for pair in pairs), default=0.0)
    return 8 * parameters + int(2 * MOST_TOKENS * tokens)


def available_bytes() -> int:
    """Return the memory that processes may still take: the machine's, or what a limit leaves of it.

    Containers and Slurm set such limits.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used in LIMITS:
        if Path(limit).is_file() and Path(used).is_file():
            text = Path(limit).read_text().strip()
            if text != "max":
                free = min(free, max(0, int(text) - int(Path(used).read_text())))
    return free


def _gib(size: int) -> str:
    """Return a size in GiB, with as many digits as an estimate deserves."""
    return f"{size / 2**30:,.1f}"
