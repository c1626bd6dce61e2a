"""Columns that share an encoder: a string is encoded once per step for all of them, and the
gradient is that of encoding every cell alone.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable, shared_strings
from embedcache.errors import UnfinishedStepError
from embedcache.live.shared import (
    SharedColumn,
    live_encoders,
    shared_columns,
    vectors_of_all_columns,
)
from embedcache.live.step import LiveEncoder

COLUMNS = [
    ["[*]CC[*]", "[*]CCO[*]", "[*]CC([*])C"],
    ["[*]CCO[*]", "[*]CC([*])c1ccccc1"],
    ["[*]CC([*])C", "[*]CC[*]", "[*]CCO[*]", "[*]c1ccc([*])[nH]1"],
]
NUM_DISTINCT = 5
ROWS = torch.stack([torch.arange(12) % len(column) for column in COLUMNS], dim=1)


class Shared:
    """An encoder with LoRA whose weights are no zeros, and the columns that share it."""

    def __init__(
        self, folder: Path, columns: Sequence[list[str]] = COLUMNS, **options: int
    ) -> None:
        torch.manual_seed(0)  # LoRA is drawn
        config = EncoderConfig(source=str(folder))
        self.encoder = load_encoder(config)
        add_lora(self.encoder, LoraConfig(dropout=0.0))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.trained():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.encoder.train()
        self.tables = [
            tokenize(load_tokenizer(config), column, 64, self.encoder.num_ids).tokens
            for column in columns
        ]
        tokens, ids = shared_strings(columns, self.tables)
        self.live = LiveEncoder(self.encoder, tokens, memory_bytes=options.get("memory_bytes"))
        self.columns = shared_columns(self.live, ids)

    def trained(self) -> list[Tensor]:
        return [each for each in self.encoder.parameters() if each.requires_grad]

    def step(self, rows: Int[Tensor, "N C"], num_micro_batches: int = 2) -> list[Tensor]:
        """Take a step as training does and return the gradients of the encoder."""
        for column, source in enumerate(self.columns):
            source.begin_step(rows[:, column], num_micro_batches)
        for part in rows.chunk(num_micro_batches):
            read = [source.read(part[:, c]) for c, source in enumerate(self.columns)]
            loss([each.vectors[each.vector_index] for each in read], part).backward()
        for source in self.columns:
            source.end_step()
        return self.taken()

    def alone(self, rows: Int[Tensor, "N C"]) -> list[Tensor]:
        """Return the gradients where every cell is encoded for itself."""
        for part in rows.chunk(2):
            vectors = [self.encoder(t.take(part[:, c])) for c, t in enumerate(self.tables)]
            loss(vectors, part).backward()
        return self.taken()

    def taken(self) -> list[Tensor]:
        gradients = [each.grad for each in self.trained()]
        for each in self.trained():
            each.grad = None
        return [each for each in gradients if each is not None]


def loss(vectors: Sequence[Float[Tensor, "B E"]], rows: Int[Tensor, "B C"]) -> Tensor:
    """Return something to which each cell's vector matters in a way of its own."""
    weights = 1.0 + rows.float() + torch.arange(rows.shape[1])
    return (
        sum((weights[:, c : c + 1] * each.sin() * each).sum() for c, each in enumerate(vectors))
        + vectors[0].mul(vectors[-1]).sum()
    )


@pytest.fixture
def shared(tiny_encoder_folder: Path) -> Shared:
    return Shared(tiny_encoder_folder)


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("num_micro_batches", [1, 2, 3])
def test_gradients_are_those_of_every_cell_alone(shared: Shared, num_micro_batches: int) -> None:
    for rows in (ROWS, ROWS[:1], ROWS[3:8]):
        wanted = shared.alone(rows)
        assert_same(shared.step(rows, min(num_micro_batches, len(rows))), wanted)


