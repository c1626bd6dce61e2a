"""What the benchmarks of a step share: a table, an encoder and a cache in a folder, and a stepper
that takes one optimizer step in one mode.

Everything goes the way that training goes: `load_experiment`, `build_cache`, `make_trainer`,
`optimizer_step`. The yardsticks that training does not offer (length-bucketed, compiled) are the
naive source with one thing changed.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from jaxtyping import Int
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2Model

from benchmarks.harness.timing import Phases, timed
from embedcache.build.decide import build_cache
from embedcache.cache.reader import Cache, open_cache
from embedcache.encoder.batching import MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.standin import write_standin
from embedcache.encoder.tokens import TokenTable
from fusionnet.assemble import Recipe, build_model, make_sources, observed_tasks
from fusionnet.experiment import Experiment, load_experiment
from fusionnet.model.trainable import TrainableModel
from fusionnet.rows.tensors import RowTable, load_rows
from fusionnet.train.engine import Engine, World
from fusionnet.train.loop import make_trainer
from fusionnet.train.step import optimizer_step
from jobs.cohort.generate import cohort_frames

CONFIGS = Path(__file__).parents[2] / "configs"
PADDED = 128  # tokens, as the specification pads
# prefix mode adapts this layer and those above it
PREFIX_LAYERS = {"polybert": 9, "middle": 3, "tiny": 1}
MIDDLE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 256,
}
FRAGMENTS = (
    "C",
    "O",
    "N",
    "S",
    "C(C)",
    "C(F)",
    "C(=O)",
    "C(O)",
    "c1ccc(cc1)",
    "C(C)(C)",
    "[Si](C)(C)",
    "C(Cl)",
)
DROPOUT_OFF = (
    "model.dropout=0.0",
    "model.feature_noise={}",
    "encoder.lora.dropout=0.0",
    *(f"tasks.{task}.head_dropout=0.0" for task in range(7)),
)
SMALL_NETWORK = (
    "model.adapter_hidden=32",
    "model.adapter_width=32",
    "model.fusion_width=64",
    "model.num_layers=1",
    "model.feedforward=128",
)


@dataclass(frozen=True)
class Mode:
    """One way of getting string vectors during a step."""

    encoding: str  # encoder.mode
    what: str
    pad_to: int | None = None
    bucketed: bool = False
    compiled: bool = False
    precision: str | None = None  # None: the run's

    @property
    def is_naive(self) -> bool:
        """Whether every row is encoded."""
        return self.encoding == "naive"


MODES = {
    "naive_128": Mode(
        "naive", "every row encoded, padded to 128 tokens (as specified)", pad_to=PADDED
    ),
    "naive_longest": Mode("naive", "every row encoded, padded to the longest string"),
    "naive_bucketed": Mode("naive", "every row encoded, in batches of like length", bucketed=True),
    "naive_128_bf16": Mode("naive", "as naive_128, in bf16", pad_to=PADDED, precision="bf16"),
    "naive_compiled": Mode(
        "naive", "as naive_128, the encoder by torch.compile", pad_to=PADDED, compiled=True
    ),
    "per_microbatch": Mode("per_microbatch", "torch.unique in each micro-batch"),
    "per_step": Mode("per_step", "distinct strings once per optimizer step"),
    "prefix": Mode("prefix", "LoRA on the top quarter of the layers, what enters them cached"),
    "frozen": Mode("frozen", "no LoRA: vectors from the cache"),
}


def make_setting(
    folder: Path,
    size: str,
    rows_per_patient: int,
    strings: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> None:
    """Write cohort, stand-in encoder and cache into a folder; `strings` take the place of the
    cohort's 21, dealt in turn to the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cohort = pl.concat(list(cohort_frames(60, rows_per_patient, 0, True)))
    if strings:
        assert len(strings) <= len(cohort)
        cohort = cohort.with_columns(
            polymer_SMILES=pl.Series(strings).gather(np.arange(len(cohort)) % len(strings))
        )
    cohort.write_parquet(folder / "cohort.parquet")
    write_encoder(folder / "encoder", size)
    (folder / "setting.yaml").write_text(yaml.safe_dump({"prefix_layer": PREFIX_LAYERS[size]}))
    experiment = experiment_of(folder, "prefix", "fp32", overrides)
    build_cache(
        experiment.data, experiment.targets, experiment.split, experiment.encoder, experiment.cache
    )


def write_encoder(folder: Path, size: str) -> None:
    """Write a stand-in; `middle` is the tiny one's folder with a model of a size between."""
    write_standin(folder, "polybert" if size == "polybert" else "tiny")
    if size == "middle":
        torch.manual_seed(0)
        config = DebertaV2Config.from_pretrained(folder)
        DebertaV2Model(DebertaV2Config(**{**config.to_dict(), **MIDDLE})).save_pretrained(folder)


