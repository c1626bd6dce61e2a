"""A Hugging Face encoder that turns ragged tokens into one vector per string.

Strings are sorted by length and encoded in batches chosen so that the padded tokens plus a fixed
cost per batch are fewest; a batch never exceeds a token budget, so thousands of strings need no
more memory than a few. polyBERT's architecture runs without padding (`packed`), others as Hugging
Face runs them, relative positions cut to those that occur (`relative`). The base model stays in
evaluation mode even while LoRA trains: its dropout would be drawn once per distinct string rather
than once per row.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
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

from embedcache.attention import packing
from embedcache.config import EncoderConfig
from embedcache.errors import EncoderError
from embedcache.packed import embed, is_packable, pooled, run_layers
from embedcache.prefix import base_of, some_layers
from embedcache.projection import CastWeights
from embedcache.relative import needed_positions
from embedcache.tokens import TokenTable

# what one more batch costs beside its tokens; at polyBERT's size 16 to 128 are alike
# (benchmarks/encoder.py)
BATCH_OVERHEAD_TOKENS = 48
# bounds activations: about 0.9 MB per token with graph at polyBERT's size
MAX_BATCH_TOKENS = 16_384


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
                [self._encode_packed(tokens, groups) for groups in _chunks(tokens.lengths, batches)]
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


def _chunks(
    lengths: Int[Tensor, " S"], batches: Sequence[Int[Tensor, " _"]]
) -> list[list[Int[Tensor, " _"]]]:
    """Return consecutive length batches together, as many as have MAX_BATCH_TOKENS tokens between
    them: they share all work but attention.
    """
    chunks: list[list[Int[Tensor, " _"]]] = []
    held = 0
    for ids in batches:
        num_tokens = int(lengths[ids].sum())
        if not chunks or held + num_tokens > MAX_BATCH_TOKENS:
            chunks.append([])
            held = 0
        chunks[-1].append(ids)
        held += num_tokens
    return chunks


def length_batches(lengths: Int[Tensor, " S"], max_tokens: int) -> list[Int[Tensor, " _"]]:
    """Return batches of string numbers, shortest strings first, of the least total cost; on the
    CPU.

    A batch of n strings, the longest of L tokens, costs n L + BATCH_OVERHEAD_TOKENS and holds at
    most `max_tokens` (or one string). Distinct lengths are few, so a dynamic programme over them is
    exact up to the splitting of equal lengths.
    """
    return list(_length_batches(tuple(lengths.tolist()), max_tokens))


@lru_cache(maxsize=64)  # steps encode the same strings again and again
def _length_batches(lengths: tuple[int, ...], max_tokens: int) -> tuple[Int[Tensor, " _"], ...]:
    length_of = torch.tensor(lengths, dtype=torch.int64)
    order = length_of.argsort(stable=True)
    sizes, counts = length_of[order].unique_consecutive(return_counts=True)
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
    return tuple(batches[::-1])


def load_encoder(config: EncoderConfig) -> StringEncoder:
    """Return the encoder of a hub id or local folder, frozen and in evaluation mode; raises
    EncoderError if it cannot be loaded safely.
    """
    weight_files(config)
    # loading takes a second; its bar would be drawn into logs
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(
            config.source,
            revision=config.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderError(f"the encoder {config.source} cannot be loaded: {error}") from None
    return StringEncoder(model.requires_grad_(False), config.pooling).eval()


def weight_files(config: EncoderConfig) -> list[Path]:
    """Return the encoder's safetensors files; raises EncoderError where there are none (pickled
    weights are not read: they can run code).
    """
    whole = _file(config, "model.safetensors")
    if whole is not None:
        return [whole]
    index = _file(config, "model.safetensors.index.json")
    if index is None:
        raise EncoderError(
            f"there are no safetensors weights in {config.source}; give a Hugging Face hub id or a"
            " model folder as encoder.source, or make a stand-in with: python -m jobs.make_encoder"
            " --out encoder --size polybert"
        )
    shards = [
        _file(config, name)
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))
    ]
    if None in shards:
        raise EncoderError(
            f"{config.source} is incomplete: its index names weight files that are not there"
        )
    return [shard for shard in shards if shard is not None]


def _file(config: EncoderConfig, name: str) -> Path | None:
    """Return one file of the encoder, local or from the hub's cache, or None where it has none of
    that name.
    """
    try:
        found = cached_file(
            config.source,
            name,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise EncoderError(
            f"the encoder {config.source} is neither a folder nor reachable on the hub:"
            f" {str(error).splitlines()[0]}"
        ) from None
    return None if found is None else Path(found)


def encoder_digest(config: EncoderConfig) -> str:
    """Return a digest of the encoder's configuration and weights, the same wherever the files
    lie.
    """
    digest = hashlib.sha256()
    for file in [_file(config, "config.json"), *weight_files(config)]:
        if file is None:
            raise EncoderError(
                f"{config.source} has no config.json, so it is not a Hugging Face model folder"
            )
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


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
