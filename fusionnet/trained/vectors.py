"""Vectors of strings from a trained run: those it was trained on, and new ones by its encoder.

A new string is encoded once, with the run's LoRA weights, and remembered for the life of the run
object; one that another column of the same encoder knows is not encoded at all. Behind a vector lie
the string's features, if its column has any.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fusionnet.recipe import encoder_of_column
from fusionnet.trained.run import REMEMBERING, TrainedRun

MOST_REMEMBERED = 65_536  # vectors of new strings per column, about 160 MB at polyBERT's width


def vectors_of_all_strings(
    run: TrainedRun, column: str, texts: Sequence[str]
) -> Float[Tensor, "U E_plus_K"]:
    """Return the run's vectors of prepared strings, one per text, with their features behind.

    Strings of the training table have theirs in the checkpoint; new ones go through the encoder.
    """
    table, row_of = run.vectors[column], run.strings[column]
    new = [text for text in dict.fromkeys(texts) if text not in row_of]
    if new:
        with REMEMBERING:
            table = torch.cat([table, _vectors_of_new(run, column, new)])
        row_of = row_of | {text: len(row_of) + number for number, text in enumerate(new)}
    rows = torch.tensor([row_of[text] for text in texts], dtype=torch.int64, device=table.device)
    return table[rows]


def _vectors_of_new(
    run: TrainedRun, column: str, texts: Sequence[str]
) -> Float[Tensor, "U E_plus_K"]:
    """Return the vectors of distinct new strings and their features, all behind one another."""
    spec = run.layout.strings_of(column)
    known = run.vectors[column]
    parts = [known.new_zeros(len(texts), 0)]
    if spec.width:
        parts.append(_encoded_new(run, column, texts))
    if spec.features:
        parts.append(_described_new(run, column, texts))
    return torch.cat(parts, dim=1)


def _described_new(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U K"]:
    """Return the features of distinct new strings, computing those that are not remembered."""
    remembered = run.memory.features.setdefault(column, {})
    missing = [text for text in texts if text not in remembered]
    if missing:
        # not at the top: known strings need no RDKit
        from fusionnet.trained.features import features_of_new

        (of_data,) = (each for each in run.data.strings if each.name == column)
        found = features_of_new(run, of_data, missing).to(run.vectors[column])
        remembered.update(zip(missing, found, strict=True))
    stacked = torch.stack([remembered[text] for text in texts])
    _forget_oldest(remembered)
    return stacked


def _forget_oldest(remembered: dict[str, Float[Tensor, " E"]]) -> None:
    for text in list(remembered)[: max(0, len(remembered) - MOST_REMEMBERED)]:
        del remembered[text]


def _encoded_new(run: TrainedRun, column: str, texts: Sequence[str]) -> Float[Tensor, "U E"]:
    """Return the vectors of distinct new strings, encoding those that are not remembered."""
    remembered = run.memory.vectors.setdefault(column, {})
    missing = [text for text in texts if text not in remembered]
    remembered |= _vectors_of_other_columns(run, column, missing)
    missing = [text for text in missing if text not in remembered]
    if missing:
        # not at the top: known strings need no encoder, whose packages take seconds to import
        from fusionnet.trained.encoder import encode_new

        encoded = encode_new(run, column, missing).to(run.vectors[column])
        remembered.update(zip(missing, encoded, strict=True))
    found = torch.stack([remembered[text] for text in texts])
    _forget_oldest(remembered)
    return found


def _vectors_of_other_columns(
    run: TrainedRun, column: str, texts: Sequence[str]
) -> dict[str, Float[Tensor, " E"]]:
    """Return what other columns of the column's encoder know of these texts."""
    names = [spec.name for spec in run.layout.strings]
    keys = dict(zip(names, encoder_of_column(run.recipe, names), strict=True))
    found: dict[str, Float[Tensor, " E"]] = {}
    for name in names:
        if keys[name] != keys[column] or name == column:
            continue
        row_of, remembered = run.strings[name], run.memory.vectors.get(name, {})
        for text in texts:
            if text in row_of:
                found[text] = run.vectors[name][row_of[text], : run.layout.strings_of(name).width]
            elif text in remembered:
                found[text] = remembered[text]
    return found
