"""Memory and time of encoding a step's strings with graph: all activations kept, against two passes
within a budget (`embedcache.live.bounded`).

Each case runs in a process of its own, forward and backward, polyBERT's size with LoRA. Strings are
random tokens: what an encoder costs depends on lengths alone. The gradients of both ways are
compared (dropout off) before anything is reported.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.publish import (
    Panel,
    draw_bars,
    heading,
    number,
    output_path,
    parser,
    publish,
    table,
    tell,
)
from benchmarks.harness.stamp import stamp
from benchmarks.harness.workers import REPOSITORY
from embedcache.config import EncoderConfig, LoraConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.standin import write_standin
from embedcache.encoder.tokens import TokenTable
from embedcache.live.bounded import encode_bounded, measure_budget
from fusionnet.train.runlog import peak_rss_bytes

BUDGET_GIB = 1.0
LENGTHS = (12, 77)  # tokens of a string, as of the 24 polymers
MOST_ERROR = 1e-5


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/two_passes.json and .md."""
    if words[:1] == ["--case"]:
        print(json.dumps(measure(words[1], int(words[2]), words[3] == "bounded", Path(words[4]))))
        return
    arguments = parser("two_passes", __doc__ or "").parse_args(words)
    counts = (20, 60) if arguments.quick else (20, 100, 300)
    size = "tiny" if arguments.quick else "polybert"
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "size": size,
        "budget_gib": BUDGET_GIB,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for num in counts:
            kept, bounded = (
                _in_own_process(size, num, way, Path(folder) / f"{way}.pt")
                for way in ("kept", "bounded")
            )
            one, other = (
                torch.load(Path(folder) / f"{way}.pt", weights_only=True)
                for way in ("kept", "bounded")
            )
            error = float((one - other).norm() / one.norm())
            if not error <= MOST_ERROR:
                raise AssertionError(
                    f"two passes change the gradient by {error:.1e}; nothing is reported"
                )
            found["cases"].append(
                {"num_strings": num, "gradient_error": error, "kept": kept, "bounded": bounded}
            )
    publish(output_path("two_passes", arguments), found, as_markdown, draw)


def _in_own_process(size: str, num: int, way: str, gradient: Path) -> dict[str, float]:
    tell(f"{num} strings, {way}")
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "two_passes",
        "--case",
        size,
        str(num),
        way,
        str(gradient),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(size: str, num_strings: int, bounded: bool, gradient: Path) -> dict[str, float]:
    """Return seconds, tokens and growth of the peak memory of one forward and backward pass, and
    leave the gradient in a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_standin(Path(folder) / "encoder", size)
        encoder = load_encoder(EncoderConfig(source=str(Path(folder) / "encoder")))
    torch.manual_seed(0)
    add_lora(encoder, LoraConfig(dropout=0.0))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                # fresh adapters have B = 0, which would hide A's gradient
                parameter.normal_(std=0.02)
    tokens = random_tokens(num_strings)
    budget = measure_budget(
        encoder.train(),
        tokens,
        int((BUDGET_GIB if size == "polybert" else BUDGET_GIB / 256) * 2**30),
    )
    readout = torch.randn(num_strings, encoder.width, generator=torch.Generator().manual_seed(1))
    (encoder(tokens.take(torch.arange(2))) * readout[:2]).sum().backward()  # warm
    encoder.zero_grad()
    before, started = peak_rss_bytes(), time.perf_counter()
    vectors = encode_bounded(encoder, tokens, budget.max_tokens) if bounded else encoder(tokens)
    (vectors * readout).sum().backward()
    seconds = time.perf_counter() - started
    grown = peak_rss_bytes() - before
    torch.save(
        torch.cat(
            [
                parameter.grad.flatten()
                for parameter in encoder.parameters()
                if parameter.requires_grad
            ]
        ),
        gradient,
    )
    return {
        "seconds": seconds,
        "tokens": len(tokens.values),
        "grown_gib": grown / 2**30,
        "bytes_per_token": budget.bytes_per_token,
    }


def random_tokens(num_strings: int) -> TokenTable:
    """Return strings of random tokens with lengths uniform in LENGTHS."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(LENGTHS[0], LENGTHS[1] + 1, (num_strings,), generator=generator)
    values = torch.randint(5, 260, (int(lengths.sum()),), generator=generator)
    return TokenTable(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    budget = (
        f"Budget of the two passes: {found['budget_gib']:g} GiB. Memory is the growth of the"
        " process's peak by one forward and backward pass, fp32."
    )
    rows = [
        [
            case["num_strings"],
            f"{case['kept']['tokens']:,}",
            *(
                number(case[way][key])
                for way in ("kept", "bounded")
                for key in ("grown_gib", "seconds")
            ),
            f"{case['bounded']['seconds'] / case['kept']['seconds']:.2f} x",
            f"{case['gradient_error']:.1e}",
        ]
        for case in found["cases"]
    ]
    header = [
        "strings",
        "tokens",
        "kept, GiB",
        "kept, s",
        "two passes, GiB",
        "two passes, s",
        "time",
        "gradients differ by",
    ]
    lines = heading(
        "Encoding many strings: activations kept, or two passes of bounded memory", found, budget
    )
    return "\n".join([*lines, *table(header, rows)]) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw memory and time of both ways over the number of strings."""
    ways = {
        f"{case['num_strings']} strings, {label}": case[way]
        for case in found["cases"]
        for way, label in (("kept", "kept"), ("bounded", "two passes"))
    }
    panels = [
        Panel(
            "growth of the peak memory",
            "GiB",
            {name: run["grown_gib"] for name, run in ways.items()},
            {"budget of two passes": found["budget_gib"]},
        ),
        Panel(
            "forward and backward", "seconds", {name: run["seconds"] for name, run in ways.items()}
        ),
    ]
    draw_bars(path, panels, ours=[name for name in ways if "two passes" in name])
