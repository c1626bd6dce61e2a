"""One experiment: the configs of all components, composed and read from one YAML file.

Nothing else is configurable: the DeepSpeed dict, the number of accumulation steps and the
learning-rate schedule are derived from this. A file may start from another one with `extends:
other.yaml` (relative to itself); its own mappings are merged into the other's, its lists and values
replace them.
"""

import os
import reprlib
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from embedcache.config.cache import CacheConfig
from embedcache.config.encoder import EncoderConfig
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError
from embedcache.schema import Config, also_called, merged, parse_config
from embedcache.values import expanded_path
from fusionnet.config.blend import BlendConfig
from fusionnet.config.calibration import CalibrationConfig
from fusionnet.config.design import DesignConfig
from fusionnet.config.model import ModelSection
from fusionnet.config.reward import RewardConfig
from fusionnet.config.tasks import LossConfig, Task
from fusionnet.config.train import OptimConfig, RunConfig, TrainSection, monitor_names
from fusionnet.yamlfile import MOST_DEPTH, parse_yaml, read_yaml, shown, to_yaml

_CSV_SIGNS = {",", "|", ":", "\t"}  # of which none is a value in YAML


class Experiment(Config):
    """Everything that a run depends on; saved with the run, defaults resolved."""

    data: DataConfig
    tasks: tuple[Task, ...] = Field(
        min_length=1,
        description="what is learnt: one entry per target column",
        json_schema_extra=also_called("targets", "labels"),
    )
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig = EncoderConfig()
    cache: CacheConfig = CacheConfig()
    model: ModelSection = ModelSection()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainSection = TrainSection()
    blend: BlendConfig = BlendConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    run: RunConfig = RunConfig()
    reward: RewardConfig = RewardConfig()
    design: DesignConfig = DesignConfig()

    @model_validator(mode="after")
    def _tasks_are_named(self) -> "Experiment":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names) or len({task.column for task in self.tasks}) < len(names):
            raise ValueError(
                f"tasks must have distinct names and columns, found: {', '.join(names)}"
            )
        if not any(task.weight for task in self.tasks):
            raise ValueError("every task has weight 0, so nothing would be learned; raise one")
        for task in self.reward.tasks:
            if task not in names:
                raise ValueError(
                    f"reward reads task '{task:.80}', which is not among the tasks:"
                    f" {', '.join(names)}"
                )
        leaves_strings_out = self.split.strategy in ("leave_strings_out", "scaffold")
        if self.reward.pessimism and self.model.members == 1 and not leaves_strings_out:
            raise ValueError(
                f"reward.pessimism is {self.reward.pessimism:g}, and one network does not say how"
                " far its rewards can be trusted: set model.members: 8, or leave strings out, whose"
                " errors say it of new ones (split.strategy: leave_strings_out), or"
                " reward.pessimism: 0"
            )
        if self.train.monitor not in monitor_names(self.tasks):
            raise ValueError(
                f"train.monitor names '{self.train.monitor:.80}', which is not among"
                f" {', '.join(monitor_names(self.tasks))}"
            )
        of_classes = {task.column for task in self.tasks if task.kind != "regression"}
        if self.split.stratify_by is not None and self.split.stratify_by not in of_classes:
            raise ValueError(
                f"split.stratify_by names '{self.split.stratify_by}', which is not the column of a"
                " task of classes"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_named(self) -> "Experiment":
        groups = list(dict.fromkeys(column.feature_group for column in self.data.numeric))
        for group in self.model.feature_noise:
            if group not in groups:
                raise ValueError(
                    f"model.feature_noise names '{group}', which is no feature_group of"
                    f" data.numeric: {', '.join(map(repr, groups))}"
                )
        if self.model.linear_skip and not groups:
            raise ValueError(
                "model.linear_skip is a function of data.numeric, which has no columns"
            )
        if self.model.numeric != "linear" and not groups:
            raise ValueError(
                f"model.numeric '{self.model.numeric}' is of data.numeric, which has no columns"
            )
        strings = [column.name for column in self.data.strings]
        if self.split.string is not None and self.split.string not in strings:
            raise ValueError(
                f"split.string names '{self.split.string:.80}', which is no name of data.strings:"
                f" {', '.join(strings)}"
            )
        if self.split.strategy == "group" and self.data.group is None:
            raise ValueError("split.strategy 'group' needs data.group")
        self.design.check_names(self.data)
        return self

    @model_validator(mode="after")
    def _calibration_fits(self) -> "Experiment":
        strings = [column.name for column in self.data.strings]
        columns = [*strings, *(column.column for column in self.data.categories)]
        if self.calibration.by is not None and self.calibration.by not in columns:
            raise ValueError(
                f"calibration.by names '{self.calibration.by:.80}', which is neither a string"
                f" column's name nor a category's column: {', '.join(columns) or 'there are none'}"
            )
        if self.calibration.unit == "group" and self.data.group is None:
            raise ValueError("calibration.unit 'group' needs data.group")
        if self.calibration.unit == "string" and not strings:
            raise ValueError("calibration.unit 'string' needs a column in data.strings")
        return self

    @model_validator(mode="after")
    def _encoders_agree(self) -> "Experiment":
        modes = {column.name: (column.encoder or self.encoder).mode for column in self.data.strings}
        if len(set(modes.values())) > 1:
            found = ", ".join(f"{name}: {mode}" for name, mode in modes.items())
            raise ValueError(
                f"all string columns are encoded in one mode, found {found}; give their encoders"
                " the same encoder.mode"
            )
        if unread := self.data.unread(self.encoder):
            raise ValueError(
                "encoder.mode is none, and nothing else reads string column"
                f" {', '.join(map(repr, unread))}: give it features, e.g. [rdkit, morgan], take it"
                " away, or choose another mode"
            )
        return self

    @property
    def targets(self) -> tuple[TargetColumn, ...]:
        """The label columns as phase 1 sees them."""
        return tuple(
            TargetColumn(**task.model_dump(include=set(TargetColumn.model_fields)))
            for task in self.tasks
        )

    def to_yaml(self) -> str:
        """Return the resolved config as YAML that `load_experiment` reads back unchanged."""
        return to_yaml(self.model_dump(mode="json"))


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Return the experiment of a YAML file with `--set` overrides applied.

    Raises ConfigError naming every problem.
    """
    return parse_config(
        Experiment, apply_overrides(read_chain(Path(path)), overrides or []), shown(path)
    )


def read_chain(file: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, merged into that of the file it extends, and so on.

    Raises ConfigError for a file that cannot be read or is none.
    """
    chain: list[Path] = []
    layers: list[dict[str, Any]] = []
    while True:
        values = _read_mapping(file, chain)
        layers.append(values)
        if "extends" not in values:
            return reduce(merged, reversed(layers))
        base = values.pop("extends")
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f"{shown(file)}: extends must name one YAML file, such as 'extends: stage1.yaml'"
                f" (got {reprlib.repr(base)})"
            )
        chain.append(file)
        try:
            file = file.parent / expanded_path(base)
        except ValueError as error:
            raise ConfigError(
                f"{shown(file)}: extends {error} (got {reprlib.repr(base)})"
            ) from None


