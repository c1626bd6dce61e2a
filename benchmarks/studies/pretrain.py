"""What does an encoder's pre-training bring? A frozen probe, and the neighbours of its vectors.

Polymers' vectors, mean-pooled and never trained on a label, are read by ridge regression: 5 folds,
standardised by the train folds, the penalty chosen inside them. Beside them: random weights of the
same architecture, counts of tokens, counts of Morgan's fingerprints, and RDKit's descriptors, whose
ranks the encoder may have been trained to tell. Settings were chosen on a part of the polymers
(DEVELOPMENT), and results are given for all polymers and for those that were no part of choosing.
A polymer's neighbour is the one whose standardised vector has the largest cosine with its own; how
like the two are is told by Tanimoto's similarity of Morgan fingerprints.

The pre-training corpus may hold the probe's polymers, without labels: how many is told.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import DebertaV2Model

from benchmarks.harness.cells import Column, Table, mean_and_sd, named
from benchmarks.harness.pictures import Panel
from benchmarks.harness.publish import Report, output_path, parser, publish, tell, with_kept
from benchmarks.harness.stamp import stamp
from embedcache.config.encoder import EncoderConfig
from embedcache.encoder.loading import load_encoder
from embedcache.encoder.model import StringEncoder, encode_all
from embedcache.encoder.tokenizer import load_tokenizer, tokenize
from embedcache.encoder.tokens import TokenTable
from embedcache.errors import UserError
from embedcache.text import count_of
from fusionnet.pretrain.folder import MARK
from fusionnet.pretrain.lines import polymers_of_files
from fusionnet.pretrain.ranks import descriptors
from fusionnet.pretrain.recombine import checked_lines

ALPHAS = np.logspace(-2, 5, 15)
FOLDS = 5
DEVELOPMENT = 1_200  # polymers on which settings were chosen, drawn by seed 1
OURS = "pre-trained encoder"
RANDOM = "random weights"
TOKENS, MORGAN, RDKIT = "counts of tokens", "Morgan counts", "RDKit descriptors"
KINDS = (OURS, RANDOM, TOKENS, MORGAN, RDKIT)
Vectors = list[Float[np.ndarray, "S _K"]]


def main(words: list[str]) -> None:
    """Probe an encoder and everything beside it, and publish."""
    arguments = _arguments(words)
    frame = pl.read_csv(arguments.table)
    texts, values = frame[arguments.column].to_list(), frame[arguments.target].to_numpy()
    strings = [text for text, reason in checked_lines(texts) if reason is None]
    if len(strings) < len(texts):
        raise UserError(f"{len(texts) - len(strings)} of {arguments.table} are no repeat units")
    is_chosen_on = np.zeros(len(strings), dtype=bool)
    is_chosen_on[np.random.default_rng(1).permutation(len(strings))[:DEVELOPMENT]] = True
    seeds = range(1 if arguments.quick else arguments.seeds)
    kinds = _kinds(arguments.encoder, strings, seeds)
    fingerprints = _fingerprints(strings)
    results = {}
    for name in arguments.only or kinds:
        versions = kinds[name]()
        parts = {"all": np.ones(len(strings), dtype=bool), "unseen": ~is_chosen_on}
        probed = {
            part: [probe(X[rows], values[rows], seed) for X in versions for seed in seeds]
            for part, rows in parts.items()
        }
        results[name] = {
            "width": versions[0].shape[1],
            **{part: _mean_sd(found) for part, found in probed.items()},
            "tanimoto": float(np.mean([_likeness(nearest(X), fingerprints) for X in versions])),
        }
        tell(f"{name}: {results[name]}")
    generator = np.random.default_rng(0)
    pairs = generator.permutation(len(strings))
    output = output_path("pretrain", arguments)
    made = {
        **stamp(),
        "quick": arguments.quick,
        "polymers": len(strings),
        "unseen": int((~is_chosen_on).sum()),
        "seeds": len(seeds),
        "encoder": json.loads((arguments.encoder / MARK).read_text()),
        "overlap": _overlap(strings, arguments.corpus),
        "models": with_kept(output, "models", results, kinds) if arguments.only else results,
        "random_pairs": _likeness(pairs, fingerprints),
        "most_alike": _likeness(_most_alike(fingerprints), fingerprints),
    }
    publish(output, made, report)


def _arguments(words: list[str]) -> argparse.Namespace:
    options = parser("pretrain", __doc__ or "")
    add = options.add_argument
    add("--encoder", type=Path, required=True, help="a folder that pretrain-encoder wrote")
    add("--table", type=Path, required=True, help="a CSV of polymers and a property: Egc.csv")
    add("--column", default="smiles", help="its column of PSMILES")
    add("--target", default="value", help="its column of the property")
    add("--corpus", type=Path, nargs="+", default=[], help="what it was pre-trained on")
    only = "probe these vectors; the others stay as the file has them"
    add("--only", choices=KINDS, action="append", help=only)
    add("--seeds", type=int, default=3, help="of folds, and of random weights (3; quick: 1)")
    arguments = options.parse_args(words)
    for needed in (arguments.encoder / MARK, arguments.table, *arguments.corpus):
        if not needed.is_file():
            raise UserError(f"there is no {needed}")
    return arguments


def _kinds(
    folder: Path, strings: Sequence[str], seeds: Sequence[int]
) -> dict[str, Callable[[], Vectors]]:
    """Return what makes each kind of vectors, in one version per seed where weights are random."""
    config = EncoderConfig(source=str(folder), pooling="mean")
    encoder = load_encoder(config)
    tokenizer = load_tokenizer(config)
    tokens = tokenize(tokenizer, strings, encoder.max_length, encoder.num_ids).tokens
    return {
        OURS: lambda: [encode_all(encoder, tokens)],
        RANDOM: lambda: [encode_all(_fresh(encoder, seed), tokens) for seed in seeds],
        TOKENS: lambda: [_counts(tokens, encoder.num_ids)],
        MORGAN: lambda: [_morgan(strings)],
        RDKIT: lambda: [np.nan_to_num(np.clip(descriptors(strings, 1), -1e6, 1e6))],
    }


def _fresh(encoder: StringEncoder, seed: int) -> StringEncoder:
    """Return the encoder's architecture with random weights."""
    torch.manual_seed(seed)
    return StringEncoder(DebertaV2Model(encoder.model.config), "mean").eval()


