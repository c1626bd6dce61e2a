"""The run's YAML file is what people edited: what may be edited is taken as it is written, and what
is not understood is refused.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedcache.errors import ConfigError, RunError
from fusionnet.trained.run import load_run
from fusionnet.trained.written import parse_written, tasks_as_written

Values = dict[str, Any]


@pytest.fixture(scope="module")
def trained(made_run: Path) -> Values:
    values = yaml.safe_load((made_run / "tiny_config.yaml").read_text())
    values["tasks"][0]["goals"] = {"mae": 0.5}
    return values


def edited(values: Values, **changes: Any) -> Values:
    return {**values, **changes}


def tasks(values: Values, **of_first: Any) -> list[Values]:
    first, *others = values["tasks"]
    return [{**first, **of_first}, *others]


WRONG: dict[str, tuple[Callable[[Values], Values], str]] = {
    "no tasks": (lambda values: edited(values, tasks=None), r"tasks: Input should be"),
    "a number": (lambda values: edited(values, tasks=5), r"tasks: Input should be"),
    "text": (lambda values: edited(values, tasks="ef"), r"tasks: Input should be"),
    "a mapping": (lambda values: edited(values, tasks={"ef": {"goals": {"mae": 1}}}), r"tasks: "),
    "a name that is a list": (
        lambda values: edited(values, tasks=tasks(values, name=["ef"])),
        r"tasks\.0\.name: ",
    ),
    "another name": (
        lambda values: edited(values, tasks=tasks(values, name="other")),
        r"tasks must be those that were trained, ef, opt, aux; found other, opt, aux",
    ),
    "a task less": (
        lambda values: edited(values, tasks=values["tasks"][1:]),
        r"tasks must be those that were trained, ef, opt, aux; found opt, aux",
    ),
    "a task twice": (
        lambda values: edited(values, tasks=[*values["tasks"], values["tasks"][0]]),
        r"found ef, opt, aux, ef",
    ),
    "goals that are text": (
        lambda values: edited(values, tasks=tasks(values, goals="mae")),
        r"tasks\.0\.goals",
    ),
    "a goal that is not finite": (
        lambda values: edited(values, tasks=tasks(values, goals={"mae": float("nan")})),
        r"tasks\.0\.goals\.mae",
    ),
    "no tasks at all": (
        lambda values: {key: values[key] for key in values if key != "tasks"},
        r"tasks: is required",
    ),
    "a misspelt key": (
        lambda values: edited(values, rewards={"terms": []}),
        r"has the key 'rewards', which the run does not have; did you mean 'reward'",
    ),
    "a reward of another kind": (lambda values: edited(values, reward=[1]), r"reward: "),
    "a reward that is infinite": (
        lambda values: edited(values, reward={"terms": [{"task": "ef", "weight": float("inf")}]}),
        r"reward\.terms\.0\.weight",
    ),
    "an encoder that is none": (lambda values: edited(values, encoder=5), r"encoder: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_understood_is_refused_by_name(case: str, trained: Values) -> None:
    change, message = WRONG[case]
    with pytest.raises(ConfigError, match=rf"(?s)run/tiny_config\.yaml.*{message}"):
        parse_written(change(trained), trained, Path("run/tiny_config.yaml"))


def test_keys_that_are_not_read_may_be_anything(trained: Values) -> None:
    changed = edited(trained, tasks=tasks(trained, optional=True, head=[True], other={"x": False}))
    assert parse_written(changed, trained, Path("run.yaml")).tasks[0].name == "ef"


def test_goals_are_those_that_are_written_and_else_those_of_the_training(trained: Values) -> None:
    def goals(changed: list[Values]) -> list[dict[str, float]]:
        written = parse_written(edited(trained, tasks=changed), trained, Path("run.yaml"))
        found = tasks_as_written(trained, written, Path("run.pt"), Path("run.yaml"))
        return [task.goals for task in found]

    assert goals(tasks(trained)) == [{"mae": 0.5}, {}, {}]
    assert goals(tasks(trained)[::-1]) == [{"mae": 0.5}, {}, {}]
    assert goals(tasks(trained, goals={"mae": 2.0, "r2": 0.1})) == [{"mae": 2.0, "r2": 0.1}, {}, {}]
    assert goals(tasks(trained, goals={})) == [{}, {}, {}]
    assert goals([{"name": name} for name in ("ef", "opt", "aux")]) == [{"mae": 0.5}, {}, {}]
    for metric in ("mea", "auroc", "log10_mae"):
        with pytest.raises(
            ConfigError, match=rf"(?s)run\.yaml: tasks.*goals of task 'ef' names {metric}; .* mae,"
        ):
            goals(tasks(trained, goals={metric: 1.0}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold a mapping"),
        (b"5", "must hold a mapping"),
        ("note: caf\xe9".encode("latin-1"), "not UTF-8"),
        (b"tasks: " + b"[" * 3000, "nested deeper"),
        (b"tasks: []\ntasks: []", "twice"),
    ],
    ids=["empty", "a number", "Latin-1", "nested", "a key twice"],
)
def test_a_file_that_is_no_yaml_of_ours_is_refused(
    content: bytes, message: str, made_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(made_run, tmp_path / "copy")
    (copy / "tiny_config.yaml").write_bytes(content)
    with pytest.raises((ConfigError, RunError), match=message):
        load_run(copy)
