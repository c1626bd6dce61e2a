"""A space as it is written: JSON by a strict schema."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Amount

Texts = tuple[str, ...]
Bounds = tuple[tuple[Amount, ...], ...]


class SavedColumns(Config):
    """How the run reads its rows; see `columns.RunColumns`."""

    strings: dict[str, str]
    features: Texts
    vocabularies: dict[str, Texts]
    others: dict[str, str]
    fillings: dict[str, Amount | None]
    indicators: dict[str, str]


class SavedSpace(Config):
    """What may be chosen; see `space.FormulationSpace`."""

    columns: SavedColumns
    texts: dict[str, Texts]
    categories: dict[str, Texts]
    variables: Texts
    low: Bounds
    high: Bounds
    logarithmic: tuple[bool, ...]
    whole: tuple[bool, ...]
    choices: tuple[Annotated[Texts, Field(min_length=2)], ...]
    fixed: Texts
    group: str | None
    num_left_out: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> "SavedSpace":
        num_materials, num_variables = len(self.low), len(self.variables)
        per_material = [self.high, *self.texts.values(), *self.categories.values()]
        if not num_materials or any(len(each) != num_materials for each in per_material):
            raise ValueError("texts, categories and bounds are of different numbers of materials")
        per_variable: list[Any] = [*self.low, *self.high, self.logarithmic, self.whole]
        if any(len(each) != num_variables for each in per_variable):
            raise ValueError("bounds or flags are of another number of variables")
        for low, high in zip(self.low, self.high, strict=True):
            if any(least > most for least, most in zip(low, high, strict=True)):
                raise ValueError("a lower bound is above the upper one")
            of_logs = zip(low, self.logarithmic, strict=True)
            if any(least <= 0 for least, is_log in of_logs if is_log):
                raise ValueError("a logarithmic variable has a bound that is not above 0")
        self._check_names()
        return self

    def _check_names(self) -> None:
        """Raise ValueError unless each of the run's columns is chosen or fixed, and no other."""
        columns = self.columns
        own = [*columns.features, *columns.vocabularies]
        named = [*self.variables, *(name for each in self.choices for name in each), *self.fixed]
        named += [*self.categories, *columns.indicators]
        if sorted(own) != sorted(named):
            raise ValueError("columns that are chosen or fixed are not those that the run reads")
        if list(self.texts) != list(columns.strings):
            raise ValueError("texts are not those of the run's string columns")
        for name, values in self.categories.items():
            strange = set(values) - set(columns.vocabularies[name])
            if strange and name not in columns.others:
                raise ValueError(f"category {strange.pop()!r:.80} is none of '{name:.80}'")
