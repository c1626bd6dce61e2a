"""A Hugging Face encoder that turns ragged tokens into one vector per string.

Strings are sorted by length and encoded in batches chosen so that the padded tokens plus a fixed
cost per batch are fewest; a batch never exceeds a token budget, so thousands of strings need no
more memory than a few. polyBERT's architecture runs without padding (`packed`), others as Hugging
Face runs them, relative positions cut to those that occur (`relative`). The base model stays in
evaluation mode even while LoRA trains: its dropout would be drawn once per distinct string rather
than once per row.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from tqdm import tqdm

from embedcache.encoder.batching import MAX_BATCH_TOKENS, batches_of_each_pass, length_batches
from embedcache.encoder.deberta.attention import Packing, packing_of
from embedcache.encoder.deberta.packed import embed, is_packable, pooled, run_layers
from embedcache.encoder.deberta.projection import CastWeights
from embedcache.encoder.deberta.relative import needed_positions
from embedcache.encoder.positions import longest_string
from embedcache.encoder.prefix import base_of, some_layers
from embedcache.encoder.tokens import TokenTable


class PackedPass(NamedTuple):
    """The P tokens of one pass, and how they lie; `states` enter the first layer that is run."""

    values: Int[Tensor, " P"]
    states: Float[Tensor, "P E"] | None
    packing: Packing


class EncodingPlan(NamedTuple):
    """All that encoding the same S strings again reads, on the device."""

    passes: tuple[PackedPass, ...]
    order: Int[Tensor, " S"]  # of each string among what the passes give


class StringEncoder(nn.Module):
    """Encoder and pooling; `model` is the Hugging Face model, possibly with LoRA inside."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        config: Any = model.config
        self.width: int = config.hidden_size
        self.max_length = longest_string(model)
        self.num_ids: int = config.vocab_size  # token ids that it has an embedding of
        self.pad_id: int = getattr(config, "pad_token_id", None) or 0
        self.first_layer = 0  # the lowest layer that is trained; `lora.add_lora` sets it
        self._casts = CastWeights()

    def forward(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        """Return one fp32 vector per string, in the order given.

        Where the tokens carry states, these enter layer `first_layer`, and the layers below are not
        run. `pad_to` puts all strings in one batch of that padded length (the naive yardstick).
        """
        if tokens.num_strings == 0:
            return torch.zeros(0, self.width, device=tokens.values.device)
        if pad_to is not None:
            return self._encode_padded(tokens, pad_to)
        plan = self.plan(tokens)
        if plan is not None:
            return self.encode(plan)
        batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
        vectors = torch.cat([self._encode_cut(tokens.take(ids)) for ids in batches])
        return vectors[torch.cat(batches).argsort().to(vectors.device, non_blocking=True)]

    def plan(self, tokens: TokenTable) -> EncodingPlan | None:
        """Return how these strings are encoded without padding; None for other architectures.

        It is made on the CPU and copied to the device; `encode` then asks nothing of the host.
        """
        if not is_packable(base_of(self.model)):
            return None
        device = tokens.values.device
        batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
        passes = []
        for groups in batches_of_each_pass(tokens.lengths, batches):
            taken = tokens.take(torch.cat(groups))
            lengths = tuple(tuple(tokens.lengths[ids].tolist()) for ids in groups)
            passes.append(PackedPass(taken.values, taken.states, packing_of(lengths, device)))
        return EncodingPlan(
            tuple(passes), torch.cat(batches).argsort().to(device, non_blocking=True)
        )

    @torch.no_grad()
    def with_frozen_states(self, plan: EncodingPlan) -> EncodingPlan:
        """Return the plan with the states that enter the lowest trained layer: they never change.

        Call it as encoding will be called, under the same autocast.
        """
        base = base_of(self.model)
        assert is_packable(base)
        passes = []
        for one in plan.passes:
            states = one.states
            if states is None:
                states = embed(base, one.values, one.packing)
                states = run_layers(base, self._casts, states, one.packing, 0, self.first_layer)
            passes.append(one._replace(states=states))
        return plan._replace(passes=tuple(passes))

    def encode(self, plan: EncodingPlan) -> Float[Tensor, "S E"]:
        """Return one fp32 vector per string of the plan, as `forward` does."""
        vectors = torch.cat([self._encode_packed(each) for each in plan.passes])
        return vectors.index_select(0, plan.order)

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
    def states(self, tokens: TokenTable, first_layer: int) -> Float[Tensor, "P E"]:
        """Return the fp32 hidden states that enter layer `first_layer`, one per token."""
        if tokens.num_strings == 0 or first_layer == 0:
            raise ValueError(
                "states are those that enter a layer above the first one, of at least one string"
            )
        states = torch.empty(len(tokens.values), self.width, device=tokens.values.device)
        base = base_of(self.model)
        for ids in length_batches(tokens.lengths, MAX_BATCH_TOKENS):
            batch = tokens.take(ids)
            index = tokens.token_index(ids).to(states.device)
            if is_packable(base):
                packing = packing_of((tuple(batch.lengths.tolist()),), states.device)
                embedded = embed(base, batch.values, packing)
                hidden = run_layers(base, self._casts, embedded, packing, 0, first_layer)
                states[index] = hidden.float()
                continue
            padded, mask = batch.padded(pad_id=self.pad_id)
            with some_layers(base, 0, first_layer), needed_positions(base, padded.shape[1]):
                hidden = base(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            states[index] = hidden[mask].float()
        return states

    def _encode_packed(self, one: PackedPass) -> Float[Tensor, "U E"]:
        """Return the vectors of a pass's strings, in its order, without padding."""
        base = base_of(self.model)
        assert is_packable(base)
        if one.states is None:
            states, first_layer = embed(base, one.values, one.packing), 0
        else:
            states, first_layer = one.states, self.first_layer
        return pooled(base, self._casts, states, one.packing, first_layer, self.pooling)

    def _encode_cut(self, tokens: TokenTable) -> Float[Tensor, "S E"]:
        """Return the vectors as Hugging Face computes them, with the relative positions cut.

        No more of them are left than the longest string has.
        """
        with needed_positions(base_of(self.model), int(tokens.lengths.max())):
            return self._encode_padded(tokens)

    def _encode_padded(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        """Return the vectors as Hugging Face computes them, all strings padded to one length."""
        ids, mask = tokens.padded(pad_to, self.pad_id)
        if tokens.states is None:
            upper_layers: AbstractContextManager[None] = nullcontext()
        else:
            states = tokens.padded_states(pad_to)
            upper_layers = some_layers(self.model, self.first_layer, None, states)
        with upper_layers:
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        if self.pooling == "cls":  # hidden is [S, L, E]
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
    hidden = None if progress else True  # None: hidden where no terminal is
    with tqdm(total=tokens.num_strings, unit="strings", desc="encode", disable=hidden) as bar:
        for ids in length_batches(tokens.lengths, batch_tokens) if tokens.num_strings else []:
            vectors[ids] = encoder(tokens.take(ids).to(device)).cpu()
            bar.update(len(ids))
    return vectors.numpy()
