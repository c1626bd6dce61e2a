"""A trained run's encoder, and what it gives for strings that the run has never seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from embedcache.config.columns import StringColumn
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokenizer import load_tokenizer, tokenize, unreadable_strings
from embedcache.encoder.unread import refuse_unread_dots
from embedcache.errors import EncoderError
from fusionnet.recipe import AUTOCAST_DTYPES, encoder_of_column
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.weights import load_weights, own_random_state

MOST_ALONE = 16  # strings that are encoded one by one: polyBERT's size takes 0.14 s for each


def trained_encoder(run: TrainedRun, column: str) -> StringEncoder:
    """Return the encoder of a string column with the run's LoRA weights.

    Raises EncoderError where it is not the encoder that was trained.
    """
    names = [spec.name for spec in run.layout.strings]
    number = names.index(column)
    config = run.recipe.encoders[number]
    key = encoder_of_column(run.recipe, names)[number]
    if key in run.memory.encoders:
        known = run.memory.encoders[key]
        assert isinstance(known, StringEncoder)
        return known
    if encoding_key(config) != run.layout.strings[number].encoding:
        raise EncoderError(
            f"{config.source} is not the encoder that run {run.folder} was trained with (weights,"
            " tokenizer or pooling differ)"
        )
    encoder = load_encoder(config)
    if run.recipe.is_live:
        with own_random_state():
            add_lora(encoder, config.lora)
        prefix = f"encoders.{key}."
        own = [name for name in run.encoder_state if name.startswith(prefix)]
        state = {name.removeprefix(prefix): run.encoder_state[name] for name in own}
        load_weights(encoder, state, run.folder)
    run.memory.encoders[key] = encoder.requires_grad_(False).eval().to(run.device)
    return encoder


def unreadable_new(run: TrainedRun, column: StringColumn, texts: Sequence[str]) -> dict[str, str]:
    """Return those new strings of a column that the run's encoder cannot read, with the reason."""
    with _need_named(run, column.name, texts):
        longest = trained_encoder(run, column.name).max_length
        tokenizer = load_tokenizer(run.recipe.encoders[_number(run, column.name)])
        return unreadable_strings(tokenizer, column, texts, longest)


def encode_new(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U E"]:
    """Return the vectors of new strings, in the precision in which training encoded.

    A few are encoded one by one: what shares a pass moves the last bits, and which strings are new
    in a call depends on the calls before it, of other threads too.
    """
    number = _number(run, column)
    config = run.recipe.encoders[number]
    with _need_named(run, column, texts):
        encoder = trained_encoder(run, column)
        tokens, unknown = tokenize(
            load_tokenizer(config), texts, encoder.max_length, encoder.num_ids
        )
        refuse_unread_dots(run.data.strings[number], unknown)
    run.memory.unknown.update(unknown)
    dtype = AUTOCAST_DTYPES[run.recipe.train.precision] if run.recipe.is_live else None
    with torch.autocast(run.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        if len(texts) <= MOST_ALONE:
            return torch.from_numpy(encode_all(encoder, tokens, batch_tokens=1))
        return torch.from_numpy(encode_all(encoder, tokens))


def _number(run: TrainedRun, column: str) -> int:
    return [spec.name for spec in run.layout.strings].index(column)


@contextmanager
def _need_named(run: TrainedRun, column: str, texts: Sequence[str]) -> Iterator[None]:
    """Say in an EncoderError that it is new strings which need the encoder."""
    try:
        yield
    except EncoderError as error:
        raise EncoderError(
            f"{len(texts)} '{column}' strings are new to run {run.folder}, e.g. {texts[0]!r:.120},"
            f" and need its encoder: {error}\nIf the encoder lies elsewhere now, set encoder.source"
            f" in {run.folder / run.name}_config.yaml; strings that the run was trained on need"
            " none"
        ) from None
