"""The base of all configurations, which refuses unknown keys, and the reading of one.

pydantic finds what is wrong; what a user is told is said here: every problem at once, each with its
path, and the nearest known key for an unknown one.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from embedcache.errors import ConfigError


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


ConfigT = TypeVar("ConfigT", bound=Config)
# cuts while it writes: the whole of a large or deeply nested value would never end
_shown = Repr()
_shown.maxlevel, _shown.maxstring, _shown.maxother = 2, 80, 80


def parse_config(cls: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """Return `values` as a `cls`, or raise one ConfigError that lists every problem.

    For an unknown key it names the nearest known one.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_explain(cls, each) for each in problems if not _follows(each, problems)]
        raise ConfigError(
            f"{origin} is not a valid configuration:\n" + "\n".join(f"  - {line}" for line in lines)
        ) from None


def _follows(problem: Any, problems: Sequence[Any]) -> bool:
    """Return whether a problem is but the consequence of others.

    A list whose items are wrong is empty for pydantic, hence also too short.
    """
    path = problem["loc"]
    return problem["type"] == "too_short" and any(
        other is not problem and other["loc"][: len(path)] == path for other in problems
    )


def _explain(cls: type[BaseModel], problem: Any) -> str:
    """Return one line on one pydantic problem."""
    path = problem["loc"]
    where = ".".join(f"{step!s:.80}" for step in path) or "(the whole)"
    if problem["type"] == "missing":
        return f"{where}: is required"
    if problem["type"] != "extra_forbidden":
        return (
            f"{where}: {problem['msg'].removeprefix('Value error, ')} (got"
            f" {_shown.repr(problem['input'])})"
        )
    known = _fields_at(cls, path[:-1])
    near = get_close_matches(f"{path[-1]!s:.80}", known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"
    return f"{where}: unknown key; {hint}"


def _fields_at(cls: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the field names of the config model that sits at `path` inside `cls`."""
    current: type[BaseModel] = cls
    for step in path:
        if isinstance(step, int) or step not in current.model_fields:
            continue
        models = _models_in(current.model_fields[step].annotation)
        if models:
            current = models[0]
    return list(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the config models in a type such as `tuple[StringColumn, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
