"""The space of designs: materials, formulations between bounds, and choices of one of several.

A material is a distinct combination of the values of all string columns and of the category columns
that vary within a patient (a value of data.group). For each there are continuous variables, bounded
by its own rows in the table, and for all of them sets of columns of which exactly one is 1. What is
constant within patients is given: the context. `deriving.from_rows` makes the space of a run.

`frame` and `inputs` say the same designs: as a table that `RewardModel.predict` reads, and, for
millions of them, as the tensors that `RewardModel.inputs` makes of that table, without polars.

Axes: M materials, V variables, G choices, B designs, F numeric features, K category columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64
from pydantic import ValidationError

from embedcache.errors import DesignError
from embedcache.schema import explained
from fusionnet.design.columns import Context, RunColumns
from fusionnet.design.saved import SavedSpace
from fusionnet.rows.tensors import RowInputs


class Designs(NamedTuple):
    """B designs."""

    material: Int64[np.ndarray, " B"]
    values: Float64[np.ndarray, "B V"]  # raw units
    choice: Int64[np.ndarray, "B G"]  # which column of each set is 1


@dataclass(frozen=True, eq=False)
class FormulationSpace:
    """What may be chosen, and how it is written for the run."""

    columns: RunColumns
    texts: Mapping[str, tuple[str, ...]]  # name of each string column -> M prepared strings
    categories: Mapping[str, tuple[str, ...]]  # of those that vary: column -> M values
    variables: tuple[str, ...]
    low: Float64[np.ndarray, "M V"]
    high: Float64[np.ndarray, "M V"]
    logarithmic: tuple[bool, ...]  # whether a variable is drawn in its logarithm
    whole: tuple[bool, ...]  # whether the table has whole numbers alone
    choices: tuple[tuple[str, ...], ...]
    fixed: tuple[str, ...]  # the context's columns: numeric ones, then categories
    group: str | None  # the column that names a patient
    num_left_out: int = 0  # materials without any formulation inside of design.bounds

    @property
    def num_materials(self) -> int:
        """M."""
        return len(self.low)

    @cached_property
    def distinct(self) -> dict[str, tuple[str, ...]]:
        """The distinct texts of each string column, which `RowInputs.string_id` indexes."""
        return {name: tuple(dict.fromkeys(texts)) for name, texts in self.texts.items()}

    @property
    def num_choices(self) -> Int64[np.ndarray, " G"]:
        """How many columns each set has."""
        return np.array([len(columns) for columns in self.choices], dtype=np.int64)

    def title(self, material: int) -> str:
        """Return a material's strings and categories in words."""
        values = [each[material] for each in (*self.texts.values(), *self.categories.values())]
        return ", ".join(dict.fromkeys(values)) or "the only material"

    def draw(self, generator: np.random.Generator, count: int) -> Designs:
        """Return designs of uniformly drawn materials, values between their bounds and choices."""
        material = generator.integers(self.num_materials, size=count)
        share = generator.random((count, len(self.variables)))
        choice = generator.integers(self.num_choices, size=(count, len(self.choices)))
        return Designs(material, self.values_at(material, share), choice)

    def values_at(
        self, material: Int64[np.ndarray, " B"], share: Float64[np.ndarray, "B V"]
    ) -> Float64[np.ndarray, "B V"]:
        """Return the values at shares, from 0 to 1, of the way from the lower to the upper bound.

        The way is measured in logarithms where a variable is logarithmic; whole numbers have equal
        shares of it.
        """
        low, high = self.low[material], self.high[material]
        begin, end = self._scaled_bounds
        values = begin[material] + share * (end - begin)[material]
        is_log, is_whole = self._is_logarithmic, np.array(self.whole, dtype=bool)
        values[:, is_log] = np.exp(values[:, is_log])
        if is_whole.any():
            values[:, is_whole] = np.floor(low + share * (high - low + 1))[:, is_whole]
        return np.clip(values, low, high)

    def shares_of(
        self, material: Int64[np.ndarray, " B"], values: Float64[np.ndarray, "B V"]
    ) -> Float64[np.ndarray, "B V"]:
        """Return at which share of the way from the lower to the upper bound values are.

        It is 0 where the bounds are equal.
        """
        begin, end = (bound[material] for bound in self._scaled_bounds)
        scaled = values.copy()
        scaled[:, self._is_logarithmic] = np.log(scaled[:, self._is_logarithmic])
        return np.where(end > begin, (scaled - begin) / np.where(end > begin, end - begin, 1), 0.0)

    def check(self, designs: Designs) -> None:
        """Raise DesignError unless all designs are inside of the space."""
        material, values, choice = designs
        outside = (material < 0) | (material >= self.num_materials)
        if outside.any():
            raise DesignError(
                f"design {outside.argmax()} is of material {material[outside.argmax()]}; there are"
                f" 0 to {self.num_materials - 1}"
            )
        for row, g in np.argwhere((choice < 0) | (choice >= self.num_choices))[:1].tolist():
            raise DesignError(
                f"design {row} chooses column {choice[row, g]} of {', '.join(self.choices[g])};"
                f" they are 0 to {self.num_choices[g] - 1}"
            )
        low, high = self.low[material], self.high[material]
        for row, v in np.argwhere(~((values >= low) & (values <= high)))[:1].tolist():
            raise DesignError(
                f"design {row}: {self.variables[v]} {values[row, v]:g} is not between"
                f" {low[row, v]:g} and {high[row, v]:g}, the bounds of material {material[row]}"
                f" ({self.title(int(material[row])):.200})"
            )

    def frame(
        self,
        context: pl.DataFrame,
        material: Int64[np.ndarray, " B"],
        values: Float64[np.ndarray, "B V"],
        choice: Int64[np.ndarray, "B G"],
    ) -> pl.DataFrame:
        """Return designs as a table of all columns that the run reads, in raw units.

        `context` has the fixed columns, in one row or in one per design. Raises DesignError for
        what lies outside of the space.
        """
        self.check(Designs(material, values, choice))
        self.context(context)
        if context.height not in (1, len(material)):
            raise DesignError(
                f"the context has {context.height:,} rows for {len(material):,} designs; give one"
                " row, or one per design"
            )
        columns: dict[str, Sequence[object]] = {}
        for name, texts in self.texts.items():
            columns[self.columns.strings[name]] = [texts[m] for m in material.tolist()]
        columns |= {name: values[:, v].tolist() for v, name in enumerate(self.variables)}
        for g, names in enumerate(self.choices):
            of_set = choice[:, g, None] == np.arange(len(names))
            columns |= {name: of_set[:, k].astype(float) for k, name in enumerate(names)}
        for name, each in self.categories.items():
            columns[name] = [each[m] for m in material.tolist()]
        row = np.zeros(len(material), np.int64) if context.height == 1 else np.arange(len(material))
        return pl.DataFrame(columns).with_columns(context[name].gather(row) for name in self.fixed)

    def context(self, frame: pl.DataFrame) -> Context:
        """Return the fixed columns of a table as `inputs` takes them, a row each.

        Raises DesignError for a column or a value that is missing or unknown.
        """
        return self.columns.context(frame, self.fixed)

    def inputs(
        self,
        context: Context,
        material: Int64[np.ndarray, " B"],
        values: Float64[np.ndarray, "B V"],
        choice: Int64[np.ndarray, "B G"],
    ) -> RowInputs:
        """Return designs as `RewardModel.inputs` returns the same `frame`: raw units, on the CPU.

        `context` has one row, or one per design; `string_id` indexes `distinct`. Nothing is
        checked: see `check`.
        """
        places, count = self._places, len(material)
        numeric = np.empty((count, context.numeric.shape[1]), dtype=np.float32)
        numeric[:] = context.numeric
        numeric[:, places.variables] = values
        for columns, picked in zip(places.choices, choice.T, strict=True):
            numeric[:, columns] = picked[:, None] == np.arange(len(columns))
        category = np.empty((count, context.category.shape[1]), dtype=np.int64)
        category[:] = context.category
        category[:, places.categories] = places.code[material]
        string_id = places.string_id[material]
        return RowInputs(*map(torch.from_numpy, (string_id, numeric, category)))

    def to_json(self) -> str:
        """Return the space as JSON text; floats survive the round trip exactly."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"low": self.low.tolist(), "high": self.high.tolist()}
        return SavedSpace(**{**values, "columns": asdict(self.columns)}).model_dump_json()

    @staticmethod
    def from_json(text: str) -> "FormulationSpace":
        """Return what `to_json` wrote; raises DesignError for what no space is."""
        try:
            saved = SavedSpace.model_validate_json(text)
        except ValidationError as error:
            lines = "; ".join(explained(SavedSpace, error)[:5])
            raise DesignError(f"this JSON is no space of designs: {lines:.1000}") from None
        shape = (len(saved.low), len(saved.variables))
        values = {name: getattr(saved, name) for name in SavedSpace.model_fields}
        values |= {name: np.array(values[name]).reshape(shape) for name in ("low", "high")}
        values["columns"] = RunColumns(**saved.columns.model_dump())
        return FormulationSpace(**values)

    @cached_property
    def _is_logarithmic(self) -> Bool[np.ndarray, " V"]:
        return np.array(self.logarithmic, dtype=bool)

    @cached_property
    def _scaled_bounds(self) -> tuple[Float64[np.ndarray, "M V"], Float64[np.ndarray, "M V"]]:
        """The bounds, as logarithms where values are drawn so."""
        bounds = (self.low.copy(), self.high.copy())
        for bound in bounds:
            bound[:, self._is_logarithmic] = np.log(bound[:, self._is_logarithmic])
        return bounds

    @cached_property
    def _places(self) -> "_Places":
        features, vocabularies = list(self.columns.features), list(self.columns.vocabularies)
        ids = [
            np.array([self.distinct[name].index(text) for text in texts])
            for name, texts in self.texts.items()
        ]
        codes = [self.columns.codes(name, pl.Series(v)) for name, v in self.categories.items()]
        return _Places(
            variables=[features.index(name) for name in self.variables],
            choices=[[features.index(name) for name in names] for names in self.choices],
            categories=[vocabularies.index(name) for name in self.categories],
            string_id=_side_by_side(ids, self.num_materials),
            code=_side_by_side(codes, self.num_materials),
        )


class _Places(NamedTuple):
    """Where the parts of a design are among the run's inputs."""

    variables: list[int]
    choices: list[list[int]]
    categories: list[int]
    string_id: Int64[np.ndarray, "M _"]
    code: Int64[np.ndarray, "M _"]


def _side_by_side(
    columns: Sequence[Int64[np.ndarray, " M"]], num_rows: int
) -> Int64[np.ndarray, "M _"]:
    """Return columns of M numbers; there may be none."""
    numbers = np.array(columns, dtype=np.int64).reshape(len(columns), num_rows)
    return np.ascontiguousarray(numbers.T)