def test_strings_that_every_step_has_give_the_same_gradients(shared: Shared) -> None:
    rows = ROWS[:2]  # they lack strings
    wanted = shared.step(rows)
    for column, source in enumerate(shared.columns):
        source.fix_strings(ROWS[:, column].unique())
    assert_same(shared.step(rows), wanted)


def test_the_encoder_reads_each_string_once(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = StringEncoder.forward

    def counted(self: StringEncoder, tokens: TokenTable, pad_to: int | None = None) -> Tensor:
        encoded.append(tokens.num_strings)
        return forward(self, tokens, pad_to)

    shared.live.measure()
    monkeypatch.setattr(StringEncoder, "forward", counted)
    shared.step(ROWS)
    assert encoded == [NUM_DISTINCT]
    shared.step(ROWS[:1], 1)  # [*]CC[*], [*]CCO[*], [*]CC([*])C
    assert encoded == [NUM_DISTINCT, 3]
    encoded.clear()
    tables = vectors_of_all_columns(shared.columns)
    assert encoded == [NUM_DISTINCT]
    for table, source in zip(tables, shared.columns, strict=True):
        assert torch.equal(table, source.vectors_of_all_strings())


def test_in_bounded_memory_too(tiny_encoder_folder: Path, shared: Shared) -> None:
    bounded = Shared(tiny_encoder_folder, memory_bytes=1 << 14)
    assert_same(bounded.step(ROWS), shared.step(ROWS))


def test_dozens_of_columns(tiny_encoder_folder: Path) -> None:
    texts = [text for column in COLUMNS for text in column]
    columns = [sorted({texts[(k + shift) % len(texts)] for shift in range(4)}) for k in range(40)]
    many = Shared(tiny_encoder_folder, columns)
    rows = torch.stack([torch.arange(9) % len(column) for column in columns], dim=1)
    wanted = many.alone(rows)
    assert_same(many.step(rows), wanted)


def test_what_is_read_names_the_columns_own_strings(shared: Shared) -> None:
    for column, source in enumerate(shared.columns):
        source.begin_step(ROWS[:, column], 1)
    for column, source in enumerate(shared.columns):
        found = source.read(ROWS[:, column])
        assert torch.equal(found.string_id[found.vector_index], ROWS[:, column])
        assert len(found.vectors) == len(COLUMNS[column])  # and none of the others
        source.abandon_step()


def test_a_string_that_was_not_announced_is_refused(shared: Shared) -> None:
    for column, source in enumerate(shared.columns):
        source.begin_step(ROWS[:1, column], 1)
    with pytest.raises(UnfinishedStepError, match="was not told of"):
        shared.columns[0].read(ROWS[1:2, 0])


def test_a_step_whose_gradient_is_lost_is_refused(shared: Shared) -> None:
    for column, source in enumerate(shared.columns):
        source.begin_step(ROWS[:, column], 2)
    for column, source in enumerate(shared.columns):
        source.read(ROWS[:, column])
    *first, last = shared.columns
    for source in first:
        source.end_step()
    with pytest.raises(UnfinishedStepError, match="never reached the encoder"):
        last.end_step()


def test_encoders_behind_columns_are_told_apart(shared: Shared, tiny_encoder_folder: Path) -> None:
    other = LiveEncoder.from_strings(COLUMNS[0], EncoderConfig(source=str(tiny_encoder_folder)))
    sources = [shared.columns[0], other, *shared.columns[1:]]
    rows = ROWS[:, [0, 0, 1, 2]]
    (first, of_first), (second, of_second) = live_encoders(sources, rows)
    assert (first, second) == (shared.live, other)
    assert torch.equal(of_second, rows[:, 1:2])
    assert of_first.shape == (12, 3)
    assert len(of_first.unique()) == NUM_DISTINCT
    assert all(isinstance(each, SharedColumn) for each in shared.columns)
    for column, source in enumerate(shared.columns):
        assert torch.equal(source.lengths, shared.tables[column].lengths)
