"""What each piece of exact algebra gains: the plain form and ours, in turns in one process, so that
only their ratio is published.

Each pair is compared, gradients included, before it is timed. Gathering early is our own network
told that every row has a string of its own.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness.publish import Panel, draw_bars, output_path, parser, publish
from benchmarks.harness.stamp import stamp
from benchmarks.harness.timing import interleaved, paired_ratio, timed
from fusionnet.config import ModelConfig, Task
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.model.modality_tokens import ModalityFusion
from fusionnet.model.network import FusionNetwork
from fusionnet.model.single_token import SingleTokenFusion

NUM_STRINGS, VECTOR_WIDTH, NUM_FEATURES, NUM_CATEGORIES, NUM_PARTS = 21, 600, 19, 8, 6
TASKS = (
    Task(name="ef", column="ef", head=(256, 64)),
    *(Task(name=f"t{number}", column=f"t{number}") for number in range(6)),
)
FULL = ModelConfig()


class Pair(NamedTuple):
    """One computation in two forms, which return outputs, or gradients."""

    what: str
    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def main(words: list[str]) -> None:
    """Measure and write benchmarks/results/algebra.json and .md."""
    arguments = parser("algebra", __doc__ or "").parse_args(words)
    num_rows, num_rounds = (256, 3) if arguments.quick else (1024, 15)
    found: dict[str, Any] = {
        **stamp(),
        "quick": arguments.quick,
        "num_rows": num_rows,
        "num_rounds": num_rounds,
        "threads": torch.get_num_threads(),
        "pairs": {},
    }
    for pair in (*transformers(num_rows), *gathers(num_rows)):
        plain, ours = pair.plain(), pair.ours()
        if (plain - ours).norm() > 1e-4 * plain.norm():
            raise AssertionError(
                f"{pair.what}: the two forms differ by {(plain - ours).norm() / plain.norm():.1e};"
                " nothing was timed"
            )
        seconds = interleaved(
            {"plain": partial(timed, pair.plain), "ours": partial(timed, pair.ours)}, num_rounds
        )
        found["pairs"][pair.what] = paired_ratio(seconds["plain"], seconds["ours"])
    publish(output_path("algebra", arguments), found, as_markdown, draw)


def transformers(num_rows: int) -> list[Pair]:
    """Return the fusions beside nn.TransformerEncoder with the same weights, dropout off."""
    torch.manual_seed(0)
    sizes = (FULL.fusion_width, FULL.num_heads, FULL.feedforward)
    layer = nn.TransformerEncoderLayer(*sizes, dropout=0.0, activation="gelu", batch_first=True)
    transformer = nn.TransformerEncoder(layer, FULL.num_layers, enable_nested_tensor=False)
    joint, modality = (
        SingleTokenFusion(*sizes, FULL.num_layers, 0.0),
        ModalityFusion(NUM_PARTS, *sizes, FULL.num_layers, 0.0),
    )
    joint.load_transformer(transformer)
    modality.load_transformer(transformer)
    one, several = (
        torch.randn(num_rows, FULL.fusion_width),
        torch.randn(num_rows // 4, NUM_PARTS + 1, FULL.fusion_width),
    )

    def plainly(x: Tensor) -> Tensor:
        transformer.train(torch.is_grad_enabled())  # its evaluation has a fast path of its own
        tokens = transformer(x.unsqueeze(1) if x.dim() == 2 else x)
        return (joint if x.dim() == 2 else modality).norm(tokens[:, 0])

    return [
        Pair(
            "joint token, nn.TransformerEncoder on length 1: training",
            lambda: _slope(plainly, one),
            lambda: _slope(joint, one),
        ),
        Pair(
            "joint token, nn.TransformerEncoder on length 1: evaluation",
            lambda: _value(plainly, one),
            lambda: _value(joint, one),
        ),
        Pair(
            "modality tokens, all through the last layer: training",
            lambda: _slope(plainly, several),
            lambda: _slope(modality.read_out, several),
        ),
        Pair(
            "modality tokens, all through the last layer: evaluation",
            lambda: _value(plainly, several),
            lambda: _value(modality.read_out, several),
        ),
    ]


def gathers(num_rows: int) -> list[Pair]:
    """Return the whole network with its vectors gathered first, beside gathered late, and beside
    the evaluator.
    """
    torch.manual_seed(0)
    network = FusionNetwork(
        FULL, TASKS, (("polymer", VECTOR_WIDTH),), NUM_FEATURES, (NUM_CATEGORIES,)
    )
    vectors, numeric = torch.randn(NUM_STRINGS, VECTOR_WIDTH), torch.randn(num_rows, NUM_FEATURES)
    string_id, category = (
        torch.randint(0, NUM_STRINGS, (num_rows, 1)),
        torch.randint(0, NUM_CATEGORIES, (num_rows, 1)),
    )
    own = torch.arange(num_rows).unsqueeze(1)

    def early(table: Tensor) -> Tensor:
        return network([table[string_id[:, 0]]], own, numeric, category)

    def late(table: Tensor) -> Tensor:
        return network([table], string_id, numeric, category)

    def training(forward: Callable[[Tensor], Tensor]) -> Tensor:
        network.train()
        torch.manual_seed(0)  # the masks are drawn for the same rows in both forms
        return _slope(forward, vectors)

    def evaluation(forward: Callable[[Tensor], Tensor]) -> Tensor:
        network.eval()
        return _value(forward, vectors)

    evaluate = RowEvaluator(network.eval(), torch.float32)
    tables = evaluate.tables([vectors])
    return [
        Pair(
            "whole network, strings gathered first: training, dropout 0.1",
            lambda: training(early),
            lambda: training(late),
        ),
        Pair(
            "whole network, strings gathered first: evaluation",
            lambda: evaluation(early),
            lambda: evaluation(late),
        ),
        Pair(
            "whole network, strings gathered first: RowEvaluator",
            lambda: evaluation(early),
            lambda: evaluate(tables, string_id, numeric, category),
        ),
    ]


def _slope(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient with respect to x of a sum of cubes (a sum of squares after a norm is
    constant); all weights get theirs too.
    """
    leaf = x.clone().requires_grad_()
    forward(leaf).pow(3).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@torch.no_grad()
def _value(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x)


def as_markdown(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    lines = [
        f"# Exact algebra against the plain form, fp32, {found['num_rows']:,} rows",
        "",
        (
            f"`{found['command']}` at {found['commit']}, {found['date']}:"
            f" {found['hardware']['processor']}, {found['hardware']['cores']} cores,"
        ),
        (
            f"{found['threads']} threads, torch {found['versions']['torch']}; median of"
            f" {found['num_rounds']} rounds of both forms (20 to 80 %)."
        ),
        "",
        "| computation, plain form | ours is faster by | 20 to 80 % |",
        "|---|---|---|",
    ]
    lines += [
        f"| {what} | {pair['median']:.2f} x | {pair['p20']:.2f} to {pair['p80']:.2f} |"
        for what, pair in found["pairs"].items()
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw how much faster each piece is than its plain form."""
    bars = {what: tuple(pair.values()) for what, pair in found["pairs"].items()}
    draw_bars(
        path,
        [
            Panel(
                f"fp32, {found['num_rows']:,} rows",
                "times as fast (lines: 20 to 80 % of the rounds)",
                bars,
                {"plain form": 1.0},
            )
        ],
        ours=bars,
    )
