"""Encode each distinct string once per optimizer step, with exact gradients.

For the rows of one optimizer step (all micro-batches of all ranks) the loss depends on the
encoder's weights only through V [U, E], the vectors of the step's distinct strings. So

1. V = encode(distinct strings), with graph, at the start of the step;
2. micro-batches read a detached leaf V', whose `.grad` accumulates dL/dV';
3. one backward runs through the encoder, with the gradient of all micro-batches.

Who runs it is the difference between two ways of use. In a plain PyTorch or DDP loop, `with
live.step(ids)` runs it when the block ends. Engines such as DeepSpeed reduce gradients in hooks of
the backward that they are told about, and lose gradients of a second one under ZeRO-2; there
`begin_step` announces the number of micro-batches, the last of them reads V itself, and a hook on V
adds what the others have accumulated to the gradient that passes. Nothing else is asked of the
engine: whatever factor it puts on losses (1 / accumulation steps, the fp16 loss scale) is on both
parts alike.

Steps with so many strings that their activations would not fit are encoded in two passes of bounded
memory (`bounded`); ranks may share the strings (`sharding`). Neither changes a gradient. A gradient
that would be lost is an UnfinishedStepError.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.cache.reader import Cache
from embedcache.config.encoder import EncoderConfig, LoraConfig, Sharding
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import StaleCacheError, UnfinishedStepError
from embedcache.live.arrival import Arrival, refuse_unannounced
from embedcache.live.bounded import Budget, encode_bounded, measure_budget
from embedcache.live.fixed import FixedStrings, why_not
from embedcache.live.sharding import average_gradients, distinct_of_all_ranks, encode_shared
from embedcache.live.sources import EncoderSource, RowVectors


@dataclass(frozen=True)
class _Step:
    """One optimizer step between its first encoding and the arrival of its gradient."""

    distinct: Int[Tensor, " U"]
    vectors: Float[Tensor, "U E"]  # V, with graph
    arrival: Arrival

    def refuse_unfinished(self, which: str) -> None:
        """Raise if the step's gradient has not gone into the encoder."""
        if self.arrival.complete or not self.vectors.requires_grad:
            return
        if self.arrival.announced is None:
            wanted = "leave its `with` block or call end_step()"
        else:
            wanted = "read every announced micro-batch and call backward on each loss"
        raise UnfinishedStepError(
            f"the gradient of {which} never reached the encoder: {wanted}, or abandon_step()"
        )


