"""How far a new string's reward may be off: what strings that were left out have shown.

Networks of an ensemble read the same strings and are wrong about a new one together, so their
spread does not see it. What is measured instead is how far the run is off on strings that it did
not read (`calibration`, where the split leaves strings out): each one's mean error of the reward's
terms is a draw of what a new string may bring, and their root mean square is its standard
deviation. Penalties are steps and are left aside; of `reward.binary: score` the errors are those of
probabilities.

Axes: B rows, U distinct strings of a table, S strings left out, P predictions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusionnet.calibration.saved import Calibration
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.formula import Formula
from fusionnet.trained.frames import known_strings
from fusionnet.trained.run import TrainedRun


@dataclass(frozen=True)
class NewStrings:
    """Which of a table's strings are new, and how far their rewards may be off."""

    column: int  # of the string columns
    is_new: Bool[Tensor, " U"]
    deviation: float  # of the reward, in its unit

    def variance(self, inputs: RowInputs) -> Float[Tensor, " B"]:
        """Return what each row's string adds to the variance of its reward."""
        new = self.is_new.to(inputs.string_id.device)[inputs.string_id[:, self.column]]
        return self.deviation**2 * new.to(torch.float32)


def has_errors_of_strings(run: TrainedRun) -> bool:
    """Return whether the run knows how far it is off on strings that it did not read."""
    return run.calibration is not None and bool(run.calibration.mean_errors)


def new_strings_of(
    run: TrainedRun, formula: Formula, texts: Mapping[str, Sequence[str]]
) -> NewStrings | None:
    """Return which prepared strings are new; None where nobody measured what that means.

    `texts` are the distinct strings that rows' ids index, by string column.
    """
    if run.calibration is None or not run.calibration.mean_errors:
        return None
    name = run.calibration.unit_name
    deviation = deviation_of(run.calibration, formula)
    if deviation is None or name not in texts:
        return None
    column = [spec.name for spec in run.layout.strings].index(name)
    known = torch.from_numpy(known_strings(run, name, texts[name]))
    return NewStrings(column, ~known, deviation)


def deviation_of(calibration: Calibration, formula: Formula) -> float | None:
    """Return the root mean square over strings of each one's mean error of the reward's terms.

    None where no string had labels of all that the terms read.
    """
    errors: Float[Tensor, "S P"] = torch.tensor(
        [
            [math.nan if value is None else value for value in own]
            for own in calibration.mean_errors
        ],
        dtype=torch.float64,
    )
    total = torch.zeros(len(errors), dtype=torch.float64)
    for term, read in formula.terms:
        total = total + term.weight * read.value(errors)
    seen = total[~total.isnan()]
    return float(seen.square().mean().sqrt()) if len(seen) else None
