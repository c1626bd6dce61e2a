"""A run's network as one module, from raw units to predictions in the targets' units.

Transforms, standardisation, what stands for missing numbers, the strings' and categories' tables,
members, inverse transforms and calibration are inside, so that a program of it needs no statistics.
The strings are those that the run was trained on: their summands of the input projection are a
constant table [S, D], which is smaller than their vectors and leaves the encoder out. The bounds
and rules of the config are not inside.

Axes: B rows, C string columns, N numeric columns of the table, F features of the network (a column
whose gaps have an indicator makes two), K category columns, P predictions.
"""

from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from embedcache.errors import RunError
from fusionnet.model.network import Summand
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.blended import Found
from fusionnet.trained.run import TrainedRun

INPUTS = ("numeric", "string_id", "category")
OUTPUT = "predictions"


class RawProgram(nn.Module):
    """Predicts rows in raw units; see the module."""

    def __init__(self, run: TrainedRun) -> None:
        """Raise RunError for a run with trees, which are no part of a network."""
        super().__init__()
        refuse_trees(run)
        self._run = run
        self.network = deepcopy(run.model.network).cpu()
        nothing = _no_rows(run)
        with torch.no_grad():
            known = self.network.summands(
                [run.vectors[c.name].cpu() for c in run.data.strings], nothing
            )
        tables = [each.projected for each in known if each.index is not None]
        for number, table in enumerate(tables):
            self.register_buffer(f"table_{number}", table.clone())
        # what made them is not needed any more
        self.network.adapters.clear()
        self.network.feature_adapters.clear()
        self.network.categories = nn.ModuleList()

    @property
    def run(self) -> TrainedRun:
        """The run that it computes the predictions of."""
        return self._run

    def forward(
        self,
        numeric: Float[Tensor, "B N"],
        string_id: Int[Tensor, "B C"],
        category: Int[Tensor, "B K"],
    ) -> Float[Tensor, "B P"]:
        """Return the predictions of rows, probabilities calibrated as the run's are.

        `numeric` is in raw units, NaN where a number is missing. `string_id` are places among the
        strings trained on, `category` places among the layout's values; a row with a place that
        there is not is predicted as NaN, and so is one that lacks a number for which nothing
        stands, or has one that its transform does not take.
        """
        run, columns = self._run, self.network.string_columns
        # not unbind: of no columns torch 2.13 writes it so that it cannot be loaded
        codes = [category[:, column] for column in range(category.shape[1])]
        places = [*(string_id[:, column] for column in columns), *codes]
        tables = [getattr(self, f"table_{number}") for number in range(len(places))]
        usable = [
            (place >= 0) & (place < len(table)) for place, table in zip(places, tables, strict=True)
        ]
        gathered = [
            Summand(table, place.clamp(0, len(table) - 1))
            for table, place in zip(tables, places, strict=True)
        ]
        features = self._features(numeric)
        standardised = run.scaling.apply(features)
        usable += self._whole(features, standardised)
        numbers = self.network.numeric_summands(standardised)
        of_strings, of_categories = gathered[: len(columns)], gathered[len(columns) :]
        outputs = self.network.of_summands([*of_strings, *numbers, *of_categories], standardised)
        predictions = Found(outputs.float(), {}).in_units(run)
        is_usable = torch.stack(usable).all(0)
        return torch.where(is_usable.unsqueeze(1), predictions, torch.nan)

    def _whole(
        self, features: Float[Tensor, "B F"], standardised: Float[Tensor, "B F"]
    ) -> list[Bool[Tensor, " B"]]:
        """Return whether each row has its numbers: runtimes may take NaN in a ReLU for 0."""
        if not features.shape[1]:
            return []
        needed = [place for place, fill in enumerate(self._run.scaling.fill) if fill is None]
        has_needed = [~features[:, place].isnan() for place in needed]
        return [*has_needed, standardised.isfinite().all(1)]

    def _features(self, numeric: Float[Tensor, "B N"]) -> Float[Tensor, "B F"]:
        """Return the raw features of rows: the columns, behind some of them where it has a gap."""
        parts = []
        for place, column in enumerate(self._run.data.numeric):
            own = numeric[:, place : place + 1]
            parts += [own, own.isnan().to(own)] if column.fill == "indicator" else [own]
        return torch.cat(parts, dim=1) if parts else numeric


def refuse_trees(run: TrainedRun) -> None:
    """Raise RunError for a run whose predictions are a blend with trees."""
    if run.blend is not None:
        raise RunError(
            f"the predictions of {run.folder} are a blend with boosted trees ({run.shares}), which"
            " a program of a network cannot hold. Export it --to safetensors, which has both, or"
            " the network alone: --without-trees"
        )


def without_trees(run: TrainedRun) -> TrainedRun:
    """Return a run's network alone; what was calibrated is left out, since it was of the blend."""
    return run if run.blend is None else replace(run, blend=None, calibration=None)


def _no_rows(run: TrainedRun) -> RowInputs:
    """Return rows of which there are none."""
    sizes = (len(run.data.strings), len(run.layout.numeric), len(run.layout.categories))
    string_id, numeric, category = (torch.zeros(0, size) for size in sizes)
    return RowInputs(string_id.long(), numeric, category.long())
