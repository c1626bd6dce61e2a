"""Builds of what real tables hold: chains in several cuts, salts and monomers beside each other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embedcache.errors import ConfigError, TableError, TokenizerError


def with_strings(frame: pl.DataFrame, texts: list[str | None]) -> pl.DataFrame:
    cells = [texts[row % len(texts)] for row in range(len(frame))]
    return frame.with_columns(pl.Series("smiles", cells, dtype=pl.String))


def polymer(**settings: Any) -> list[dict[str, Any]]:
    return [{"name": "polymer", "column": "smiles", **settings}]


@pytest.mark.slow
def test_the_report_says_which_chains_were_merged(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    texts = ["[*:1]CCO[*:2]", "[1*]OCC[2*]", "*CCOCCO*", "[*]CC([*])C", "[*][C@H](C)C[*]"]
    frame = with_strings(frame_of(), texts)
    report = make_study(tmp_path, frame, strings=polymer(canonicalize="polymer")).build()
    assert report.strings[0].num_strings == 3
    assert not report.unknown["polymer"]
    summary = report.summary()
    assert "1 string is spelled in several ways: [*]CCO[*] <- " in summary
    assert all(text in summary for text in texts[:3])


def reads_dots(source: Path, folder: Path) -> Path:
    """An encoder whose tokenizer knows '.' in place of xenon."""
    shutil.copytree(source, folder)
    (folder / "spm.model").unlink()
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"Xe"', '"."'))
    return folder


@pytest.mark.slow
def test_fragments_where_the_encoder_reads_their_dot(
    make_study: Callable, frame_of: Callable, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    texts = ["[*]CCO[*].[Li+]", "[Li+].[*]OCC[*]", "[*]CC[*].[*]CCO[*]", "[*]CC[*]"]
    settings = polymer(fragments=True, canonicalize="polymer")
    study = make_study(tmp_path, with_strings(frame_of(), texts), strings=settings)
    with pytest.raises(TokenizerError, match=r"'smiles': .* '\.' that.* 2 strings.*\n.*\n.*Li"):
        study.build()
    source = reads_dots(tiny_encoder_folder, tmp_path / "reads")
    report = study.but(encoder={"source": str(source), "tokenizer": "any"}).build()
    assert report.strings[0].num_strings == 3
    assert not report.unknown["polymer"]


def test_several_fragments_are_refused_unless_asked_for(
    make_study: Callable, frame_of: Callable, tmp_path: Path
) -> None:
    frame = with_strings(frame_of(), ["[*]CCO[*].[Li+]", "[*]CC[*]"])
    with pytest.raises(TableError, match=r"has 2 separate fragments: .* set fragments: true"):
        make_study(tmp_path, frame).build()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "smiles", "canonicalize": "polymer"}, "canonicalize: polymer is for kind"),
        ({"kind": "text", "fragments": True}, "fragments is for kind psmiles"),
        ({"canonicalize": "Polymer"}, "canonicalize: .*yes or no or 'polymer' .got 'Polymer'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    make_study: Callable, frame_of: Callable, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_study(tmp_path, frame_of(), strings=polymer(**settings))
