"""A Hugging Face encoder that turns ragged tokens into one vector per string.

Strings are sorted by length and encoded in batches chosen so that the padded tokens plus a fixed
cost per batch are fewest; a batch never exceeds a token budget, so thousands of strings need no
more memory than a few. polyBERT's architecture runs without padding (`packed`), others as Hugging
Face runs them, relative positions cut to those that occur (`relative`). The base model stays in
evaluation mode even while LoRA trains: its dropout would be drawn once per distinct string rather
than once per row.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from tqdm import tqdm

from embedcache.encoder.batching import MAX_BATCH_TOKENS, chunks, length_batches
from embedcache.encoder.deberta.attention import packing
from embedcache.encoder.deberta.packed import embed, is_packable, pooled, run_layers
from embedcache.encoder.deberta.projection import CastWeights
from embedcache.encoder.deberta.relative import needed_positions
from embedcache.encoder.prefix import base_of, some_layers
from embedcache.encoder.tokens import TokenTable


class StringEncoder(nn.Module):
    """Encoder and pooling; `model` is the Hugging Face model, possibly with LoRA inside."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.width: int = model.config.hidden_size
        self.max_length: int = model.config.max_position_embeddings
        self._casts = CastWeights()
        self.first_layer = 0  # the lowest layer that is trained; `lora.add_lora` sets it

    def forward(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        """Return one fp32 vector per string, in the order given; `pad_to` puts all strings in one
        batch of that padded length (the naive yardstick).

        Where the tokens carry states, these enter layer `first_layer`, and the layers below are not
        run.
        """
        if tokens.num_strings == 0:
            return torch.zeros(0, self.width, device=tokens.values.device)
        if pad_to is not None:
            return self._encode_padded(tokens, pad_to)
        batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
        if is_packable(base_of(self.model)):
            vectors = torch.cat(
                [self._encode_packed(tokens, groups) for groups in chunks(tokens.lengths, batches)]
            )
        else:
            vectors = torch.cat([self._encode_cut(tokens.take(ids)) for ids in batches])
        return vectors[torch.cat(batches).argsort().to(vectors.device, non_blocking=True)]

    def train(self, mode: bool = True) -> "StringEncoder":
        """Switch LoRA's dropout alone; the base model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                # DoRA asks the layer, not its dropout; the frozen projection inside has no modes
                module.train(mode)
        return self

    @torch.no_grad()
    def states(self, tokens: TokenTable, first_layer: int) -> Float[Tensor, "total H"]:
        """Return the fp32 hidden states that enter layer `first_layer`, one per token."""
        if tokens.num_strings == 0 or first_layer == 0:
            raise ValueError(
                "states are those that enter a layer above the first one, of at least one string"
            )
        states = torch.empty(len(tokens.values), self.width, device=tokens.values.device)
        base = base_of(self.model)
        for ids in length_batches(tokens.lengths, MAX_BATCH_TOKENS):
            batch = tokens.take(ids)
            places = tokens.places(ids).to(states.device)
            if is_packable(base):
                layout = packing((tuple(batch.lengths.tolist()),), states.device)
                states[places] = run_layers(
                    base, self._casts, embed(base, batch.values, layout), layout, 0, first_layer
                ).float()
                continue
            padded, mask = batch.padded()
            with some_layers(base, 0, first_layer), needed_positions(base, padded.shape[1]):
                hidden = base(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            states[places] = hidden[mask].float()
        return states

    def _encode_packed(
        self, tokens: TokenTable, groups: Sequence[Int[Tensor, " _"]]
    ) -> Float[Tensor, "U E"]:
        """Return the vectors of the strings of all groups, in that order, without padding."""
        base, part = base_of(self.model), tokens.take(torch.cat(list(groups)))
        lengths = tokens.lengths
        layout = packing(tuple(tuple(lengths[ids].tolist()) for ids in groups), part.values.device)
        if part.states is None:
            return pooled(
                base, self._casts, embed(base, part.values, layout), layout, 0, self.pooling
            )
        return pooled(base, self._casts, part.states, layout, self.first_layer, self.pooling)

    def _encode_cut(self, tokens: TokenTable) -> Float[Tensor, "S E"]:
        """Return the vectors as Hugging Face computes them, with no more relative positions than
        the longest string has.
        """
        with needed_positions(base_of(self.model), int(tokens.lengths.max())):
            return self._encode_padded(tokens)

    def _encode_padded(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        ids, mask = tokens.padded(pad_to)
        known = (
            nullcontext()
            if tokens.states is None
            else some_layers(self.model, self.first_layer, None, tokens.padded_states(pad_to))
        )
        with known:
            # [S, L, E]
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden[:, 0]
        weight = mask.unsqueeze(2).float()
        return (hidden * weight).sum(1) / weight.sum(1)


@torch.no_grad()
def encode_all(
    encoder: StringEncoder,
    tokens: TokenTable,
    batch_tokens: int = MAX_BATCH_TOKENS,
    progress: bool = True,
) -> Float[np.ndarray, "S E"]:
    """Return the fp32 vectors of all strings, dropout off, in batches of bounded memory."""
    encoder.eval()
    vectors = torch.empty(tokens.num_strings, encoder.width)
    device = next(encoder.parameters()).device
    with tqdm(
        total=tokens.num_strings, unit="strings", desc="encode", disable=None if progress else True
    ) as bar:
        for ids in length_batches(tokens.lengths, batch_tokens) if tokens.num_strings else []:
            vectors[ids] = encoder(tokens.take(ids).to(device)).cpu()
            bar.update(len(ids))
    return vectors.numpy()
