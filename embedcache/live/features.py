"""Features of strings behind their vectors: one table per string column, of whichever source.

What goes on from here is a string's vector, [E + K]: what the encoder makes of it, then its K
features, scaled. So whatever reads vectors of distinct strings and gathers them late does the same
with features. They are constants: the gradient of the first E alone flows back.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.live.sources import RowVectors, VectorSource


class FeaturedColumn:
    """A `VectorSource` whose vectors are those of another one, with features behind them."""

    def __init__(self, source: VectorSource, features: Float[Tensor, "S K"]) -> None:
        """`features` are scaled, on the device of the vectors."""
        self.source, self._features = source, features

    def begin_step(self, string_id: Int[Tensor, " B"], num_micro_batches: int) -> None:
        """Announce the rows of the next optimizer step."""
        self.source.begin_step(string_id, num_micro_batches)

    def read(self, string_id: Int[Tensor, " B"]) -> RowVectors:
        """Return the vectors of one micro-batch, each with its string's features."""
        read = self.source.read(string_id)
        return read._replace(vectors=self._joined(read.vectors, read.string_id))

    def end_step(self) -> None:
        """Check, after the last backward, that the step's whole gradient reached the encoder."""
        self.source.end_step()

    def vectors_of_all_strings(self) -> Float[Tensor, "S E_plus_K"]:
        """Return the present vectors of all strings, without graph, with their features."""
        return self.with_all(self.source.vectors_of_all_strings())

    def with_all(self, vectors: Float[Tensor, "S E"]) -> Float[Tensor, "S E_plus_K"]:
        """Return vectors of all strings with their features."""
        return torch.cat([vectors, self._features], dim=1)

    def _joined(
        self, vectors: Float[Tensor, "U E"], string_id: Int[Tensor, " U"]
    ) -> Float[Tensor, "U E_plus_K"]:
        return torch.cat([vectors, self._features.index_select(0, string_id)], dim=1)


def bare(source: VectorSource) -> VectorSource:
    """Return a source without the features behind its vectors."""
    return source.source if isinstance(source, FeaturedColumn) else source
