"""Encode each distinct string once per optimizer step, with exact gradients.

For the rows of one optimizer step (all micro-batches of all ranks) the loss depends on the encoder's weights only through V [U, E], the vectors of
the step's distinct strings. So

1. V = encode(distinct strings), with graph, at the start of the step;
2. every micro-batch but the last reads a detached leaf V', whose `.grad` accumulates dL/dV';
3. the last micro-batch reads V itself, and its loss gets the surrogate <V, dL/dV' accumulated so far>, whose gradient with respect to V is just
   that sum. One backward then runs through the encoder.

Why not `V.backward(V'.grad)` after the last micro-batch: engines such as DeepSpeed reduce gradients in hooks of the backward they are told about;
a second backward of the same micro-batch loses gradients under ZeRO-2. Riding on the last loss needs nothing from the engine.

Mind the engine's own scaling: the leaf's gradient carries whatever factor the engine puts on a loss (1 / accumulation steps, the fp16 loss scale), and
the surrogate would get it a second time. `surrogate(unscale)` takes that factor out.

GradCache (Gao et al. 2021) is the same identity for contrastive batches without duplicates; here it meets deduplication, which is where the gain is.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder import StringEncoder
from embedcache.errors import UnfinishedStepError
from embedcache.tokens import TokenTable


class RowVectors(NamedTuple):
    """The vectors of a minibatch's rows: row i has `vectors[index[i]]`."""

    vectors: Float[Tensor, "U E"]
    index: Int[Tensor, " B"]


@runtime_checkable
class VectorSource(Protocol):
    """Where the vectors of one string column come from: `string ids [B] -> RowVectors`."""

    def begin_step(self, string_id: Int[Tensor, " R"], num_micro_batches: int) -> None:
        """Announce the rows of the next optimizer step: all micro-batches of all ranks."""

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the vectors of one micro-batch; called `num_micro_batches` times a step."""

    def surrogate(self, unscale: float) -> Float[Tensor, ""] | None:
        """Return what the last micro-batch's loss must be added, or None."""

    def table(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of all strings, without graph (evaluation)."""


class CachedVectors:
    """Frozen vectors, read from the cache."""

    def __init__(self, embeddings: Float[Tensor, "S E"]) -> None:
        self._embeddings = embeddings

    def begin_step(self, string_id: Int[Tensor, " R"], num_micro_batches: int) -> None:
        """Nothing to prepare."""

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the whole table, indexed by string id."""
        return RowVectors(self._embeddings, string_id)

    def surrogate(self, unscale: float) -> None:
        """Nothing flows back."""
        return None

    def table(self) -> Float[Tensor, "S E"]:
        """Return the table."""
        return self._embeddings


class _Live:
    """What the encoding modes share: an encoder and the tokens of all S strings."""

    def __init__(self, encoder: StringEncoder, tokens: TokenTable) -> None:
        self._encoder = encoder
        self._tokens = tokens

    def begin_step(self, string_id: Int[Tensor, " R"], num_micro_batches: int) -> None:
        """Nothing to prepare."""

    def surrogate(self, unscale: float) -> Float[Tensor, ""] | None:
        """Nothing to add: the graph of each micro-batch reaches the encoder itself."""
        return None

    def table(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of all strings, encoded without graph, with dropout off."""
        training = self._encoder.training
        self._encoder.eval()
        try:
            with torch.no_grad():
                return self._encoder(self._tokens)
        finally:
            self._encoder.train(training)


class PerRow(_Live):
    """The yardstick: tokenised string after tokenised string, each row encoded alone, padded to `pad_to` (None: to the longest of the micro-batch)."""

    def __init__(self, encoder: StringEncoder, tokens: TokenTable, pad_to: int | None = None) -> None:
        super().__init__(encoder, tokens)
        self._pad_to = pad_to

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Encode B strings for B rows."""
        rows = self._tokens.take(string_id)
        longest = int(rows.lengths.max()) if rows.num_strings else 1
        vectors = self._encoder(rows, pad_to=self._pad_to or longest)
        return RowVectors(vectors, torch.arange(len(string_id), device=string_id.device))


class PerMicrobatch(_Live):
    """Distinct strings of each micro-batch: `torch.unique`, one pass, gather. Exact, but it pays the encoder once per micro-batch and rank."""

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Encode the micro-batch's U distinct strings."""
        distinct, index = torch.unique(string_id, return_inverse=True)
        return RowVectors(self._encoder(self._tokens.take(distinct)), index)


class LiveEncoder(_Live):
    """One pass per distinct string and optimizer step; see the module's docstring.

    For any loop that calls `backward` once per micro-batch:

        live = LiveEncoder(encoder, tokens)
        for rows in steps:                                      # all rows of one optimizer step
            live.begin_step(string_id[rows], num_micro_batches=4)
            for micro in rows.chunk(4):
                vectors, index = live.read(string_id[micro])
                loss = loss_of(vectors[index], micro)
                surrogate = live.surrogate()                    # None but in the last micro-batch
                (loss if surrogate is None else loss + surrogate).backward()
            optimizer.step()

    A step whose gradient did not reach the encoder raises UnfinishedStepError when the next one begins.
    """

    def __init__(self, encoder: StringEncoder, tokens: TokenTable) -> None:
        super().__init__(encoder, tokens)
        self._distinct: Int[Tensor, " U"] | None = None
        self._vectors: Float[Tensor, "U E"] | None = None
        self._leaf: Float[Tensor, "U E"] | None = None
        self._unread = 0
        self._arrived = True

    def begin_step(self, string_id: Int[Tensor, " R"], num_micro_batches: int) -> None:
        """Encode the distinct strings among the step's rows, with graph."""
        if not self._arrived:
            raise UnfinishedStepError(
                "the last step's gradient never reached the encoder: read() every announced micro-batch, add surrogate() to the last one's loss, call backward"
            )
        self._distinct = torch.unique(string_id)
        self._vectors = self._encoder(self._tokens.take(self._distinct))
        self._leaf = self._vectors.detach().requires_grad_() if num_micro_batches > 1 else None
        self._unread = num_micro_batches
        self._arrived = False
        self._vectors.register_hook(self._note_arrival)

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the step's vectors and each row's place among them: the leaf, or in the last micro-batch V itself."""
        if self._distinct is None or self._unread == 0:
            raise UnfinishedStepError("read() was called more often than begin_step() announced micro-batches")
        self._unread -= 1
        vectors = self._vectors if self._unread == 0 else self._leaf
        assert vectors is not None
        return RowVectors(vectors, torch.searchsorted(self._distinct, string_id.contiguous()))

    def surrogate(self, unscale: float = 1.0) -> Float[Tensor, ""] | None:
        """Return <V, dL/dV'> times `unscale` after the last read(), None before it or when there was one micro-batch only.

        `unscale` is the inverse of the factor that the training engine puts on every loss.
        """
        if self._unread > 0 or self._leaf is None or self._leaf.grad is None:
            return None
        assert self._vectors is not None
        gradient, self._leaf = self._leaf.grad, None
        return (self._vectors * gradient).sum() * unscale

    def abandon_step(self) -> None:
        """Forget the present step, after an error or an interrupted epoch."""
        self._arrived = True
        self._unread = 0

    def _note_arrival(self, gradient: Tensor) -> None:
        if self._leaf is not None and self._leaf.grad is not None:
            raise UnfinishedStepError("surrogate() was not added to the last micro-batch's loss: the other micro-batches' gradient would be lost")
        self._arrived = True
