"""What is read of a run's YAML file, which people edit after training: the reward, what may be
designed, the goals, the note, and where encoders and tables of features lie now. Everything else is
as the checkpoint says.

What is not understood is refused: a goal that was dropped in silence would be taken for reached.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from embedcache.errors import ConfigError
from embedcache.schema import Config, parse_config
from embedcache.text import nearest
from fusionnet.config.blend import BlendConfig
from fusionnet.config.calibration import CalibrationConfig
from fusionnet.config.design import DesignConfig
from fusionnet.config.reward import RewardConfig
from fusionnet.config.tasks import Task
from fusionnet.config.train import RunConfig


class _Part(Config):
    """A part of the file of which some keys are read."""

    model_config = ConfigDict(extra="ignore")


class WrittenTask(_Part):
    """A task's goals; where none are written they are those of the training."""

    name: str = Field(description="name of the task")
    goals: dict[str, float] | None = Field(default=None, description="metric: value to reach")


class WrittenRun(_Part):
    """The file."""

    tasks: tuple[WrittenTask, ...] = Field(description="the tasks that were trained")
    reward: RewardConfig = Field(default=RewardConfig(), description="terms and penalties")
    design: DesignConfig = Field(default=DesignConfig(), description="what may be chosen")
    run: RunConfig = Field(default=RunConfig(), description="the note")
    blend: BlendConfig = Field(default=BlendConfig(), description="whether there are trees")
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="whether probabilities are calibrated"
    )
    data: dict[str, Any] = Field(
        default_factory=dict, description="string columns' encoders and tables of features"
    )
    encoder: dict[str, Any] = Field(default_factory=dict, description="the shared encoder")


def parse_written(values: Mapping[str, Any], trained: Mapping[str, Any], file: Path) -> WrittenRun:
    """Return what a run's YAML file says now.

    `trained` is the config in the checkpoint. Raises ConfigError for keys or tasks that are not
    those of the training, and for values of a wrong kind.
    """
    # runs of earlier versions have no `design`, and may be given one
    known = [*trained, *(key for key in ("design",) if key not in trained)]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise ConfigError(
            f"{file} has the key '{unknown[0]:.80}', which the run does not"
            f" have{nearest(unknown[0][:80], known)}"
        )
    written = parse_config(WrittenRun, values, str(file))
    names = [task.name for task in written.tasks]
    wanted = [task["name"] for task in trained["tasks"]]
    if sorted(names) != sorted(wanted):
        raise ConfigError(
            f"{file}: tasks must be those that were trained, {', '.join(wanted)}; found"
            f" {', '.join(names)[:200] or 'none'}. Their goals may be edited, the tasks may not"
        )
    return written


def tasks_as_written(
    trained: Mapping[str, Any], written: WrittenRun, checkpoint: Path, file: Path
) -> list[Task]:
    """Return the tasks as they were trained, with the goals as they are written now.

    Raises ConfigError, which names the checkpoint or the run's YAML file, where one is no task's.
    """
    tasks = [parse_config(Task, task, f"{checkpoint}: tasks") for task in trained["tasks"]]
    goals = {task.name: task.goals for task in written.tasks if task.goals is not None}
    edited = [task.model_dump() | {"goals": goals.get(task.name, task.goals)} for task in tasks]
    return [parse_config(Task, task, f"{file}: tasks") for task in edited]


def relocated(trained: Any, written: Any) -> Any:
    """Return a config as it was trained, but with every encoder's `source`, and every `table` of
    features, as it is written now.
    """
    if not (isinstance(trained, dict) and isinstance(written, dict)):
        return trained
    moved = dict(trained)
    for key in ("source", "table"):
        if key in trained:
            moved[key] = written.get(key, trained[key])
    for key in ("strings", "encoder", "features"):
        old, new = trained.get(key), written.get(key)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            moved[key] = [relocated(mine, theirs) for mine, theirs in zip(old, new, strict=True)]
        elif isinstance(old, dict):
            moved[key] = relocated(old, new)
    return moved