def made_strings(
    num: int, seed: int = 0, fragments: tuple[int, int] = (6, 20), most_characters: int = PADDED - 4
) -> list[str]:
    """Return distinct PSMILES: chains of a random number of common fragments between two endpoints;
    a token is a character or more.
    """
    generator, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < num:
        length = int(generator.integers(fragments[0], fragments[1] + 1))
        string = "[*]" + "".join(generator.choice(FRAGMENTS, length)) + "[*]"
        if len(string) <= most_characters:
            found[string] = None
    return list(found)


def experiment_of(
    folder: Path, encoding: str, precision: str, overrides: Sequence[str] = ()
) -> Experiment:
    """Return Stage 1's experiment on a setting's files."""
    layer = (
        yaml.safe_load((folder / "setting.yaml").read_text())["prefix_layer"]
        if encoding == "prefix"
        else 0
    )
    chosen = {
        "data.path": folder / "cohort.parquet",
        "encoder.source": folder / "encoder",
        "cache.path": folder / "cache.zarr",
        "encoder.mode": encoding,
        "encoder.lora.first_layer": layer,
        "train.precision": precision,
    }
    return load_experiment(
        CONFIGS / "stage1.yaml", [*(f"{key}={value}" for key, value in chosen.items()), *overrides]
    )


def recipe_of(experiment: Experiment, cache: Cache) -> Recipe:
    """Return what the experiment's model is made of."""
    return Recipe(
        observed_tasks(experiment.tasks, cache.layout),
        (experiment.encoder,),
        experiment.model,
        experiment.loss,
        experiment.train,
    )


@once
def world() -> World:
    """Return this process's one process group; only what trains by DeepSpeed joins one, since other
    libraries change their ways inside of it.
    """
    return World()


def device() -> torch.device:
    """Return the device that `World` would choose, without joining a process group."""
    return torch.device(
        "cuda" if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu" else "cpu"
    )