class LiveEncoder(EncoderSource):
    """The vectors of S strings, encoded once per optimizer step.

    The module's docstring says how, the one of `embedcache` has a whole example.

    Plain PyTorch, or DDP around the rest of the model with `group=dist.group.WORLD`:

        for rows in steps:  # this rank's rows of one optimizer step
            with live.step(string_id[rows]):
                for micro in rows.split(512):
                    loss_of(live.vectors(string_id[micro]), micro).backward()
            optimizer.step()

    Engines that reduce gradients themselves; `string_id[rows]` are the rows of all ranks:

        live.begin_step(string_id[rows], num_micro_batches=4)
        for micro in own_rows.chunk(4):
            engine.backward(loss_of(live.vectors(string_id[micro]), micro))
            engine.step()
        live.end_step()
    """

    def __init__(
        self,
        encoder: StringEncoder,
        tokens: TokenTable,
        sharding: Sharding = "replicate",
        group: dist.ProcessGroup | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Take an encoder with adapters and the tokens of all strings, on one device.

        `group` are the ranks that `sharding="shard"` shares strings among, and whose mean gradient
        `step` leaves; one process needs none. `memory_bytes` bounds the activations of a step's
        encoding (None: see `bounded.measure_budget`); more strings than that are encoded in two
        passes.
        """
        super().__init__(encoder, tokens)
        assert sharding == "replicate" or group is not None, (
            "sharding needs the group of ranks that share the strings"
        )
        self._sharding = sharding
        self._group = group
        self._memory_bytes = memory_bytes
        self._budget: Budget | None = None
        self._step: _Step | None = None
        self._fixed: FixedStrings | None = None

    @classmethod
    def from_cache(
        cls,
        cache: Cache,
        name: str,
        lora: LoraConfig | None = None,
        source: str | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> "LiveEncoder":
        """Return the live encoder of a cache's string column, with fresh LoRA.

        String ids are those of `cache.rows().string_id`. `source` says where the encoder lies now,
        if not where the cache was built; `options` are the constructor's. Raises StaleCacheError if
        it is another encoder or tokenizer.
        """
        strings = cache.strings(name, with_states=True)
        spec = next(spec for spec in cache.layout.strings if spec.name == name)
        config = spec.encoder
        if source is not None:
            config = config.model_copy(update={"source": source})
        if encoding_key(config) != spec.encoding:
            raise StaleCacheError(
                f"{config.source} is not the encoder that {cache.path} was built with: its weights,"
                " tokenizer or pooling differ"
            )
        lora = lora or config.lora
        tokens = strings.tokens
        if spec.prefix_layer != lora.first_layer:  # the cached states enter another layer
            tokens = TokenTable(tokens.values, tokens.offsets)
        return cls(_adapted(config, lora, device), tokens.to(device), **options)

    @classmethod
    def from_strings(
        cls,
        strings: Sequence[str],
        config: EncoderConfig,
        lora: LoraConfig | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> "LiveEncoder":
        """Return a live encoder of these distinct strings, without a cache.

        A string's id is its index among them. Strings are tokenised as they are;
        `table.psmiles.prepare_string` checks and normalises PSMILES. `options` are the
        constructor's. Raises TokenizerError for a string that is too long.
        """
        encoder = _adapted(config, lora or config.lora, device)
        tokens, _ = tokenize(load_tokenizer(config), strings, encoder.max_length, encoder.num_ids)
        return cls(encoder, tokens.to(device), **options)

    @property
    def width(self) -> int:
        """E."""
        return self.encoder.width

    @property
    def budget(self) -> Budget | None:
        """What was measured of the encoder's memory at the first step, None before it."""
        return self._budget

    def measure(self) -> Budget:
        """Return what fits into memory; it is measured once, by the first step or by this.

        Call it as steps will be called, under the same autocast.
        """
        if self._budget is None:
            self._budget = measure_budget(self.encoder, self._tokens, self._memory_bytes)
        return self._budget

    def why_not_fixed(self, string_id: Int[Tensor, " U"]) -> str | None:
        """Return what forbids `fix_strings` for these strings, or None; measures memory once."""
        if self._sharding == "shard":
            return "ranks share the strings (encoder.encode_sharding)"
        return why_not(self.encoder, self._tokens.take(string_id), self.measure().max_tokens)

    def fix_strings(self, string_id: Int[Tensor, " U"]) -> None:
        """Encode these distinct strings in every step from now on, whichever its rows have.

        A string that a step's rows lack gets a zero gradient. That the rows have no other strings
        is the caller's to know. Call it as steps will be called, under the same autocast.
        """
        assert self.why_not_fixed(string_id) is None
        self._fixed = FixedStrings.of(self.encoder, self._tokens, string_id)

    @contextmanager
    def step(self, string_id: Int[Tensor, " B"]) -> Iterator["LiveEncoder"]:
        """Encode the distinct strings among this rank's rows of a step, once for the whole block.

        When the block ends, the gradient of its backward passes is sent into the encoder. With a
        group, the encoder's gradients are then the mean over its ranks, as DDP leaves them;
        enter and leave the block on every rank.
        """
        self.begin_step(string_id)
        try:
            yield self
        except BaseException:
            self.abandon_step()
            raise
        self.end_step()

    def begin_step(
        self, string_id: Int[Tensor, " B"], num_micro_batches: int | None = None
    ) -> None:
        """Encode the distinct strings among the step's rows, with graph.

        `num_micro_batches`, where an engine runs all backward passes: how often this rank will
        read; `string_id` are then the rows of all ranks.
        """
        if self._step is not None:
            self._step.refuse_unfinished("the last step")
        max_tokens = self.measure().max_tokens
        if self._fixed is not None:
            distinct, vectors = self._fixed.distinct, self._fixed.encode(self.encoder)
        elif self._sharding == "shard":
            assert self._group is not None
            distinct = distinct_of_all_ranks(string_id, self._tokens.num_strings, self._group)
            tokens = self._tokens.take(distinct)
            vectors = encode_shared(self.encoder, tokens, max_tokens, self._group)
        else:
            distinct = torch.unique(string_id)
            vectors = encode_bounded(self.encoder, self._tokens.take(distinct), max_tokens)
        arrival = Arrival(vectors.detach().requires_grad_(), num_micro_batches)
        if num_micro_batches is not None and vectors.requires_grad:
            vectors.register_hook(arrival.whole)
        self._step = _Step(distinct, vectors, arrival)

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the step's vectors [U, E] and each row's index into them.

        Call it before the backward pass of each micro-batch.
        """
        step = self._step
        if step is None:
            raise UnfinishedStepError(
                "read() outside a step: call begin_step(), or use `with live.step(...)`"
            )
        arrival = step.arrival
        if arrival.announced is not None and len(arrival.arrived) == arrival.announced:
            raise UnfinishedStepError(
                f"read() was called more often than the {arrival.announced} times that"
                " begin_step() announced"
            )
        if self._fixed is not None:
            index = self._fixed.index[string_id]
        else:
            index = torch.searchsorted(step.distinct, string_id.contiguous())
            index = index.clamp_max(len(step.distinct) - 1)
            refuse_unannounced(step.distinct, index, string_id)
        if not torch.is_grad_enabled():  # evaluation: no gradient will come
            return RowVectors(arrival.leaf, index, step.distinct)
        is_last = len(arrival.arrived) + 1 == arrival.announced
        # the engine's one pass through the encoder rides on the last micro-batch
        vectors = step.vectors if is_last else arrival.leaf
        return RowVectors(arrival.watched(vectors), index, step.distinct)

    def vectors(self, string_id: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Return one vector per row.

        `read` is the same before the rows are spread out, for those who can go on with distinct
        strings.
        """
        vectors, index, _ = self.read(string_id)
        return vectors.index_select(0, index)

    def end_step(self) -> None:
        """Run the encoder's backward pass, unless an engine has.

        Raises UnfinishedStepError if a gradient of the step is missing; the step is over then too.
        """
        step, self._step = self._step, None  # over, also where a gradient is missing
        if step is None:
            raise UnfinishedStepError("end_step() without begin_step()")
        if step.arrival.announced is None:
            self._send(step)
        step.refuse_unfinished("this step")

    def abandon_step(self) -> None:
        """Forget the present step, after an error or an interrupted epoch."""
        self._step = None

    def vectors_of_all_strings(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of all strings, encoded without graph, with dropout off."""
        if self._step is not None:
            self._step.refuse_unfinished("the last step")
        return super().vectors_of_all_strings()

    def _send(self, step: _Step) -> None:
        """Send the accumulated gradient into the encoder, and average over ranks what it gives."""
        step.arrival.refuse_missing()
        gradient = step.arrival.leaf.grad
        if gradient is None and self._group is None:
            raise UnfinishedStepError(
                "no gradient arrived in this step: call vectors() or read() and backward()"
                " inside it"
            )
        step.vectors.backward(torch.zeros_like(step.vectors) if gradient is None else gradient)
        if self._group is not None:
            trained = [each for each in self.encoder.parameters() if each.requires_grad]
            average_gradients(trained, self._group)
        step.arrival.complete = True


def _adapted(config: EncoderConfig, lora: LoraConfig, device: torch.device | str) -> StringEncoder:
    """Return the encoder with fresh LoRA, in training mode."""
    encoder = load_encoder(config)
    add_lora(encoder, lora)
    return encoder.to(device).train()
