"""The tasks of a cache, with its classes."""

import pytest

from embedcache.cache.layout import Layout
from embedcache.config.targets import TargetColumn
from embedcache.errors import ConfigError
from fusionnet.config.tasks import Task
from fusionnet.recipe import observed_tasks


def layout_of(*targets: TargetColumn) -> Layout:
    columns = dict.fromkeys(
        ("strings", "numeric", "categories", "absent_targets", "groups", "strata", "facets"), ()
    )
    return Layout(num_rows=1, targets=targets, **columns)


def test_classes_are_those_of_the_cache_and_make_one_name_each() -> None:
    phase = TargetColumn(name="a", column="phase", kind="multiclass", classes=("x_y", "z"))
    other = TargetColumn(name="b", column="phase_x", kind="multiclass", classes=("w", "z"))
    tasks = [Task(name=each.name, column=each.column, kind="multiclass") for each in (phase, other)]
    found = observed_tasks(tasks, layout_of(phase, other))
    assert [task.classes for task in found] == [("x_y", "z"), ("w", "z")]
    one = other.model_copy(update={"classes": ("y", "z")})
    with pytest.raises(ConfigError, match="one name, probability_phase_x_y, of predictions"):
        observed_tasks(tasks, layout_of(phase, one))
