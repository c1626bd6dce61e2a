"""What an encoder is pre-trained to tell: masked tokens, and ranks of a string's properties.

The encoder runs on strings laid end to end, as in encoding (`embedcache.encoder.deberta.packed`):
tokens see those of their own string alone, and nothing is padded but attention. Each objective is a
sum over what all ranks tell in a step, divided by its count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DebertaV2Model

from embedcache.encoder.deberta.packed import embed, mean_over_tokens, run_layers
from embedcache.encoder.deberta.projection import CastWeights
from fusionnet.pretrain.packing import Share

Objective = Literal["mlm", "ranks", "both"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


class Told(NamedTuple):
    """What a model told of some strings: the loss, and its parts as sums over tokens or strings."""

    loss: Float[Tensor, ""]
    token_loss: Float[Tensor, ""]  # summed over masked tokens
    num_right: Float[Tensor, ""]  # masked tokens that were guessed
    rank_loss: Float[Tensor, ""]  # squared error of a mean rank, summed over strings


class PretrainedModel(nn.Module):
    """An encoder with the heads of its objectives, which are left behind when it is written."""

    def __init__(
        self, encoder: DebertaV2Model, objective: Objective, num_ranks: int, precision: str
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True).eval()  # no dropout: few passes over a string
        self.objective = objective
        self.precision = precision
        width = encoder.config.hidden_size
        self.token_head = self.rank_head = None
        if objective != "ranks":
            self.token_head = TokenHead(width, encoder.config.vocab_size)
        if objective != "mlm":
            self.rank_head = nn.Linear(width, num_ranks)
        self._casts = CastWeights()

    def forward(self, share: Share) -> Told:
        """Return what is told of a share of a step; dividing by counts makes shares add up."""
        with self._autocast(share.values.device):
            states = embed(self.encoder, share.values, share.packing)
            num_layers = self.encoder.config.num_hidden_layers
            states = run_layers(self.encoder, self._casts, states, share.packing, 0, num_layers)
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        token_loss = num_right = rank_loss = states.new_zeros(())
        if self.token_head is not None:
            words = self.encoder.embeddings.word_embeddings.weight
            logits = self.token_head(states[share.places], words)
            token_loss = F.cross_entropy(logits, share.targets, reduction="sum")
            num_right = (logits.detach().argmax(1) == share.targets).float().sum()
        if self.rank_head is not None:
            found = self.rank_head(mean_over_tokens(states, share.packing))
            is_known = share.ranks.isfinite()
            error = torch.where(is_known, found - share.ranks.nan_to_num(), 0.0).square()
            rank_loss = (error.sum(1) / is_known.sum(1).clamp_min(1)).sum()
        loss = token_loss / share.num_targets + rank_loss / share.num_ranked
        return Told(loss, token_loss.detach(), num_right, rank_loss.detach())

    @contextmanager
    def _autocast(self, device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield


class TokenHead(nn.Module):
    """BERT's head: a layer, then scores by the embeddings of the tokens."""

    def __init__(self, width: int, num_ids: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(num_ids))

    def forward(
        self, states: Float[Tensor, "M E"], words: Float[Tensor, "V E"]
    ) -> Float[Tensor, "M V"]:
        """Return a score of each token id."""
        return F.linear(self.norm(F.gelu(self.dense(states))), words, self.bias)
