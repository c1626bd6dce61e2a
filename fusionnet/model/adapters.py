"""Adapters from each modality to the fusion: strings, numbers, categories (specification, 4.2.2 to
4.2.4).

Rows of one string are identical until the first dropout that is drawn per row. What comes before it
is computed on the U distinct strings and gathered afterwards; in evaluation nothing is drawn, and
the gather comes last.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from embedcache.encoder.dropout import Dropout
from embedcache.scaling import VectorScaling
from fusionnet.kernels import gather_dropout, has_kernels


class StringAdapter(nn.Module):
    """E -> hidden -> width, each with LayerNorm and GELU, one dropout between them; `scaling`
    standardises the vectors before, by constants.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(
        self,
        vector_width: int,
        hidden: int,
        width: int,
        dropout: float,
        scaling: VectorScaling | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer(
            "mean", torch.tensor(scaling.mean) if scaling else torch.zeros(vector_width)
        )
        self.register_buffer(
            "inverse_std", 1 / torch.tensor(scaling.std) if scaling else torch.ones(vector_width)
        )
        self.first = nn.Sequential(nn.Linear(vector_width, hidden), nn.LayerNorm(hidden), nn.GELU())
        self.dropout = Dropout(dropout)
        self.second = nn.Sequential(nn.Linear(hidden, width), nn.LayerNorm(width), nn.GELU())

    @property
    def draws_per_row(self) -> bool:
        """Whether rows of one string differ after this adapter."""
        return self.training and self.dropout.p > 0

    def forward(
        self, vectors: Float[Tensor, "U E"], string_id: Int[Tensor, " B"]
    ) -> Float[Tensor, "B W"]:
        """Return one adapted vector per row, gathered as late as dropout allows."""
        hidden = self._first_hidden(vectors)
        if self.draws_per_row:
            return self.second(
                gather_dropout(hidden, string_id, self.dropout.p)
                if has_kernels(hidden)
                else self.dropout(hidden.index_select(0, string_id))
            )
        return self.second(hidden).index_select(0, string_id)

    def distinct(self, vectors: Float[Tensor, "U E"]) -> Float[Tensor, "U W"]:
        """Return one adapted vector per distinct string; only where nothing is drawn per row."""
        assert not self.draws_per_row
        return self.second(self._first_hidden(vectors))

    def _first_hidden(self, vectors: Float[Tensor, "U E"]) -> Float[Tensor, "U H"]:
        standardised = (vectors.float() - self.mean) * self.inverse_std
        # fp16 training casts weights, and leaves buffers as they are
        return self.first(standardised.to(self.first[0].weight.dtype))


class NumericEncoder(nn.Sequential):
    """F -> hidden -> width, each with LayerNorm and ReLU, one dropout between them."""

    def __init__(self, num_features: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(num_features, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(hidden, width),
            nn.LayerNorm(width),
            nn.ReLU(),
        )


class LinearSkip(nn.Linear):
    """F -> T without bias, zero at first: training starts from the network alone."""

    def __init__(self, num_features: int, num_tasks: int) -> None:
        super().__init__(num_features, num_tasks, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B T"]:
        """Return what is added to the heads' outputs."""
        return super().forward(features.to(self.weight.dtype))


def drop_heads(hidden: Float[Tensor, "B D"], num_heads: int, p: float) -> Float[Tensor, "B D"]:
    """Drop whole heads of each row with probability p and scale the others by 1 / (1 - p):
    attention dropout over a single key.
    """
    keep = (
        torch.empty(len(hidden), num_heads, 1, dtype=hidden.dtype, device=hidden.device)
        .bernoulli_(1 - p)
        .div_(1 - p)
    )
    return (hidden.unflatten(1, (num_heads, -1)) * keep).flatten(1)
