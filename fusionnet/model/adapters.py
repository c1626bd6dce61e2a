"""Adapters from strings and numbers to the fusion (specification, 4.2.2 to 4.2.4).

Rows of one string are identical until the first dropout that is drawn per row. What comes before it
is computed on the U distinct strings and gathered afterwards; in evaluation nothing is drawn, and
the gather comes last.

Axes: B rows, U distinct strings, E encoder width, I the hidden width of an adapter, W the width
that it gives, F numeric features, D fusion width, T tasks.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from embedcache.encoder.add_norm import LayerNorm
from embedcache.encoder.dropout import Dropout
from embedcache.kernels import has_kernels
from embedcache.scaling import VectorScaling
from fusionnet.kernels import gather_dropout
from fusionnet.model.embeddings import Periodic, PiecewiseLinear
from fusionnet.model.linear import Linear


class StringAdapter(nn.Module):
    """E -> hidden -> width, each with LayerNorm and GELU, one dropout between them.

    `scaling` standardises the vectors before, by constants.
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
        mean = torch.tensor(scaling.mean) if scaling else torch.zeros(vector_width)
        inverse_std = torch.ones(vector_width)
        if scaling:  # on the CPU: see `drawn`
            inverse_std.copy_(1 / torch.tensor(scaling.std, device="cpu"))
        self.register_buffer("mean", mean)
        self.register_buffer("inverse_std", inverse_std)
        self.first = nn.Sequential(Linear(vector_width, hidden), LayerNorm(hidden), nn.GELU())
        self.dropout = Dropout(dropout)
        self.second = nn.Sequential(Linear(hidden, width), LayerNorm(width), nn.GELU())

    @property
    def draws_per_row(self) -> bool:
        """Whether rows of one string differ after this adapter."""
        return self.training and self.dropout.p > 0

    def forward(
        self, vectors: Float[Tensor, "U E"], string_id: Int[Tensor, " B"]
    ) -> Float[Tensor, "B W"]:
        """Return one adapted vector per row, gathered as late as dropout allows."""
        hidden = self._hidden(vectors)
        if not self.draws_per_row:
            return self.second(hidden).index_select(0, string_id)
        if has_kernels(hidden):
            return self.second(gather_dropout(hidden, string_id, self.dropout.p))
        return self.second(self.dropout(hidden.index_select(0, string_id)))

    def distinct(self, vectors: Float[Tensor, "U E"]) -> Float[Tensor, "U W"]:
        """Return one adapted vector per distinct string; only where nothing is drawn per row."""
        assert not self.draws_per_row
        return self.second(self._hidden(vectors))

    def _hidden(self, vectors: Float[Tensor, "U E"]) -> Float[Tensor, "U I"]:
        standardised = (vectors.float() - self.mean) * self.inverse_std
        # fp16 training casts weights, and leaves buffers as they are
        return self.first(standardised.to(self.first[0].weight.dtype))


class NumericEncoder(nn.Sequential):
    """F -> hidden -> width, each with LayerNorm and ReLU, one dropout between them."""

    def __init__(self, num_features: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__(
            Linear(num_features, hidden),
            LayerNorm(hidden),
            nn.ReLU(),
            Dropout(dropout),
            Linear(hidden, width),
            LayerNorm(width),
            nn.ReLU(),
        )

    def forward(self, features: Float[Tensor, "B _"]) -> Float[Tensor, "B W"]:
        """Return the encoding of each row's features; they are cast to the weights' dtype."""
        return super().forward(features.to(self[0].weight.dtype))


class NumericGroups(nn.ModuleList):
    """One encoder per group of numeric features, and the noise that training adds to features.

    Groups come in the order of their first feature; `names` are theirs.
    """

    feature_order: Tensor  # [F]: features group by group
    noise: Tensor | None  # [F]: standard deviations

    def __init__(
        self,
        groups: Sequence[str],
        noise: Sequence[float],
        hidden: int,
        width: int,
        dropout: float,
        embedding_width: int = 1,
    ) -> None:
        """`groups` and `noise` have one entry per feature, of which an embedding makes several."""
        members: dict[str, list[int]] = {}
        for feature, name in enumerate(groups):
            members.setdefault(name, []).append(feature)
        sizes = [len(features) for features in members.values()]
        super().__init__(
            NumericEncoder(size * embedding_width, hidden, width, dropout) for size in sizes
        )
        self.names = list(members)
        self._sizes = sizes
        order = [feature for features in members.values() for feature in features]
        self.register_buffer(
            "feature_order", torch.tensor(order, dtype=torch.int64), persistent=False
        )
        self.register_buffer("noise", torch.tensor(noise) if any(noise) else None, persistent=False)

    @property
    def features_of_groups(self) -> list[list[int]]:
        """The numbers of the features of each group."""
        return [part.tolist() for part in self.feature_order.split(self._sizes)]

    def forward(
        self,
        features: Float[Tensor, "B F"],
        embedding: PiecewiseLinear | Periodic | None = None,
    ) -> list[Float[Tensor, "B W"]]:
        """Return each group's encoding of the features, or of what the embedding makes of them."""
        if self.training and self.noise is not None:
            features = features + torch.randn_like(features) * self.noise
        parts = features if embedding is None else embedding(features)
        groups = parts.index_select(1, self.feature_order).split(self._sizes, dim=1)
        return [encoder(group.flatten(1)) for encoder, group in zip(self, groups, strict=True)]


class LinearSkip(nn.Linear):
    """F -> T without bias, zero at first: training starts from the network alone."""

    def __init__(self, num_features: int, num_tasks: int) -> None:
        super().__init__(num_features, num_tasks, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B T"]:
        """Return what is added to the heads' outputs."""
        return super().forward(features.to(self.weight.dtype))
