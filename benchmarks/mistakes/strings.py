"""Strings that are no repeat unit, or one that is written in an unusual way."""

from pathlib import Path

import polars as pl
import zarr

from benchmarks.mistakes.kinds import Bring, Mistake, build, refused, said

TIN = "*O[Sn](CCCC)(CCCC)OC(=O)c1ccc(C(*)=O)cc1"
TIN_AGAIN = "*OC(=O)c1ccc(C(=O)[O][Sn]([*])([CH2]CCC)[CH2]CCC)cc1"  # the same, written otherwise


def _string(text: str) -> Bring:
    """Return what writes one other string into the table."""

    def bring(folder: Path, clean: pl.DataFrame) -> None:
        texts = clean["smiles"].to_list()
        texts[7] = text
        changed = clean.with_columns(smiles=pl.Series(texts))
        changed.write_parquet(folder / "table.parquet")

    return bring


def _tin(folder: Path, clean: pl.DataFrame) -> None:
    texts = [TIN if row % 2 else TIN_AGAIN for row in range(len(clean))]
    clean.with_columns(smiles=pl.Series(texts)).write_parquet(folder / "table.parquet")


def _is_one(folder: Path, finished: Path) -> list[str]:
    texts = zarr.open_group(folder / "cache.zarr", mode="r")["strings/polymer/text"][:].tolist()
    return [] if len(texts) == 1 and "[Sn]" in texts[0] else [f"strings: {texts}"]


MISTAKES = (
    Mistake(
        "a salt beside a chain",
        "chemprop/chemprop#531",
        refused("[*]CC[*].[Cl-]", "fragments", "row 7"),
        _string("[*]CC[*].[Cl-]"),
        build(),
    ),
    Mistake(
        "ends with bonds of unequal order",
        "Ramprasad-Group/polygnn#19",
        refused("[*]CCCC(=[*])Cl", "bond", "row 7"),
        _string("[*]CCCC(=[*])Cl"),
        build(),
    ),
    Mistake(
        "four endpoints",
        "Ramprasad-Group/psmiles#21",
        refused("*CC(*)C(=O)Oc1cccc(OC(=O)C(*)C*)c1", "4", "row 7"),
        _string("*CC(*)C(=O)Oc1cccc(OC(=O)C(*)C*)c1"),
        build(),
    ),
    Mistake(
        "a metal in the chain, in two spellings",
        "Ramprasad-Group/psmiles#20",
        said("1 string is spelled in several ways", differences=_is_one),
        _tin,
        build("--set", "data.strings.0.canonicalize=polymer"),
    ),
    Mistake(
        "stereo groups behind the string",
        "samplchallenges/SAMPL7#56",
        refused("[*]CC[*] |&1:1,4,r", "row 7"),
        _string("[*]CC[*] |&1:1,4,r"),
        build(),
    ),
    Mistake(
        "OpenSMILES' notation of polymers",
        "Global-Chem/global-chem#1",
        refused("C&1&1", "row 7"),
        _string("C&1&1"),
        build(),
    ),
    Mistake(
        "a string longer than the encoder's positions",
        "huggingface/transformers#1791",
        refused("5005 tokens", "512 positions", "[*]CCC"),
        _string(f"[*]{'C' * 5000}[*]"),
        build(),
    ),
    Mistake(
        "no string",
        "rdkit/rdkit#5279",
        refused("'smiles'", "null or empty", "row 7"),
        _string(""),
        build(),
    ),
    Mistake(
        "the strings listed as a number",
        "chemprop/chemprop#160",
        refused("numeric column 'smiles'", "String", "numbers"),
        commands=build("--set", "data.numeric.0.column=smiles"),
        bring=_string("[*]CC[*]"),
    ),
)
