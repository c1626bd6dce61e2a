"""Strings to tokens: nothing is cut off silently, and polyBERT's published ids or nothing.

polyBERT's tokenizer is SentencePiece with user-defined pieces (symbols of the elements, in both
cases) behind a dummy prefix `▁`. transformers 5 rebuilds it from the published files in its own
way: with `spm.model` alone it drops the prefix, which shifts every position by one; with the
published `tokenizer.json` it writes an unknown part as `<s>`, while calling `[UNK]` the unknown
token, so that nothing unknown would ever be found. `load_tokenizer` therefore checks published ids,
rebuilds the tokenizer exactly from `spm.model` where they differ, and refuses one that still
disagrees.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from embedcache.config.columns import StringColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.description import UNREADABLE, described_config, refuse_keys
from embedcache.encoder.folder import encoder_file, encoder_folder, read_mapping
from embedcache.encoder.tokens import TokenTable, offsets_of
from embedcache.encoder.unread import refuse_unread, unread_dots
from embedcache.errors import EncoderError, TokenizerError

PREFIX = "▁"
UNKNOWN = "<unk>"
SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_KEYS = {"auto_map", "fast_tokenizer_files", "init_inputs"}  # classes, files, a class's arguments
_UNIGRAM, _USER_DEFINED = 1, 4  # SentencePiece's model type and piece type
# Ids that the published polyBERT gives: [CLS] 265, the prefix 264, [SEP] 266. Two-letter pieces win
# over one-letter ones, in `ccsc` the right one of two that overlap; what no piece matches is <unk>,
# 0.
# fmt: off
PUBLISHED_IDS = {
    "[*]CC[*]": (265, 264, 5, 33, 33, 5, 266),
    "[*]c1sc([*])c2OCCOc12": (
        265, 264, 5, 151, 12, 166, 6, 5, 7, 151, 13, 35, 33, 33, 35, 151, 12, 13, 266,
    ),
    "[*]CC([*])Cl": (265, 264, 5, 33, 33, 6, 5, 7, 44, 266),
    "[*]C=C([*])c1ccsc1": (265, 264, 5, 33, 8, 33, 6, 5, 7, 151, 12, 151, 151, 166, 12, 266),
    "*C.C[*]": (265, 264, 0, 33, 0, 33, 5, 266),
}
# fmt: on


class Tokenized(NamedTuple):
    """Tokens, and for each string with unknown parts the parts that became <unk>."""

    tokens: TokenTable
    unknown: dict[str, list[str]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], max_length: int, num_ids: int
) -> Tokenized:
    """Return the tokens of all strings with [CLS] and [SEP].

    Raises TokenizerError for a string of more than `max_length` tokens, without any part that is
    known, or with a token that the encoder, which has embeddings of `num_ids`, does not know.
    """
    if not strings:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Tokenized(TokenTable(nothing, offsets_of(nothing)), {})
    ids_of_strings, spans_of_strings = _ids(tokenizer, strings)
    _refuse_too_long(strings, ids_of_strings, max_length)
    unknown, unread = _unknown(tokenizer, strings, ids_of_strings, spans_of_strings)
    refuse_unread(unread)
    values = torch.tensor([token for ids in ids_of_strings for token in ids])
    largest = int(values.max())
    if largest >= num_ids:
        raise TokenizerError(
            f"the tokenizer gives token {largest}, the encoder has {num_ids} tokens: they do not"
            " belong to each other"
        )
    lengths = torch.tensor([len(ids) for ids in ids_of_strings])
    return Tokenized(TokenTable(values, offsets_of(lengths)), unknown)


def unreadable_strings(
    tokenizer: PreTrainedTokenizerBase,
    column: StringColumn,
    strings: Sequence[str],
    max_length: int,
) -> dict[str, str]:
    """Return those strings of a column that `tokenize` would refuse, each with the reason."""
    if not strings:
        return {}
    ids_of_strings, spans_of_strings = _ids(tokenizer, strings)
    unknown, unread = _unknown(tokenizer, strings, ids_of_strings, spans_of_strings)
    reasons = dict.fromkeys(unread, "has no part that its encoder's tokenizer knows")
    for string in unread_dots(column, unknown):
        reasons[string] = "has a '.' between fragments, which its encoder's tokenizer does not know"
    for string, ids in zip(strings, ids_of_strings, strict=True):
        if len(ids) > max_length:
            reasons[string] = f"is longer than its encoder's {max_length} positions"
    return reasons


def _ids(
    tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Return the ids of each string's tokens, and where in the string each of them stands."""
    with _refusals_named("the tokenizer cannot read the strings"):
        encoded = tokenizer(
            list(strings),
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    return encoded["input_ids"], encoded["offset_mapping"]


def _unknown(
    tokenizer: PreTrainedTokenizerBase,
    strings: Sequence[str],
    ids_of_strings: Sequence[Sequence[int]],
    spans_of_strings: Sequence[Sequence[tuple[int, int]]],
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the unknown parts of each string that has any, and the strings of which all is so."""
    unknown_id = _unknown_id(tokenizer)
    known_nothing = {unknown_id, tokenizer.convert_tokens_to_ids(PREFIX)}
    known_nothing.update(tokenizer.all_special_ids)
    unknown, unread = {}, []
    for string, ids, spans in zip(strings, ids_of_strings, spans_of_strings, strict=True):
        if unknown_id in ids:
            unknown[string] = [
                string[start:end]
                for token, (start, end) in zip(ids, spans, strict=True)
                if token == unknown_id
            ]
            if known_nothing.issuperset(ids):
                unread.append(string)
    return unknown, unread


def _refuse_too_long(
    strings: Sequence[str], ids_of_strings: Sequence[Sequence[int]], max_length: int
) -> None:
    """Raise one TokenizerError that names the strings of more than `max_length` tokens."""
    too_long = [
        (string, len(ids))
        for string, ids in zip(strings, ids_of_strings, strict=True)
        if len(ids) > max_length
    ]
    if not too_long:
        return
    listed = [f"  - {length} tokens: {string:.120}" for string, length in too_long[:10]]
    raise TokenizerError(
        f"{len(too_long):,} {'string is' if len(too_long) == 1 else 'strings are'} longer than"
        f" the encoder's {max_length} positions; shorten them, or leave their rows out"
        " (data.on_invalid: skip):\n" + "\n".join(listed)
    )


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that the tokenizer's model gives to an unknown part.

    `unk_token_id` need not be it. None where nothing is unknown (byte level).
    """
    backend = _backend(tokenizer)
    model = json.loads(backend.to_str())["model"]
    if "unk_id" in model:
        return model["unk_id"]
    return backend.token_to_id(model.get("unk_token") or "")


def load_tokenizer(config: EncoderConfig) -> PreTrainedTokenizerBase:
    """Return the encoder's fast tokenizer.

    Raises TokenizerError if it is missing or, for polyBERT, does not give the published ids.
    """
    unreadable = f"there is no readable tokenizer in {config.source}"
    try:
        _check_files(config)
        described = described_config(config)
    except EncoderError as error:
        raise TokenizerError(f"{unreadable}: {error}") from None
    with _refusals_named(unreadable):
        tokenizer = AutoTokenizer.from_pretrained(
            str(encoder_folder(config)), trust_remote_code=False, config=described
        )
        is_published = config.tokenizer == "polybert" and not _disagreements(tokenizer)
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer of {config.source} has no fast implementation, which is needed to name"
            " unknown parts of a string"
        )
    if config.tokenizer == "any" or is_published:
        return tokenizer
    return _rebuilt(config, tokenizer)


@contextmanager
def _refusals_named(what: str) -> Iterator[None]:
    """Turn what transformers and tokenizers raise on the files that they read into TokenizerErrors.

    The tokenizers library raises `Exception` itself, and nothing more narrow.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, (OSError, *UNREADABLE)):
            raise
        why = " ".join(str(error).split())
        raise TokenizerError(f"{what}: {type(error).__name__}: {why:.300}") from None


def _check_files(config: EncoderConfig) -> None:
    """Raise EncoderError for a damaged JSON file of the tokenizer, or a key that chooses code."""
    for name in _FILES:
        file = encoder_file(config, name)
        if file is not None:
            refuse_keys(file, read_mapping(file), _KEYS)


def _rebuilt(config: EncoderConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the encoder's spm.model, which gives the published ids.

    Raises TokenizerError if it does not, or, where it cannot be rebuilt, for `tokenizer`.
    """
    file = encoder_file(config, "spm.model")
    rebuilt = None if file is None else rebuild_tokenizer(file)
    if rebuilt is not None:
        tokenizer = wrap(rebuilt)
    wrong = _disagreements(tokenizer)
    if wrong:
        raise TokenizerError(
            f"the tokenizer of {config.source} does not give polyBERT's published ids:\n"
            + "\n".join(f"  - {line}" for line in wrong)
            + "\nuse polyBERT's own tokenizer files, or encoder.tokenizer: any for another model"
        )
    return tokenizer


def _disagreements(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return one line per probe string whose ids are not the published ones."""
    found = {text: tuple(tokenizer(text)["input_ids"]) for text in PUBLISHED_IDS}
    return [
        f"{text}: published {list(ids)}, found {list(found[text])}"
        for text, ids in PUBLISHED_IDS.items()
        if found[text] != ids
    ]


def rebuild_tokenizer(spm_model: Path) -> Tokenizer | None:
    """Return the tokenizer of a SentencePiece model.

    None where `build_tokenizer` would not split as the model does.
    """
    proto = empty_sentencepiece()
    try:
        proto.ParseFromString(spm_model.read_bytes())
    except DecodeError:
        raise TokenizerError(
            f"{spm_model} is damaged: it is not a SentencePiece model; fetch it again"
        ) from None
    pieces = [piece.piece for piece in proto.pieces]
    learned = {piece.piece for piece in proto.pieces if piece.type != _USER_DEFINED}
    as_built = (
        learned == {UNKNOWN, "<s>", "</s>", PREFIX}
        and proto.trainer_spec.model_type == _UNIGRAM
        and proto.normalizer_spec.add_dummy_prefix
    )
    if not as_built:
        return None
    return build_tokenizer(pieces, proto.normalizer_spec.precompiled_charsmap)


def empty_sentencepiece() -> Any:
    """Return an empty SentencePiece model, a protocol buffer whose class is made at import."""
    return vars(sentencepiece_model_pb2)["ModelProto"]()


def build_tokenizer(pieces: Sequence[str], charsmap: bytes = b"") -> Tokenizer:
    """Return a tokenizer that splits as SentencePiece does when all pieces are user-defined.

    A run that no piece matches is one <unk>. `charsmap` is SentencePiece's compiled Unicode
    normalisation; empty: none.

    Scores are equal, so the best path is decided by order alone, as in SentencePiece: of the pieces
    that end at a position, the longest. Matching the longest piece from the left instead, as
    transformers 5 does, differs where two-letter pieces overlap: `ccsc` is c c sc, not c cs c.
    """
    unigram = models.Unigram(
        [(piece, 0.0) for piece in pieces], unk_id=pieces.index(UNKNOWN), byte_fallback=False
    )
    tokenizer = Tokenizer(unigram)
    spaces = [
        normalizers.Strip(),
        normalizers.Replace(Regex(" +"), PREFIX),
        normalizers.Prepend(PREFIX),
    ]
    unicode = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence([*unicode, *spaces])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    cls, sep = SPECIAL[:2]
    special = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=special
    )
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as transformers uses and saves it."""
    cls, sep, pad, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        mask_token=mask,
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of everything that decides which ids a string gets.

    It is the same for the same content in any process or folder.
    """
    return hashlib.sha256(_backend(tokenizer).to_str().encode()).hexdigest()


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the fast tokenizer itself, without what transformers puts around it."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer.backend_tokenizer
