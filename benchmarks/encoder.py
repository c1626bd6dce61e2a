"""One pass of the encoder, forward and backward, over the 21 strings of the reference cohort at
polyBERT's size: what each saving gives.

Variants take turns in one process, so that whatever else the machine does falls on all of them
alike; a ratio is the median over the rounds of the ratio to the first variant of its table in the
same round. Before anything is timed, vectors and gradients are compared with the plain model's
(fp32, dropout off).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2Model

import embedcache.encoder.deberta.projection
import embedcache.encoder.model
from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from embedcache.config import EncoderConfig, LoraConfig
from embedcache.encoder.batching import MAX_BATCH_TOKENS, length_batches
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.standin import write_standin
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from jobs.cohort.polymers import load_polymers

PREFIX_LAYERS = (0, 6, 9, 11)
OVERHEADS = (0, 16, 48, 128, 100_000)  # the last gives one group
PRECISIONS = ("bf16", "fp32")
Pass = Callable[[], Tensor]  # an encoder pass: vectors with graph


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/encoder.json and .md."""
    arguments = parser("encoder", __doc__ or "").parse_args(words)
    rounds = 2 if arguments.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        config = EncoderConfig(source=str(Path(folder) / "encoder"), pooling="cls")
        write_standin(Path(config.source), "polybert")
        tokens = tokenize(
            load_tokenizer(config),
            list(dict.fromkeys(polymer.psmiles for polymer in load_polymers())),
            512,
        ).tokens
        found: dict[str, Any] = {
            **stamp(),
            "quick": arguments.quick,
            "num_threads": torch.get_num_threads(),
            "rounds": rounds,
            "num_tokens": int(tokens.lengths.sum()),
        }
        found["gradient_error"] = gradient_error(adapted(config, dropout=0.0), tokens)
        tables, found["copies_bytes"] = {}, {}
        for precision in PRECISIONS:
            encoder = adapted(config)
            tables[f"what each saving gives, {precision}"] = savings(
                encoder, tokens, precision, rounds
            )
            found["copies_bytes"][precision] = encoder._casts.num_bytes
        tables |= {
            "cost of one more group, in tokens (BATCH_OVERHEAD_TOKENS), bf16": batching(
                adapted(config), tokens, rounds
            )
        }
        for layer in PREFIX_LAYERS:
            tables[f"LoRA from layer {layer} on, bf16"] = prefix(
                adapted(config, first_layer=layer), tokens, rounds
            )
    relative = relative_encoder()
    tables |= {
        f"relative positions, DeBERTa-v3's base size, {precision}": positions(
            relative, tokens, precision, rounds
        )
        for precision in PRECISIONS
    }
    found["tables"] = tables
    publish(output_path("encoder", arguments), found, as_markdown, draw)


def adapted(config: EncoderConfig, **settings: Any) -> StringEncoder:
    """Return the encoder with LoRA whose B is not zero, in training mode."""
    torch.manual_seed(0)
    return _with_lora(load_encoder(config), **settings)


def relative_encoder() -> StringEncoder:
    """Return a randomly initialised encoder of DeBERTa-v3's base architecture, but with polyBERT's
    vocabulary.
    """
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 269,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    relative = {
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    }
    model = DebertaV2Model(
        DebertaV2Config(**sizes, **relative, position_biased_input=False, type_vocab_size=0)
    )
    return _with_lora(StringEncoder(model.requires_grad_(False), "mean"))