class Stepper:
    """A trainer in one mode that takes optimizer steps on rows that the caller chooses, and tells
    their time, phases and encoder tokens.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        precision: str,
        batch_rows: int,
        micro_rows: int | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        mode = MODES[name]
        experiment = experiment_of(folder, mode.encoding, mode.precision or precision, overrides)
        self.cache = open_cache(experiment.cache.path)
        recipe = recipe_of(experiment, self.cache)
        recipe = replace(
            recipe,
            train=recipe.train.model_copy(
                update={"batch_rows": batch_rows, "micro_batch_rows": micro_rows}
            ),
        )
        self.trainer = make_trainer(
            recipe, experiment.optim, self.cache, world(), pad_to=mode.pad_to
        )
        self.trainer.model.train()
        self.phases, self.number = Phases(), 0
        self.losses: Tensor | None = None  # of the last step: the total, then each task's
        # of the last step, padding included: what the encoder read, in how many passes
        self.tokens = self.passes = self.token_pairs = 0
        _change_source(self.trainer.model, self.trainer.sources, mode)
        self._watch()

    def step(self, batch: RowTable) -> float:
        """Take one step and return its seconds; `phases.seconds` and `tokens` are then those of
        this step.
        """
        trainer = self.trainer
        trainer.engine.set_learning_rates(trainer.schedule.rates(0))
        order = torch.randperm(batch.num_rows).to(world().device)
        parts = trainer.plan.micro_batches(
            torch.arange(batch.num_rows, device=world().device), world().rank
        )

        def work() -> None:
            with self.phases.inside("read rows"):
                rows = batch.take(order)
            self.losses = optimizer_step(
                trainer.engine, trainer.sources, rows, parts, 0, self.number
            )

        self.tokens = self.passes = self.token_pairs = 0
        self.phases.reset()
        seconds = timed(work)
        self.phases.finish()
        self.number += 1
        return seconds

    def _watch(self) -> None:
        """Count phases and tokens by hooks on the modules, so that it does not matter who calls
        them.
        """
        model, engine, phases = self.trainer.model, self.trainer.engine, self.phases
        phases.watch(model.network, "fusion forward")
        phases.watch(model.loss, "loss")
        for encoder in model.encoders.values():
            phases.watch(encoder, "encode", backward="backward: encoder")
            self._count_tokens(encoder)
        engine.backward = phases.wrap("backward: fusion", engine.backward)
        engine.step = phases.wrap("update", engine.step)

    def _count_tokens(self, encoder: StringEncoder) -> None:
        """Count what the encoder reads in each pass: padded batches with their padding, strings end
        to end without.
        """
        padded, packed = encoder._encode_padded, encoder._encode_packed

        def count(num_tokens: int, token_pairs: int) -> None:
            self.tokens += num_tokens
            self.token_pairs += token_pairs
            self.passes += 1

        def counted_padded(tokens: TokenTable, pad_to: int | None = None) -> Tensor:
            length = pad_to or int(tokens.lengths.max())
            count(tokens.num_strings * length, tokens.num_strings * length**2)
            return padded(tokens, pad_to)

        def counted_packed(tokens: TokenTable, groups: Sequence[Tensor]) -> Tensor:
            count(
                int(sum(tokens.lengths[ids].sum() for ids in groups)),
                int(sum(len(ids) * tokens.lengths[ids].max() ** 2 for ids in groups)),
            )
            return packed(tokens, groups)

        encoder._encode_padded, encoder._encode_packed = counted_padded, counted_packed


def _change_source(model: TrainableModel, sources: list[Any], mode: Mode) -> None:
    """Make the yardsticks that training does not offer out of the naive source."""
    if mode.compiled:
        for encoder in model.encoders.values():
            encoder.model.compile(dynamic=False)
    if mode.bucketed:
        for encoder in model.encoders.values():
            encoder.forward = lambda tokens, pad_to=None, encoder=encoder: _bucketed(
                encoder, tokens
            )


def _bucketed(encoder: StringEncoder, tokens: TokenTable) -> Tensor:
    """Return the vectors of all rows as the plain model gives them, in batches of like length."""
    batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
    return torch.cat([encoder._encode_padded(tokens.take(ids)) for ids in batches])[
        torch.cat(batches).argsort()
    ]


def batch_of(
    cache: Cache, num_rows: int, string_id: Int[Tensor, " B"] | None = None, seed: int = 0
) -> RowTable:
    """Return train rows drawn by the seed; `string_id` replaces their strings."""
    rows = load_rows(cache, "train", device())
    chosen = torch.randint(
        rows.num_rows, (num_rows,), generator=torch.Generator().manual_seed(seed)
    )
    batch = rows.take(chosen.to(device()))
    return (
        batch
        if string_id is None
        else replace(batch, string_id=string_id.unsqueeze(1).to(device()))
    )


class PlainEngine(Engine):
    """Stands for DeepSpeed where only gradients are wanted: backward is torch's own, and nothing is
    updated.
    """

    def __init__(self, model: TrainableModel) -> None:
        self.world, self.model = SimpleNamespace(rank=0, size=1, device=device()), model

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model's forward."""
        return self.model(*arguments, **keywords)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate."""
        loss.backward()

    def step(self) -> None:
        """Update nothing."""

    overflowed = False
    tolerates_overflow = False


def gradient_errors(
    folder: Path, num_rows: int = 24, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Return |gradient - naive gradient| / |naive gradient| over all trainable weights, dropout
    off, fp32; raises AssertionError above 1e-5.

    `prefix` adapts fewer layers than the others, and is compared with per-row encoding of a model
    that adapts the same.
    """
    layer = yaml.safe_load((folder / "setting.yaml").read_text())["prefix_layer"]
    errors: dict[str, float] = {}
    for names, extra in (
        (("naive_longest", "naive_128", "naive_bucketed", "per_microbatch", "per_step"), []),
        (("naive_longest", "prefix"), [f"encoder.lora.first_layer={layer}"]),
    ):
        plain, *others = (
            _gradient(folder, MODES[name], [*overrides, *extra], num_rows) for name in names
        )
        errors |= {
            name: float((other - plain).norm() / plain.norm())
            for name, other in zip(names[1:], others, strict=True)
        }
    wrong = {name: error for name, error in errors.items() if not error <= 1e-5}
    if wrong:
        raise AssertionError(
            f"gradients differ from naive per-row encoding: {wrong}; nothing was timed"
        )
    return errors


def _gradient(folder: Path, mode: Mode, extra: Sequence[str], num_rows: int) -> Tensor:
    """Return the gradient of one step of two micro-batches."""
    experiment = experiment_of(folder, mode.encoding, "fp32", [*DROPOUT_OFF, *extra])
    cache = open_cache(experiment.cache.path)
    recipe = recipe_of(experiment, cache)
    model = build_model(recipe, cache.layout, cache.scaling).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # fresh adapters have B = 0, which would hide A's gradient
                parameter.normal_(std=0.02)
    sources = make_sources(model, recipe, cache, pad_to=mode.pad_to)
    _change_source(model, sources, mode)
    batch = batch_of(cache, num_rows)
    optimizer_step(
        PlainEngine(model), sources, batch, list(torch.arange(num_rows).tensor_split(2)), 0, 0
    )
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
