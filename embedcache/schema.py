"""The base of all configurations, which refuses unknown keys, and the reading of one.

pydantic finds what is wrong; what a user is told is said here: every problem at once, each with its
path, what the key means, and the nearest known key for an unknown one.
"""

from collections.abc import Iterator, Mapping, Sequence
from reprlib import Repr
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from embedcache.errors import ConfigError
from embedcache.text import most_like

Loc = tuple[str | int, ...]


class Config(BaseModel):
    """Base of all configs: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


ConfigT = TypeVar("ConfigT", bound=Config)
# cuts while it writes: the whole of a large or deeply nested value would never end
_shown = Repr()
_shown.maxlevel, _shown.maxstring, _shown.maxother = 2, 80, 80
_SYNONYMS = "also_called"
# what pydantic says in Python's words
_WORDS = {
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping of keys to values",
    "model_type": "Input should be a mapping of keys to values",
    "model_attributes_type": "Input should be a mapping of keys to values",
    "string_type": "Input should be text",
    "bool_parsing": "Input should be yes or no",
    "bool_type": "Input should be yes or no",
    "too_short": "Input should have {min_length} or more items, found {actual_length}",
    "too_long": "Input should have {max_length} or fewer items, found {actual_length}",
}


def also_called(*names: str) -> dict[str, JsonValue]:
    """Return what a Field carries so that whoever uses another tool's name for a key is told ours.

    Pass it as `json_schema_extra`.
    """
    return {_SYNONYMS: list(names)}


def parse_config(cls: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """Return `values` as a `cls`, or raise one ConfigError that lists every problem.

    For an unknown key it names the nearest known one.
    """
    lines = _misplaced_truths(cls, values)
    try:
        config = cls.model_validate(values)
    except ValidationError as error:
        found = explained(cls, error)
        places = {line.partition(": ")[0] for line in found}
        lines = found + [line for line in lines if line.partition(": ")[0] not in places]
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines)
        raise ConfigError(f"{origin} is not a valid configuration:\n{listed}")
    return config


def depth_of(values: Any) -> int:
    """Return how many lists and mappings are nested in each other, without recursion."""
    depth, level = 0, [values]
    while level := [
        item
        for each in level
        if isinstance(each, dict | list)
        for item in (each.values() if isinstance(each, dict) else each)
    ]:
        depth += 1
    return depth


def merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` laid over it, mapping by mapping."""
    result = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def _misplaced_truths(cls: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Return one line on each yes or no where there should be something else.

    pydantic takes True for 1.
    """
    lines = []
    open_ends: list[tuple[Loc, Any]] = [((), values)]
    while open_ends:
        path, value = open_ends.pop()
        if isinstance(value, dict):
            open_ends += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            open_ends += [((*path, index), item) for index, item in enumerate(value)]
        elif isinstance(value, bool):
            steps, field = _place(cls, path)
            if field is not None and not _takes_truth(field):
                where = ".".join(map(str, steps))
                lines.append(f"{where}: is yes or no (true, false, on, off); {field.description}")
    return lines


def _takes_truth(field: FieldInfo) -> bool:
    """Return whether a key may be yes or no, or anything at all."""
    return any(part in (bool, Any, object) for part in _parts(field.annotation))


def explained(cls: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one line on each problem that pydantic found, and none on what follows from another.

    What may be one thing or another, and is neither, is one problem.
    """
    problems = error.errors(include_url=False)
    lines: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for problem in problems:
        if not _follows(problem, problems):
            where, wrong, ends[where] = _explain(cls, problem)
            lines.setdefault(where, []).append(wrong)
    return [f"{where}: {_either(wrong)}{ends[where]}" for where, wrong in lines.items()]


def _either(wrong: Sequence[str]) -> str:
    """Return what a value should be one of, as one statement."""
    first, *others = dict.fromkeys(wrong)
    return " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])


def _follows(problem: Any, problems: Sequence[Any]) -> bool:
    """Return whether a problem is but the consequence of others.

    A list whose items are wrong is empty for pydantic, hence also too short.
    """
    path = problem["loc"]
    return problem["type"] == "too_short" and any(
        other is not problem and other["loc"][: len(path)] == path for other in problems
    )


def _explain(cls: type[BaseModel], problem: Any) -> tuple[str, str, str]:
    """Return where a problem is, what is wrong, and what was given and is meant there."""
    path, field = _place(cls, problem["loc"])
    where = ".".join(f"{step!s:.80}" for step in path) or "(the whole)"
    meaning = f"; {field.description}" if field is not None and field.description else ""
    kind = problem["type"]
    if kind == "missing":
        return where, "is required", meaning
    if kind == "extra_forbidden":
        return where, f"unknown key; {_hint(cls, path)}", ""
    message = problem["msg"].removeprefix("Value error, ")
    wrong = _WORDS[kind].format(**problem.get("ctx", {})) if kind in _WORDS else message
    if kind == "string_type" and isinstance(problem["input"], bool):
        wrong = f"{wrong}; quote it, since YAML reads a bare yes, no, on or off as a truth"
    if kind == "value_error" and isinstance(problem["input"], dict):
        return where, wrong, ""  # on several keys, which the message names
    return where, wrong, f" (got {_shown.repr(problem['input'])}){meaning}"


def _place(cls: type[BaseModel], loc: Loc) -> tuple[Loc, FieldInfo | None]:
    """Return the steps of a problem's path that a user wrote, and the key that it ends in.

    pydantic adds a step for each type that a value may have, such as "tuple[str, ...]".
    """
    steps: list[str | int] = []
    field, models = None, [cls]
    for number, step in enumerate(loc):
        owner = next((model for model in models if step in model.model_fields), None)
        if owner is None and models and isinstance(step, str):  # a key that is not of ours
            return (*steps, *loc[number:]), None
        if owner is not None and isinstance(step, str):
            field = owner.model_fields[step]
            models = _models_in(field.annotation)
        elif isinstance(step, str) and models:
            field, models = None, []  # a key that the config does not have
        elif isinstance(step, str) and field is not None:
            is_mapping = any(get_origin(part) is dict for part in _parts(field.annotation))
            if step == "[key]" or not is_mapping:
                continue
        steps.append(step)
    return tuple(steps), field


def _hint(cls: type[BaseModel], path: Loc) -> str:
    """Return which key may have been meant by an unknown one: a slip, or a key of another place."""
    key, place = f"{path[-1]!s:.80}", _model_at(cls, path[:-1])
    known = list(place.model_fields)
    here = [name for name, field in place.model_fields.items() if key in _synonyms(field)]
    near = here[0] if here else most_like(key, known)
    if near is not None:
        return f"did you mean '{near}'?"
    elsewhere = sorted(_places_of(cls, key), key=lambda found: found.count("."))
    if elsewhere:
        depth = elsewhere[0].count(".")
        nearest = [found for found in elsewhere if found.count(".") == depth]
        return f"did you mean {' or '.join(nearest)}?"
    return f"known keys here: {', '.join(sorted(known))}"


def _places_of(cls: type[BaseModel], key: str, above: str = "") -> Iterator[str]:
    """Yield the paths of the keys of this name, or that are called so elsewhere, in a config."""
    for name, field in cls.model_fields.items():
        if key == name or key in _synonyms(field):
            yield above + name
        for model in _models_in(field.annotation):
            yield from _places_of(model, key, f"{above}{name}.")


def _synonyms(field: FieldInfo) -> list[str]:
    """Return what a key is called in other tools."""
    extra: Any = field.json_schema_extra or {}
    return list(extra.get(_SYNONYMS, ()))


def _model_at(cls: type[BaseModel], path: Loc) -> type[BaseModel]:
    """Return the config model that sits at `path` inside `cls`."""
    current = cls
    for step in path:
        if isinstance(step, int) or step not in current.model_fields:
            continue
        models = _models_in(current.model_fields[step].annotation)
        if models:
            current = models[0]
    return current


def _parts(annotation: Any) -> list[Any]:
    """Return a type and all types in it, such as those of `tuple[StringColumn, ...] | None`."""
    inner = [part for argument in get_args(annotation) for part in _parts(argument)]
    return [annotation, *inner]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the config models in a type."""
    return [
        part
        for part in _parts(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
