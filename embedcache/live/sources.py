"""Where the vectors of a minibatch's rows come from: one protocol, a cached implementation, and two
live ones that serve as yardsticks.

    string ids [B] -> vectors [U, E] and each row's index into them [B]

`CachedVectors` reads what the cache holds. `PerRow` and `PerMicrobatch` encode as everybody's code
does, per row or per micro-batch; `live.LiveEncoder` encodes once per optimizer step. All four give
the same numbers with dropout off and fresh adapters.

The vectors of all strings at once exist in three states. `Cache.strings(name).embeddings` are the
frozen ones, of the encoder that built the cache. `VectorSource.vectors_of_all_strings()` are the
present ones, in the middle of a training. `fusionnet.trained.run.vectors_of_all_strings` are those
of a finished run, which also knows strings that its cache had not.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.encoder.model import StringEncoder
from embedcache.encoder.tokens import TokenTable


class RowVectors(NamedTuple):
    """The vectors of a minibatch's rows: row i has `vectors[vector_index[i]]`.

    `string_id` are the strings that were encoded, vector by vector.
    """

    vectors: Float[Tensor, "U E"]
    vector_index: Int[Tensor, " B"]
    string_id: Int[Tensor, " U"]


@runtime_checkable
class VectorSource(Protocol):
    """Where the vectors of one string column come from: `string ids [B] -> RowVectors`."""

    def begin_step(self, string_id: Int[Tensor, " B"], num_micro_batches: int) -> None:
        """Announce the rows of the next optimizer step: all micro-batches of all ranks."""

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the vectors of one micro-batch.

        Called `num_micro_batches` times a step, each time before that micro-batch's backward.
        """

    def end_step(self) -> None:
        """Check, after the last backward, that the step's whole gradient reached the encoder."""

    def vectors_of_all_strings(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of all strings, without graph (evaluation)."""


class CachedVectors:
    """Frozen vectors, read from the cache."""

    def __init__(self, embeddings: Float[Tensor, "S E"]) -> None:
        self._embeddings = embeddings
        self._all = torch.arange(len(embeddings), device=embeddings.device)

    def begin_step(self, string_id: Int[Tensor, " B"], num_micro_batches: int) -> None:
        """Nothing to prepare."""

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the whole table, indexed by string id; of fewer rows than strings each row's own.

        What is computed of vectors is then computed for the rows, not for all strings. Which of the
        two it is depends on sizes alone, so no step waits for the device.
        """
        num_rows = len(string_id)
        if num_rows >= len(self._all):
            return RowVectors(self._embeddings, string_id, self._all)
        vectors = self._embeddings.index_select(0, string_id)
        return RowVectors(vectors, self._all[:num_rows], string_id)

    def end_step(self) -> None:
        """Nothing flows back."""

    def vectors_of_all_strings(self) -> Float[Tensor, "S E"]:
        """Return the table."""
        return self._embeddings


class EncoderSource:
    """What live sources share: an encoder and the tokens of all S strings."""

    def __init__(self, encoder: StringEncoder, tokens: TokenTable) -> None:
        self.encoder = encoder
        self._tokens = tokens

    @property
    def lengths(self) -> Int[Tensor, " S"]:
        """Tokens per string, on the CPU."""
        return self._tokens.lengths

    @property
    def device(self) -> torch.device:
        """Where the tokens are, and the vectors will be."""
        return self._tokens.values.device

    def begin_step(self, string_id: Int[Tensor, " B"], num_micro_batches: int) -> None:
        """Nothing to prepare."""

    def end_step(self) -> None:
        """Nothing to check: the graph of each micro-batch reaches the encoder itself."""

    def encode(self, ids: Int[Tensor, " U"]) -> Float[Tensor, "U E"]:
        """Return the present vectors of these strings, outside of any step."""
        return self.encoder(self._tokens.take(ids))

    def vectors_of_all_strings(self) -> Float[Tensor, "S E"]:
        """Return the present vectors of all strings, encoded without graph, with dropout off."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                return self.encoder(self._tokens)
        finally:
            self.encoder.train(training)


class PerRow(EncoderSource):
    """The yardstick: each row's string encoded, whether it came before or not.

    All are padded to `pad_to` (None: to the longest of the micro-batch).
    """

    def __init__(
        self, encoder: StringEncoder, tokens: TokenTable, pad_to: int | None = None
    ) -> None:
        super().__init__(encoder, tokens)
        self._pad_to = pad_to

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Encode B strings for B rows."""
        rows = self._tokens.take(string_id)
        longest = int(rows.lengths.max()) if rows.num_strings else 1
        vectors = self.encoder(rows, pad_to=self._pad_to or longest)
        each = torch.arange(len(string_id), device=string_id.device)
        return RowVectors(vectors, each, string_id)


class PerMicrobatch(EncoderSource):
    """Distinct strings of each micro-batch: `torch.unique`, one pass, gather.

    Exact, but it pays for the encoder once per micro-batch and rank.
    """

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Encode the micro-batch's U distinct strings."""
        distinct, index = torch.unique(string_id, return_inverse=True)
        return RowVectors(self.encoder(self._tokens.take(distinct)), index, distinct)
