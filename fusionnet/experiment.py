"""One experiment: the configs of all components, composed and read from one YAML file.

Nothing else is configurable: the DeepSpeed dict, the number of accumulation steps and the
learning-rate schedule are derived from this. A file may start from another one with `extends:
other.yaml` (relative to itself); its own mappings are merged into the other's, its lists and values
replace them.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from embedcache.config import CacheConfig, DataConfig, EncoderConfig, SplitConfig, TargetColumn
from embedcache.errors import ConfigError
from embedcache.schema import Config, parse_config
from fusionnet.config import (
    LossConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
    Task,
    TrainConfig,
    merged,
)


class Experiment(Config):
    """Everything that a run depends on; saved with the run, defaults resolved."""

    data: DataConfig
    tasks: tuple[Task, ...] = Field(min_length=1)
    split: SplitConfig = SplitConfig()
    encoder: EncoderConfig = EncoderConfig()
    cache: CacheConfig = CacheConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()
    reward: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _tasks_are_named(self) -> "Experiment":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names) or len({task.column for task in self.tasks}) < len(names):
            raise ValueError(
                f"tasks must have distinct names and columns, found: {', '.join(names)}"
            )
        for task in self.reward.tasks:
            if task not in names:
                raise ValueError(
                    f"reward reads task '{task}', which is not among the tasks: {', '.join(names)}"
                )
        binary = {task.column for task in self.tasks if task.kind == "binary"}
        if self.split.stratify_by is not None and self.split.stratify_by not in binary:
            raise ValueError(
                f"split.stratify_by names '{self.split.stratify_by}', which is not the column of a"
                " binary task"
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
        if self.split.strategy == "group" and self.data.group is None:
            raise ValueError("split.strategy 'group' needs data.group")
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
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Return the experiment of a YAML file with `--set` overrides applied.

    Raises ConfigError naming every problem.
    """
    return parse_config(
        Experiment, apply_overrides(_read_yaml(Path(path)), overrides or []), str(path)
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, merged into that of the file it extends."""
    if not file.is_file():
        raise ConfigError(
            f"there is no config file {file}; `fusionnet examples` writes some to start from"
        )
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} must hold a mapping with the keys {', '.join(Experiment.model_fields)}"
        )
    base = values.pop("extends", None)
    return values if base is None else merged(_read_yaml(file.parent / base), values)


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the nested mapping with every `a.b.c=value` set.

    Values are read as YAML, list items are addressed by their index.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set train.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
        _set_at(values, key.split("."), value, override)
    return values


def _set_at(values: Any, path: list[str], value: Any, override: str) -> None:
    """Set one value inside nested mappings and lists, creating mappings on the way."""
    for step in path[:-1]:
        values = (
            values.setdefault(step, {})
            if isinstance(values, dict)
            else _item(values, step, override)
        )
    if isinstance(values, dict):
        values[path[-1]] = value
    elif isinstance(values, list):
        _item(values, path[-1], override)
        values[int(path[-1])] = value
    else:
        raise ConfigError(
            f"--set {override}: '{'.'.join(path[:-1])}' holds a single value, not a mapping or list"
        )


def _item(values: Any, step: str, override: str) -> Any:
    """Return item `step` of a list, or explain what is wrong with asking for it."""
    if not isinstance(values, list) or not step.isdigit() or int(step) >= len(values):
        size = f"a list of {len(values)} items" if isinstance(values, list) else "a single value"
        raise ConfigError(f"--set {override}: '{step}' does not address an item of {size}")
    return values[int(step)]