def _with_lora(encoder: StringEncoder, **settings: Any) -> StringEncoder:
    add_lora(encoder, LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return encoder.train()


def plain(encoder: StringEncoder, tokens: TokenTable) -> Tensor:
    """Return the vectors as the Hugging Face model and PEFT compute them, in length batches."""
    batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
    return torch.cat(
        [encoder(tokens.take(ids), pad_to=int(tokens.lengths[ids].max())) for ids in batches]
    )[torch.cat(batches).argsort()]


def gradient_error(encoder: StringEncoder, tokens: TokenTable) -> float:
    """Return |gradient - plain gradient| / |plain gradient| over all adapters; raises where it is
    more than 1e-5.
    """
    gradients = []
    for vectors in (plain(encoder, tokens), encoder(tokens)):
        encoder.zero_grad()
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
        gradients.append(
            torch.cat(
                [
                    parameter.grad.flatten()
                    for parameter in encoder.parameters()
                    if parameter.grad is not None
                ]
            )
        )
    error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    if not error <= 1e-5:
        raise AssertionError(
            f"gradients differ from the plain model's by {error:.1e}; nothing was timed"
        )
    return error


def savings(
    encoder: StringEncoder, tokens: TokenTable, precision: str, rounds: int
) -> dict[str, Any]:
    """Return the time of a pass with one saving more in each row; mean pooling needs the whole last
    layer.
    """

    def pooled(pooling: str, own_projections: bool) -> Tensor:
        encoder.pooling = pooling
        with (
            nullcontext()
            if own_projections
            else mock.patch.object(
                embedcache.encoder.deberta.projection, "_is_plain", return_value=False
            )
        ):
            return encoder(tokens)

    passes = {
        "plain model, in length batches": lambda: plain(encoder, tokens),
        "no padding outside attention": lambda: pooled("mean", False),
        "and frozen weights cast once, query, key and value in one product": lambda: pooled(
            "mean", True
        ),
        "and the last layer for [CLS] alone": lambda: pooled("cls", True),
    }
    return take_turns(encoder, passes, precision, rounds)


def batching(encoder: StringEncoder, tokens: TokenTable, rounds: int) -> dict[str, Any]:
    """Return the time of a pass with the groups that each assumed overhead gives."""

    def grouped(overhead: int) -> Tensor:
        with mock.patch.object(embedcache.encoder.model, "BATCH_OVERHEAD_TOKENS", overhead):
            embedcache.encoder.batching._length_batches.cache_clear()
            return encoder(tokens)

    passes: dict[str, Pass] = {}
    for overhead in OVERHEADS:
        with mock.patch.object(embedcache.encoder.model, "BATCH_OVERHEAD_TOKENS", overhead):
            embedcache.encoder.batching._length_batches.cache_clear()
            num_groups = len(length_batches(tokens.lengths, MAX_BATCH_TOKENS))
        passes[f"{overhead:,}: {num_groups} groups"] = lambda overhead=overhead: grouped(overhead)
    found = take_turns(encoder, passes, "bf16", rounds)
    embedcache.encoder.batching._length_batches.cache_clear()
    return found


def prefix(encoder: StringEncoder, tokens: TokenTable, rounds: int) -> dict[str, Any]:
    """Return the time of a pass with all layers run, and with cached states entering the first
    adapted one.
    """
    passes: dict[str, Pass] = {"all layers run": lambda: encoder(tokens)}
    if encoder.first_layer:
        cached = replace(tokens, states=encoder.states(tokens, encoder.first_layer))
        passes["states below it cached"] = lambda: encoder(cached)
    return take_turns(encoder, passes, "bf16", rounds)


def positions(
    encoder: StringEncoder, tokens: TokenTable, precision: str, rounds: int
) -> dict[str, Any]:
    """Return the time of a pass with the whole table of relative positions, and with the part that
    the strings reach.
    """
    return take_turns(
        encoder,
        {
            "whole table": lambda: plain(encoder, tokens),
            "positions in use": lambda: encoder(tokens),
        },
        precision,
        rounds,
    )


def take_turns(
    encoder: StringEncoder, passes: dict[str, Pass], precision: str, rounds: int
) -> dict[str, Any]:
    """Return seconds of forward and backward of each pass, and its speed-up over the first one,
    after one round that warms up.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            encoder.zero_grad(set_to_none=True)
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                vectors = run()
            forward = time.perf_counter() - started
            vectors.square().sum().backward()
            seconds[name].append((forward, time.perf_counter() - started - forward))
    whole = {name: [sum(each) for each in measured[1:]] for name, measured in seconds.items()}
    first = whole[next(iter(passes))]
    return {
        name: {
            "forward_s": statistics.median(forward for forward, _ in seconds[name][1:]),
            "backward_s": statistics.median(backward for _, backward in seconds[name][1:]),
            "spread_s": [float(each) for each in np.quantile(whole[name], (0.2, 0.8))],
            "faster_by": statistics.median(
                of_first / own for of_first, own in zip(first, whole[name], strict=True)
            ),
        }
        for name in passes
    }


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as tables."""
    sizes = ", ".join(
        f"{size / 2**20:.0f} MiB in {precision}"
        for precision, size in found["copies_bytes"].items()
    )
    lines = [
        f"# One encoder pass over 21 strings ({found['num_tokens']} tokens), forward and backward",
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['num_threads']} threads,"
        ),
        (
            f"torch {found['versions']['torch']}, transformers {found['versions']['transformers']},"
            f" PEFT {found['versions']['peft']}; {found['rounds']} rounds."
        ),
        (
            "polyBERT's size, LoRA r 16 with dropout. Gradients against the plain model (fp32,"
            f" dropout off): {found['gradient_error']:.1e}. "
            "Copies of frozen weights:"
            f" {sizes}."
        ),
    ]
    for title, rows in found["tables"].items():
        lines += [
            "",
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| | forward, s | backward, s | 20 to 80 %, s | faster by |",
            "|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            low, high = row["spread_s"]
            lines.append(
                f"| {name} | {row['forward_s']:.3f} | {row['backward_s']:.3f} | {low:.3f} to"
                f" {high:.3f} | {row['faster_by']:.2f} x |"
            )
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the time of a pass with one saving after the other."""
    titles = [title for title in found["tables"] if title.startswith("what each saving gives")]
    panels = [
        Panel(
            title,
            "seconds (lines: 20 to 80 %)",
            {name: _seconds(row) for name, row in found["tables"][title].items()},
        )
        for title in titles
    ]
    draw_bars(path, panels)


def _seconds(row: dict[str, Any]) -> tuple[float, float, float]:
    return (row["forward_s"] + row["backward_s"], *row["spread_s"])
