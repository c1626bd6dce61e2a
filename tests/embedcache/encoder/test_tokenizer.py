"""The published ids or nothing; nothing is cut; what is unknown is named."""

import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.standin import published_pieces
from embedcache.encoder.tokenizer import PUBLISHED_IDS, load_tokenizer, tokenize, tokenizer_digest
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import TokenizerError


def config(folder: Path, **more: str) -> EncoderConfig:
    return EncoderConfig(source=str(folder), **more)


def spm_only(source: Path, folder: Path) -> Path:
    """A folder as published: spm.model and its config, without tokenizer.json."""
    folder.mkdir()
    for name in ("spm.model", "config.json"):
        shutil.copy(source / name, folder / name)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": false, "vocab_type": "spm"}'
    )
    (folder / "added_tokens.json").write_text(
        '{"[CLS]": 265, "[SEP]": 266, "[PAD]": 267, "[MASK]": 268}'
    )
    return folder


@pytest.mark.parametrize("text", PUBLISHED_IDS)
def test_published_ids(tiny_encoder_folder: Path, text: str) -> None:
    assert (
        tuple(load_tokenizer(config(tiny_encoder_folder))(text)["input_ids"]) == PUBLISHED_IDS[text]
    )


def test_a_folder_with_spm_model_alone_is_repaired_exactly(
    tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    published = spm_only(tiny_encoder_folder, tmp_path / "published")
    repaired = load_tokenizer(config(published))
    assert tuple(repaired("[*]CC[*]")["input_ids"]) == PUBLISHED_IDS["[*]CC[*]"]
    # transformers' own conversion drops the prefix, which is why the check is needed at all.
    as_is = load_tokenizer(config(published, tokenizer="any"))
    assert 264 not in as_is("[*]CC[*]")["input_ids"]
    assert tokenizer_digest(repaired) != tokenizer_digest(as_is)


@pytest.mark.slow
def test_it_splits_as_sentencepiece_does(tiny_encoder_folder: Path, shared_data: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(tiny_encoder_folder / "spm.model")
    )
    lines = [
        line
        for line in (shared_data / "psmiles" / "merged_unique_psmiles.txt").read_text().splitlines()
        if line
    ]
    tokens = tokenize(load_tokenizer(config(tiny_encoder_folder)), lines, 2000, 269).tokens
    for number, line in enumerate(lines):
        found = tokens.values[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        assert found == [265, *reference.encode(line), 266], line


@given(
    st.lists(
        st.sampled_from([piece for piece in published_pieces() if len(piece) < 3]),
        min_size=1,
        max_size=12,
    )
)
def test_it_splits_as_sentencepiece_does_on_any_pieces(
    tiny_encoder_folder: Path, pieces: list[str]
) -> None:
    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(tiny_encoder_folder / "spm.model")
    )
    text = "[*]" + "".join(pieces).replace("▁", "")
    assert load_tokenizer(config(tiny_encoder_folder))(text)["input_ids"] == [
        265,
        *reference.encode(text),
        266,
    ]


def test_another_tokenizer_is_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_encoder_folder, folder)
    file = folder / "tokenizer.json"
    file.write_text(
        file.read_text()
        .replace('"[CLS] $A', '"$A')
        .replace('["Cl",0.0]', '["Xl",0.0]')
        .replace('"Cl"', '"Xl"')
    )
    (folder / "spm.model").unlink()
    with pytest.raises(TokenizerError, match=r"\[\*\]CC\(\[\*\]\)Cl: published"):
        load_tokenizer(config(folder))


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no readable tokenizer"):
        load_tokenizer(config(tmp_path))


def test_unknown_parts_are_named_with_their_string(tiny_encoder_folder: Path) -> None:
    unknown = tokenize(
        load_tokenizer(config(tiny_encoder_folder)), ["[*]CC[*]", "[Li+].[Cl-]", "*C*"], 512, 269
    ).unknown
    assert unknown == {"[Li+].[Cl-]": ["."], "*C*": ["*", "*"]}


def test_a_string_of_unknown_parts_alone_is_refused(tiny_encoder_folder: Path) -> None:
    tokenizer = load_tokenizer(config(tiny_encoder_folder))
    assert tokenize(tokenizer, ["", "\N{GREEK SMALL LETTER MU}C"], 512, 269).tokens.num_strings == 2
    nothing = "\N{GREEK SMALL LETTER MU} *"
    with pytest.raises(TokenizerError, match=r"^1 strings have no part"):
        tokenize(tokenizer, ["[*]CC[*]", nothing], 512, 269)


def test_too_long_is_an_error_never_a_cut(tiny_encoder_folder: Path) -> None:
    tokenizer = load_tokenizer(config(tiny_encoder_folder))
    fits = "[*]" + "C" * 507 + "[*]"
    assert int(tokenize(tokenizer, [fits], 512, 269).tokens.lengths[0]) == 512
    with pytest.raises(
        TokenizerError,
        match=r"1 string is longer than the encoder's 512 positions.*\n.*513 tokens: \[\*\]CCC",
    ):
        tokenize(tokenizer, ["[*]CC[*]", fits.replace("[*]C", "[*]CC", 1)], 512, 269)


@given(
    st.lists(st.lists(st.integers(0, 268), min_size=1, max_size=9), min_size=1, max_size=8),
    st.data(),
)
def test_ragged_tables_take_and_pad(strings: list[list[int]], data: st.DataObject) -> None:
    offsets = torch.tensor([0, *[len(string) for string in strings]]).cumsum(0)
    table = TokenTable(torch.tensor([token for string in strings for token in string]), offsets)
    ids = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=12))
    padded, mask = table.take(torch.tensor(ids, dtype=torch.int64)).padded()
    assert [row[keep].tolist() for row, keep in zip(padded, mask, strict=True)] == [
        strings[number] for number in ids
    ]
    assert mask.sum().item() == sum(len(strings[number]) for number in ids)


def test_empty_tables(tiny_encoder_folder: Path) -> None:
    table = tokenize(load_tokenizer(config(tiny_encoder_folder)), [], 512, 269).tokens
    assert table.num_strings == 0
    assert table.padded()[0].shape == (0, 0)