def _counts(tokens: TokenTable, num_ids: int) -> Float[np.ndarray, "S K"]:
    """Return how often each token is in each string."""
    counts = torch.zeros(tokens.num_strings, num_ids)
    string = torch.arange(tokens.num_strings).repeat_interleave(tokens.lengths)
    counts.index_put_((string, tokens.values), torch.ones(len(string)), accumulate=True)
    return counts.numpy()


def _morgan(strings: Sequence[str]) -> Float[np.ndarray, "S K"]:
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    molecules = map(Chem.MolFromSmiles, strings)
    return np.array([made.GetCountFingerprintAsNumPy(each) for each in molecules], dtype=np.float64)


def probe(X: Float[np.ndarray, "S K"], y: Float[np.ndarray, " S"], seed: int) -> float:
    """Return ridge regression's mean R2 over the folds of a seed."""
    scores = []
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(X):
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS))
        scores.append(model.fit(X[train], y[train]).score(X[test], y[test]))
    return float(np.mean(scores))


def nearest(X: Float[np.ndarray, "S K"]) -> Int[np.ndarray, " S"]:
    """Return for each string the other whose standardised vector has the largest cosine."""
    scaled = StandardScaler().fit_transform(X).astype(np.float32)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True).clip(1e-12)
    cosine = scaled @ scaled.T
    np.fill_diagonal(cosine, -np.inf)
    return cosine.argmax(1)


def _fingerprints(strings: Sequence[str]) -> list[Any]:
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return [made.GetFingerprint(Chem.MolFromSmiles(each)) for each in strings]


