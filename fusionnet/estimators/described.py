"""A frame's experiment: what was said of it, and for the rest what is guessed of its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError
from embedcache.guess.entries import Entry
from embedcache.guess.roles import Named
from embedcache.schema import merged, parse_config
from embedcache.text import nearest
from fusionnet.experiment import Experiment, read_chain
from fusionnet.workflow.drafting import Draft, draft_config

# a column's name, its entry in a config, or a list of these; anything else is refused in words
Columns = Any
_FEATURES = ("strings", "numeric", "categories")


@dataclass(frozen=True)
class Description:
    """What a user says of a table: columns by role, and keys of the config."""

    strings: Columns | None = None
    numeric: Columns | None = None
    categories: Columns | None = None
    target: Columns | None = None
    group: str | None = None
    ignore: Columns = ()
    config: Entry = field(default_factory=dict)  # a config's mapping, as a YAML file has it

    @property
    def names_features(self) -> bool:
        """Whether the config says which columns are features, so that no others are."""
        return any(key in self.config.get("data", {}) for key in _FEATURES)

    def entries(self, role: str) -> list[Entry] | None:
        """Return the entries of "strings", "numeric", "categories" or "tasks" that were given.

        None: nobody said anything of that role, so that it is to be guessed.
        """
        given = self.target if role == "tasks" else getattr(self, role)
        if given is not None:
            return _entries(given)
        where = self.config if role == "tasks" else self.config.get("data", {})
        if role in where:
            return _entries(where[role])
        return [] if role != "tasks" and self.names_features else None

    @property
    def named(self) -> Named:
        """The columns by role."""
        columns = {
            role: None if (found := self.entries(role)) is None else tuple(map(_column_of, found))
            for role in (*_FEATURES, "tasks")
        }
        return Named(
            strings=columns["strings"],
            numeric=columns["numeric"],
            categories=columns["categories"],
            targets=columns["tasks"],
            group=self.group or self.config.get("data", {}).get("group"),
            ignored=tuple(map(_column_of, _entries(self.ignore))),
        )


def read_config(config: object, keys: Mapping[str, Any]) -> Entry:
    """Return a config's mapping, or that of a YAML file, with keys laid over it.

    Raises ConfigError for a file that cannot be read, or a key that no config has.
    """
    base: Entry = {}
    if isinstance(config, str | Path):
        base = read_chain(Path(config))
    elif isinstance(config, Mapping):
        base = dict(config)
    elif config is not None:
        raise ConfigError(
            f"config must be a mapping or a YAML file's path, found {type(config).__name__}"
        )
    unknown = [key for key in (*base, *keys) if key not in Experiment.model_fields]
    if unknown:
        raise ConfigError(
            f"unknown argument or key '{unknown[0]:.80}'"
            f"{nearest(unknown[0], [*Experiment.model_fields, *_FEATURES, 'target'])}; a config has"
            f" {', '.join(Experiment.model_fields)}"
        )
    for key, value in keys.items():
        if key != "tasks" and not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping of its keys, such as {_EXAMPLES[key]}")
    return merged(base, dict(keys))


_EXAMPLES = {key: f"{key}={{...}}" for key in Experiment.model_fields} | {
    "train": 'train={"epochs": 3}',
    "encoder": 'encoder={"source": "encoder"}',
}


def described(table: Path, folder: Path, said: Description) -> tuple[Experiment, Draft]:
    """Return the experiment of a table, whose cache and run are in a folder, and what was guessed.

    Raises TableError, ConfigError or SplitError.
    """
    draft = draft_config(table, said.named, split=said.config.get("split"))
    values = merged(draft.values, said.config)
    data, given = values["data"], said.config.get("data", {})
    guessed = draft.values["data"]
    for role in _FEATURES:
        data[role] = _filled(said.entries(role), guessed.get(role, []))
    values["tasks"] = _filled(said.entries("tasks"), draft.values["tasks"])
    encoder = said.config.get("encoder", {})
    if "lora" in encoder and "mode" not in encoder:
        values["encoder"].pop("mode", None)  # who asks for adapters wants them trained
    if "source" in encoder or encoder.get("mode") == "none":
        data["strings"] = [_shared(column, said.entries("strings")) for column in data["strings"]]
    marks = [*guessed.get("null_values", []), *given.get("null_values", [])]
    data["null_values"] = list(dict.fromkeys(marks))
    data["path"] = str(table)
    values["cache"] = {"path": str(folder / "cache.zarr"), **said.config.get("cache", {})}
    values["run"] = {"dir": str(folder / "run"), "name": "model", **said.config.get("run", {})}
    return parse_config(Experiment, values, "the description of the frame"), draft


def _filled(given: list[Entry] | None, guessed: list[Entry]) -> list[Entry]:
    """Return the entries that were given, what they leave out as it was guessed; else all guesses.

    The kind of a target decides what else it may have, so that one that was given is not mixed with
    the guess of another.
    """
    if given is None:
        return guessed
    by_column = {entry["column"]: entry for entry in guessed}
    filled = []
    for entry in given:
        base = by_column.get(_column_of(entry), {})
        if entry.get("kind", base.get("kind")) != base.get("kind"):
            base = {key: base[key] for key in ("name", "column") if key in base}
        filled.append({**base, **entry})
    return filled


def _shared(column: Entry, given: list[Entry] | None) -> Entry:
    """Return a string column that is read by the encoder that was named, unless it has its own."""
    own = any("encoder" in entry for entry in given or () if entry["column"] == column["column"])
    return column if own else {key: value for key, value in column.items() if key != "encoder"}


def _entries(columns: Columns) -> list[Entry]:
    """Return columns, be they names or entries, one or several, as entries."""
    if isinstance(columns, str | Mapping):
        columns = [columns]
    if not isinstance(columns, Sequence):
        raise ConfigError(
            f"columns are given as a name, an entry such as {{'column': 'x', 'unit': 'K'}}, or a"
            f" list of these; found {type(columns).__name__}"
        )
    return [{"column": each} if isinstance(each, str) else dict(each) for each in columns]


def _column_of(entry: Entry) -> str:
    column = entry.get("column")
    if not isinstance(column, str):
        raise ConfigError(f"an entry must name its column: {entry!r:.200} has no 'column'")
    return column
