"""The reference of all config keys, written from the models that read them.

`python -m fusionnet.workflow.reference configs/README.md` writes it between the file's markers; a
test holds that it is up to date.
"""

import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fusionnet.experiment import Experiment

START = "<!-- keys: written by `python -m fusionnet.workflow.reference configs/README.md` -->"
END = "<!-- end of keys -->"


def reference() -> str:
    """Return one Markdown table of keys per section of the config, in the order of the file."""
    sections: list[str] = []
    for name, field in Experiment.model_fields.items():
        _add_section(sections, name, field)
    return "\n\n".join(sections)


def with_reference(text: str) -> str:
    """Return a Markdown text with the reference between its markers brought up to date."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{reference()}\n\n{END}{after}"


def _add_section(sections: list[str], name: str, field: FieldInfo) -> None:
    """Add the table of one config model, then those of the models inside of it."""
    model = _model_in(field.annotation)
    assert model is not None
    is_list = "tuple" in str(field.annotation)
    lines = [f"### `{name}`{' (a list)' if is_list else ''}", "", _first_line(model), ""]
    lines += ["| key | default | |", "|---|---|---|"]
    inner: list[tuple[str, FieldInfo]] = []
    for key, value in model.model_fields.items():
        nested = _model_in(value.annotation)
        lines.append(f"| `{key}` | {_default(value, nested)} | {_meaning(value, nested)} |")
        # EncoderConfig inside of a string column is the section `encoder` again
        if nested is not None and key != "encoder":
            inner.append((f"{name}.{key}", value))
    sections.append("\n".join(lines))
    for path, value in inner:
        _add_section(sections, path, value)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the config model inside of an annotation such as `tuple[Task, ...]`, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def _first_line(model: type[BaseModel]) -> str:
    """Return the first paragraph of a model's docstring, on one line."""
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _default(field: FieldInfo, nested: type[BaseModel] | None) -> str:
    """Return a key's default as a config file would say it."""
    if field.is_required():
        return "**required**"
    value = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    if value is None or value is PydanticUndefined:
        return "unset"
    if nested is not None:
        return "see below"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else "`''`"


def _meaning(field: FieldInfo, nested: type[BaseModel] | None) -> str:
    """Return a key's description, and its choices where it has some."""
    choices = _choices(field.annotation)
    parts = [" ".join((field.description or "").split()).replace("|", "\\|")]
    if nested is not None and not field.description:
        parts = [_first_line(nested)]
    if choices:
        parts.append(f"one of {', '.join(f'`{choice}`' for choice in choices)}")
    return "; ".join(part for part in parts if part)


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return what a key may be, where that is one of a few values (or unset)."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        others = [argument for argument in get_args(annotation) if argument is not type(None)]
        return _choices(others[0]) if len(others) == 1 else ()
    return ()


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_reference(file.read_text(encoding="utf-8")), encoding="utf-8")