def _likeness(other: Int[np.ndarray, " S"], fingerprints: Sequence[Any]) -> float:
    """Return the mean Tanimoto similarity of each string and its other one."""
    pairs = zip(fingerprints, other.tolist(), strict=True)
    alike = [DataStructs.TanimotoSimilarity(own, fingerprints[index]) for own, index in pairs]
    return float(np.mean(alike))


def _most_alike(fingerprints: Sequence[Any]) -> Int[np.ndarray, " S"]:
    """Return for each string the other of the largest Tanimoto similarity: what can be reached."""
    found = []
    for index, own in enumerate(fingerprints):
        alike = np.array(DataStructs.BulkTanimotoSimilarity(own, list(fingerprints)))
        alike[index] = -1
        found.append(int(alike.argmax()))
    return np.array(found)


def _mean_sd(found: Sequence[float]) -> dict[str, float | None]:
    sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return {"mean": float(np.mean(found)), "sd": sd}


def _overlap(strings: Sequence[str], corpus: Sequence[Path]) -> dict[str, int] | None:
    """Return how many of the probe's polymers the corpus holds; None where none is given."""
    if not corpus:
        return None
    known = set(polymers_of_files(corpus, processes=1, skip_invalid=True).strings)
    return {"corpus": len(known), "shared": sum(each in known for each in strings)}


def report(found: dict[str, Any]) -> Report:
    """Return probe and neighbours of every kind of vector."""
    columns = [
        Column("vectors", "name"),
        Column("width", "width"),
        Column("R2, all polymers", lambda row: (row["all"]["mean"], row["all"]["sd"]), mean_and_sd),
        Column(
            "R2, those not used to choose settings",
            lambda row: (row["unseen"]["mean"], row["unseen"]["sd"]),
            mean_and_sd,
        ),
        Column("Tanimoto of the nearest", "tanimoto", ".3f"),
    ]
    bars = {name: model["all"]["mean"] for name, model in found["models"].items()}
    alike = {name: model["tanimoto"] for name, model in found["models"].items()}
    limits = {"random pairs": found["random_pairs"], "the most alike": found["most_alike"]}
    return Report(
        "Frozen vectors of polymers: ridge probe and neighbours",
        _remarks(found),
        [Table(columns, named(found["models"]))],
        [
            Panel("frozen ridge probe", "R2, mean of 5 folds", bars, ours=[OURS]),
            Panel("nearest by vector", "mean Tanimoto similarity", alike, limits, ours=[OURS]),
        ],
    )


def _remarks(found: dict[str, Any]) -> list[str]:
    """Return what was probed, and how the encoder was made."""
    made, overlap = found["encoder"], found["overlap"]
    settings, last = made["settings"], made["evaluations"][-1]
    remarks = [
        f"{found['polymers']:,} polymers, {FOLDS} folds, {found['seeds']} seeds; {DEVELOPMENT:,} of"
        f" them were used to choose objective, rate and batch, {found['unseen']:,} were not.",
        f"Encoder: {made['layers']} layers of width {made['width']}, {made['parameters']:,}"
        f" parameters, objective {settings['objective']}, {last['tokens']:,} tokens"
        f" of {made['corpus']['num_strings']:,} polymers in"
        f" {last['seconds'] / 60:.0f} min on {count_of(made['threads'], 'thread')}"
        f" ({last['tokens_per_s']:,.0f} tokens/s).",
        f"Mean Tanimoto of random pairs {found['random_pairs']:.3f}, of the most alike pairs"
        f" {found['most_alike']:.3f}.",
    ]
    if {OURS, RANDOM} <= found["models"].keys():
        ours, random = (found["models"][name]["all"]["mean"] for name in (OURS, RANDOM))
        remarks.append(f"Pre-training adds {ours - random:+.3f} R2 to random weights.")
    if overlap is not None:
        remarks.append(
            f"{overlap['shared']:,} of the polymers are also in the corpus of {overlap['corpus']:,}"
            " (strings alone: no label was read)."
        )
    return remarks