def _read_mapping(file: Path, chain: list[Path]) -> dict[str, Any]:
    """Return a YAML file's own mapping; `chain` are the files that extend each other up to it."""
    because = f" ({_arrows([*chain, file])})" if chain else ""
    try:
        values = read_yaml(file)
    except ConfigError as error:
        raise ConfigError(f"{error}{because}") from None
    if os.path.realpath(file) in map(os.path.realpath, chain):
        raise ConfigError(
            f"config files extend each other in a circle{because}; one of them must do without"
            " 'extends'"
        )
    if not isinstance(values, dict):
        raise ConfigError(
            f"{shown(file)} must hold a mapping with the keys {', '.join(Experiment.model_fields)}"
            f"{because}"
        )
    return values


def _arrows(chain: list[Path]) -> str:
    """Return a chain of files in words."""
    return " extends ".join(map(shown, chain))


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the nested mapping with every `a.b.c=value` set.

    Values are read as YAML; list items are addressed by their index.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            raise _refused(override, "expected KEY=VALUE, such as --set train.epochs=3")
        if len(path) > MOST_DEPTH:
            raise _refused(override, f"no key is {len(path)} levels deep")
        _set_at(values, path, _value(text, f"--set {shown(override)}"), override)
    return values


def _value(text: str, origin: str) -> Any:
    """Return what the text behind a key stands for: YAML, but a sign of a CSV file is itself.

    `data.csv.decimal=','` is what a message asks for, and a shell takes the quotes away.
    """
    return text if text in _CSV_SIGNS else parse_yaml(text, origin)


def _set_at(values: Any, path: list[str], value: Any, override: str) -> None:
    """Set one value inside nested mappings and lists, creating mappings on the way."""
    for step in path[:-1]:
        values = (
            values.setdefault(step, {})
            if isinstance(values, dict)
            else values[_index(values, step, override)]
        )
    if isinstance(values, dict):
        values[path[-1]] = value
    else:
        values[_index(values, path[-1], override)] = value


def _index(values: Any, step: str, override: str) -> int:
    """Return which item of a list a step of the key is, or explain what is wrong with it."""
    if not isinstance(values, list):
        raise _refused(override, f"what '{shown(step)}' is to be in is {reprlib.repr(values)}")
    if not (step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(values)):
        last = f"0 to {len(values) - 1}" if values else "none, since it is empty"
        raise _refused(
            override, f"'{shown(step)}' does not address an item of a list; its items are {last}"
        )
    return int(step)


def _refused(override: str, why: str) -> ConfigError:
    """Return the error that says why an override cannot be applied."""
    return ConfigError(f"--set {shown(override)}: {why}")
