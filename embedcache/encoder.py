"""A Hugging Face encoder that turns ragged tokens into one vector per string.

Strings are sorted by length and encoded in batches chosen so that the padded tokens plus a fixed cost per batch are fewest; a batch never exceeds a
token budget, so thousands of strings need no more memory than a few. The base model stays in evaluation mode even while LoRA trains: its dropout would be
drawn once per distinct string rather than once per row.
"""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from embedcache.config import EncoderConfig
from embedcache.errors import EncoderError
from embedcache.prefix import some_layers
from embedcache.tokens import TokenTable

BATCH_OVERHEAD_TOKENS = 48  # what one more batch costs beside its tokens; measured on 2 cores at polyBERT's size
MAX_BATCH_TOKENS = 16_384  # bounds activations: about 0.9 MB per token with graph at polyBERT's size


class StringEncoder(nn.Module):
    """Encoder and pooling; `model` is the Hugging Face model, possibly with LoRA inside."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.width: int = model.config.hidden_size
        self.max_length: int = model.config.max_position_embeddings
        self.first_layer = 0  # the lowest layer that is trained; `lora.add_lora` sets it

    def forward(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        """Return one fp32 vector per string, in the order given; `pad_to` puts all strings in one batch of that padded length (the naive yardstick).

        Where the tokens carry states, these enter layer `first_layer`, and the layers below are not run.
        """
        if tokens.num_strings == 0:
            return torch.zeros(0, self.width, device=tokens.values.device)
        if pad_to is not None:
            return self._encode(tokens, pad_to)
        batches = length_batches(tokens.lengths, MAX_BATCH_TOKENS)
        vectors = torch.cat([self._encode(tokens.take(ids)) for ids in batches])
        order = torch.cat(batches)
        return vectors[order.argsort()]

    def train(self, mode: bool = True) -> "StringEncoder":
        """Switch LoRA's dropout alone; the base model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout.train(mode)
        return self

    @torch.no_grad()
    def states(self, tokens: TokenTable, first_layer: int) -> Float[Tensor, "total H"]:
        """Return the fp32 hidden states that enter layer `first_layer`, one per token."""
        if tokens.num_strings == 0 or first_layer == 0:
            raise ValueError("states are those that enter a layer above the first one, of at least one string")
        states = torch.empty(len(tokens.values), self.width, device=tokens.values.device)
        with some_layers(self.model, 0, first_layer):
            for ids in length_batches(tokens.lengths, MAX_BATCH_TOKENS):
                batch = tokens.take(ids)
                padded, mask = batch.padded()
                hidden = self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
                states[tokens.places(ids)] = hidden[mask].float()
        return states

    def _encode(self, tokens: TokenTable, pad_to: int | None = None) -> Float[Tensor, "S E"]:
        ids, mask = tokens.padded(pad_to)
        known = nullcontext() if tokens.states is None else some_layers(self.model, self.first_layer, None, tokens.padded_states(mask))
        with known:
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # [S, L, E]
        if self.pooling == "cls":
            return hidden[:, 0]
        weight = mask.unsqueeze(2).float()
        return (hidden * weight).sum(1) / weight.sum(1)


def length_batches(lengths: Int[Tensor, " S"], max_tokens: int) -> list[Int[Tensor, " _"]]:
    """Return batches of string numbers, shortest strings first, of the least total cost.

    A batch of n strings, the longest of L tokens, costs n L + BATCH_OVERHEAD_TOKENS and holds at most `max_tokens` (or one string). Distinct lengths are
    few, so a dynamic programme over them is exact up to the splitting of equal lengths.
    """
    order = lengths.argsort(stable=True)
    sizes, counts = lengths[order].cpu().unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    longest = sizes.tolist()
    best, first = [0.0] * (len(ends) + 1), [0] * (len(ends) + 1)
    for end in range(1, len(ends) + 1):
        length = longest[end - 1]
        costs = []
        for begin in range(end):
            num = ends[end - 1] - starts[begin]
            num_batches = -(-num // max(1, max_tokens // length))
            costs.append(best[begin] + num * length + BATCH_OVERHEAD_TOKENS * num_batches)
        best[end] = min(costs)
        first[end] = costs.index(best[end])
    batches: list[Int[Tensor, " _"]] = []
    end = len(ends)
    while end > 0:
        block = order[starts[first[end]] : ends[end - 1]]
        batches.extend(reversed(block.split(max(1, max_tokens // longest[end - 1]))))
        end = first[end]
    return batches[::-1]


def load_encoder(config: EncoderConfig) -> StringEncoder:
    """Return the encoder of a hub id or local folder, frozen and in evaluation mode; raises EncoderError if it cannot be loaded safely."""
    weight_files(config)
    transformers_logging.disable_progress_bar()  # loading takes a second; its bar would be drawn into logs
    try:
        model = AutoModel.from_pretrained(config.source, revision=config.revision, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderError(f"the encoder {config.source} cannot be loaded: {error}") from None
    return StringEncoder(model.requires_grad_(False), config.pooling).eval()


def weight_files(config: EncoderConfig) -> list[Path]:
    """Return the encoder's safetensors files; raises EncoderError where there are none (pickled weights are not read: they can run code)."""
    whole = _file(config, "model.safetensors")
    if whole is not None:
        return [whole]
    index = _file(config, "model.safetensors.index.json")
    if index is None:
        raise EncoderError(
            f"there are no safetensors weights in {config.source}; give a Hugging Face hub id or a model folder as encoder.source, "
            "or make a stand-in with: python -m jobs.make_encoder --out encoder --size polybert"
        )
    shards = [_file(config, name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if None in shards:
        raise EncoderError(f"{config.source} is incomplete: its index names weight files that are not there")
    return [shard for shard in shards if shard is not None]


def _file(config: EncoderConfig, name: str) -> Path | None:
    """Return one file of the encoder, local or from the hub's cache, or None where it has none of that name."""
    try:
        found = cached_file(config.source, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise EncoderError(f"the encoder {config.source} is neither a folder nor reachable on the hub: {str(error).splitlines()[0]}") from None
    return None if found is None else Path(found)


def encoder_digest(config: EncoderConfig) -> str:
    """Return a digest of the encoder's configuration and weights, the same wherever the files lie."""
    digest = hashlib.sha256()
    for file in [_file(config, "config.json"), *weight_files(config)]:
        if file is None:
            raise EncoderError(f"{config.source} has no config.json, so it is not a Hugging Face model folder")
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


@torch.no_grad()
def encode_all(encoder: StringEncoder, tokens: TokenTable, batch_tokens: int = MAX_BATCH_TOKENS, progress: bool = True) -> Float[np.ndarray, "S E"]:
    """Return the fp32 vectors of all strings, dropout off, in batches of bounded memory."""
    encoder.eval()
    vectors = torch.empty(tokens.num_strings, encoder.width)
    device = next(encoder.parameters()).device
    with tqdm(total=tokens.num_strings, unit="strings", desc="encode", disable=None if progress else True) as bar:
        for ids in length_batches(tokens.lengths, batch_tokens) if tokens.num_strings else []:
            vectors[ids] = encoder(tokens.take(ids).to(device)).cpu()
            bar.update(len(ids))
    return vectors.numpy()
