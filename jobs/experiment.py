"""One experiment: the configs of all components, composed and read from one YAML file.

Nothing else is configurable: the DeepSpeed dict, the number of accumulation steps and the
learning-rate schedule are derived from this. A file may start from another one with `extends:
other.yaml` (relative to itself); its own mappings are merged into the other's, its lists and values
replace them.
"""

import argparse
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from embedcache.build import has_states
from embedcache.config import (
    CacheConfig,
    Config,
    DataConfig,
    EncoderConfig,
    SplitConfig,
    TargetColumn,
    parse_config,
)
from embedcache.errors import ConfigError, StaleCacheError
from embedcache.fingerprint import wanted_identity
from embedcache.store import Cache, open_cache
from fusionnet.config import (
    LossConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RunConfig,
    Task,
    TrainConfig,
)
from jobs.command import apply_overrides


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
    def _parts_fit_together(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names) or len({task.column for task in self.tasks}) < len(names):
            raise ValueError(
                f"tasks must have distinct names and columns, found: {', '.join(names)}"
            )
        for part in (*self.reward.terms, *self.reward.penalties):
            if part.task not in names:
                raise ValueError(
                    f"reward reads task '{part.task}', which is not among the tasks:"
                    f" {', '.join(names)}"
                )
        parts = list(dict.fromkeys(column.part for column in self.data.numeric))
        for part in self.model.feature_noise:
            if part not in parts:
                raise ValueError(
                    f"model.feature_noise names '{part}', which is not a part of data.numeric:"
                    f" {', '.join(map(repr, parts))}"
                )
        if self.model.linear_skip and not parts:
            raise ValueError(
                "model.linear_skip is a function of data.numeric, which has no columns"
            )
        if self.split.stratify_by is not None and self.split.stratify_by not in {
            task.column for task in self.tasks if task.kind == "binary"
        }:
            raise ValueError(
                f"split.stratify_by names '{self.split.stratify_by}', which is not the column of a"
                " binary task"
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
    """Return the experiment of a YAML file with `--set` overrides applied; raises ConfigError
    naming every problem.
    """
    return parse_config(
        Experiment, apply_overrides(_read_yaml(Path(path)), overrides or []), str(path)
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, merged into that of the file it extends."""
    if not file.is_file():
        raise ConfigError(f"there is no config file {file}; see configs/ for examples")
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} must hold a mapping with the keys {', '.join(Experiment.model_fields)}"
        )
    base = values.pop("extends", None)
    return values if base is None else _merged(_read_yaml(file.parent / base), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` laid over it, mapping by mapping."""
    both = {
        key: (
            _merged(base[key], value)
            if isinstance(value, dict) and isinstance(base.get(key), dict)
            else value
        )
        for key, value in values.items()
    }
    return {**base, **both}


def experiment_of(arguments: argparse.Namespace) -> Experiment:
    """Return the experiment that a configured job's arguments name."""
    return load_experiment(arguments.config, arguments.overrides)


def open_checked_cache(experiment: Experiment, config_path: str) -> Cache:
    """Return the experiment's cache, refusing one that was built from something else than the
    experiment says.

    The table may be absent, as on a cluster that was sent the cache alone; then only the table's
    digest goes unchecked.
    """
    cache = open_cache(experiment.cache.path)
    wanted = wanted_identity(
        experiment.data,
        experiment.targets,
        experiment.split,
        experiment.encoder,
        known_files=cache.identity.files,
    )
    different = wanted.difference(cache.identity)
    if different:
        listed = "\n".join(f"  - {line}" for line in different)
        raise StaleCacheError(
            f"{experiment.cache.path} was not built from what this run asks for (run ->"
            f" cache):\n{listed}\nrebuild it with: python -m jobs.build_cache --config"
            f" {config_path} --overwrite"
        )
    if not has_states(cache, experiment.data, experiment.encoder):
        raise StaleCacheError(
            f"{experiment.cache.path} does not hold the hidden states that enter layer"
            f" {experiment.encoder.lora.first_layer}, which mode prefix reads; add them with:"
            f" python -m jobs.build_cache --config {config_path} with the same --set encoder.mode"
            " and encoder.lora.first_layer"
        )
    return cache
