"""Every value of a config is possible, or refused by its key before anything is read or made."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from embedcache.errors import ConfigError
from embedcache.schema import Config, parse_config
from fusionnet.experiment import Experiment, apply_overrides

# every list has an item, and every mapping of ours is there
WHOLE: dict[str, Any] = {
    "data": {
        "path": "t.csv",
        "strings": [
            {
                "name": "p",
                "column": "s",
                "replace": {"a": "b"},
                "encoder": {"lora": {"target_modules": ["query_proj"]}},
            }
        ],
        "numeric": [{"column": "x", "low": 0, "high": 1, "feature_group": "g"}],
        "categories": [{"column": "c", "values": ["a", "b"]}],
        "group": "patient",
        "row_weight": {"column": "real", "weight": 5},
        "report_by": ["real"],
        "exclude_rows": ["x > 1"],
    },
    "tasks": [
        {"name": "ef", "column": "y", "goals": {"mae": 1}},
        {"name": "opt", "column": "z", "kind": "binary", "pos_weight": 2},
    ],
    "model": {"feature_noise": {"g": 0.1}},
    "reward": {
        "terms": [{"task": "ef", "weight": 1}],
        "penalties": [{"task": "opt", "above": 0.5, "penalty": 1}],
    },
}
ODD: list[Any] = [
    *(-1, 0, 1, -(2**31), 2**31, 2**32, 2**63, 10**399),
    *(-0.0, 0.5, 1e-320, 1e23, 1e39, 1e300, -1e300, float("nan"), float("inf")),
    *(True, None, "", " ", "a", "auto", "\0", "~", "~nobody/x", "$NOT_SET/x", "x" * 5000, "\u00e9"),
    *([], {}, [[]], [0], [1e300], ["a", "a"], {"a": 1}, {"": ""}, [{}], [None]),
]
PER_KEY = 4


def resolved(*overrides: str) -> Experiment:
    """Return the whole config with some values set, as `--set` sets them."""
    text = json.dumps(WHOLE)
    return parse_config(Experiment, apply_overrides(json.loads(text), [*overrides]), "the config")


def keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to each value in a config, mappings and lists among them."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from keys(item, (*path, key))


def with_value(text: str, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a config in JSON with another value at the end of a path."""
    values = place = json.loads(text)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return values


def test_odd_values_are_refused_by_one_error_or_survive_the_run_folder() -> None:
    text = resolved().model_dump_json()
    ways, choice = list(keys(json.loads(text))), random.Random(0)
    accepted, refused = 0, []
    assert len(ways) > 150
    for path in ways:
        for odd in choice.sample(ODD, PER_KEY):
            values = with_value(text, path, odd)
            try:
                experiment = parse_config(Experiment, values, "the config")
            except ConfigError as error:
                refused.append(str(error))
                continue
            accepted += 1
            again = json.loads(experiment.model_dump_json())
            assert parse_config(Experiment, again, "the run's config") == experiment
    assert max(map(len, refused)) < 4000
    assert len(refused) > 5 * accepted > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.seed=-1", r"split\.seed: .*greater than or equal to 0 \(got -1\); of all random"),
        ("split.seed=4294967296", "less than 4294967296"),
        ("train.seed=9223372036854775808", "less than 4294967296"),
        ("split.rotation=10", r"rotation says which of the 10 folds comes first, 0 to 9, found 10"),
        ("split.folds=1000000000", r"split\.folds: .*less than or equal to 1000"),
        ("train.batch_rows=1.0e+23", r"train\.batch_rows: .*rows per optimizer step"),
        ("train.cpu_threads=100000000000", r"train\.cpu_threads: .*equal to 4096"),
        ("train.epochs=yes", r"train\.epochs: is yes or no"),
        ("optim.betas=[2, 3]", r"optim\.betas\.0: .*less than 1"),
        ("optim.betas=[-1, 0.9]", r"optim\.betas\.0: .*greater than or equal to 0"),
        ("optim.betas=[1, 1]", r"optim\.betas\.1: .*less than 1"),
        ("optim.eps=1.0e+300", r"optim\.eps: .*less than or equal to 1 "),
        ("optim.clip=1.0e-300", r"optim\.clip: .*global gradient norm"),
        ("optim.lr_log_variance=1.0e+30", r"optim\.lr_log_variance: .*less than or equal to 10"),
        ("tasks.0.head=[0]", r"tasks\.0\.head\.0: .*greater than or equal to 1"),
        ("tasks.0.head=[-5]", r"tasks\.0\.head\.0: .*hidden widths"),
        ("tasks.0.head=[10000000000000]", r"tasks\.0\.head\.0: .*less than or equal to 16384"),
        ("tasks.0.head=[]", r"tasks\.0\.head: Input should have 1 or more items, found 0"),
        ("tasks.0.head=[true]", r"tasks\.0\.head\.0: is yes or no"),
        ("tasks.0.beta=1.0e+300", r"tasks\.0\.beta"),
        ("tasks.1.pos_weight=-3", r"tasks\.1\.pos_weight: .*0\.000001 or 'auto' \(got -3\)"),
        ("tasks.1.pos_weight=0", r"tasks\.1\.pos_weight"),
        ("tasks.1.pos_weight=1.0e+300", r"tasks\.1\.pos_weight: .*class weight of positives"),
        ("tasks.0.goals={auroc: 0.9}", "metrics of a regression task are mae, rmse, r2"),
        ("tasks.1.goals={acuracy: 0.9}", "goals of task 'opt' names acuracy; the metrics of a bin"),
        (
            "tasks.0.goals={log10_mae: 0.9}",
            "metrics of a regression task are .*spearman$",
        ),
        (
            "tasks.0.transform=inverse_kelvin",
            r"tasks\.0\.transform: .*'log10', 'log1p' or 'quantile'",
        ),
        ("tasks.1.transform=log10", "'opt' is binary, so its labels are classes"),
        ("tasks.0.low=nan", r"tasks\.0\.low"),
        ("tasks.0={name: ef, column: y, low: 2, high: 1}", "low must not be above high"),
        ("tasks=[{name: ef, column: y, weight: 0}]", "every task has weight 0"),
        ("model.fusion_width=10000000000", r"model\.fusion_width: .*equal to 16384"),
        ("model.feedforward=1.0e+23", r"model\.feedforward"),
        ("encoder.lora.r=1000000000", r"encoder\.lora\.r: .*equal to 4096"),
        ("encoder.lora.alpha=1.0e+300", r"encoder\.lora\.alpha"),
        ("encoder.lora.target_modules=[]", r"target_modules: Input should have 1 or more items"),
        ("encoder.lora.target_modules=['']", r"target_modules\.0"),
        ("encoder.memory_budget_gib=1.0e+300", r"encoder\.memory_budget_gib"),
        ("data.row_weight.weight=1.0e+300", r"data\.row_weight\.weight: .*the weight of rows"),
        ("data.strings.0.encoder.mode=frozen", "one mode, found p: frozen, q: per_step"),
        ("data.strings.0.replace={'': x}", r"data\.strings\.0\.replace\.?: String should have at"),
        ("data.strings.0.name=" + "a" * 65, r"data\.strings\.0\.name: .*at most 64 char"),
        ("split.string=r", "split.string names 'r', which is no name of data.strings: p, q"),
        ("data.categories=[{column: c}, {column: c}]", "categories.column has twice: c; take"),
        ("data.categories.0.values=[a, b, a]", "values of 'c' has twice: a"),
        ("data.report_by=[real, a, real, a]", "report_by has twice: a, real"),
        ("data.path=5", r"data\.path: Input should be text or a list \(got 5\)"),
        ("data.path=[a, a]", "the files of path has twice: a"),
        ("cache.path=/", r"cache\.path: is the root of the file system"),
        ('cache.path="a\\0b"', r"cache\.path: has a NUL character"),
        ("cache.path=" + "x" * 300, r"cache\.path: has a name of more than 200 bytes"),
        ("cache.path=" + "x/" * 3000, r"cache\.path: is longer than 3,000 bytes"),
        ("cache.path=''", r"cache\.path: is empty"),
        ("cache.path=~nobody-here/c", r"cache\.path: begins with ~nobody-here, which is nobody's"),
        ("cache.path=$NOT_SET_HERE/c", "variable NOT_SET_HERE, which is not set"),
        ("run.dir=${NOT_SET_HERE}", r"run\.dir: names the environment variable NOT_SET_HERE"),
        ("run.name=" + "x" * 65, r"run\.name: .*at most 64 char"),
        ("reward.terms.0.weight=1.0e+300", r"reward\.terms\.0\.weight: .*factor on its prediction"),
        ("tasks=5", r"tasks: Input should be a list \(got 5\)"),
        ("train=5", r"train: Input should be a mapping of keys to values \(got 5\)"),
    ],
    ids=lambda value: value[:40],
)
def test_a_value_is_refused_by_its_key(override: str, message: str) -> None:
    values = json.loads(json.dumps(WHOLE))
    values["data"]["strings"].append({"name": "q", "column": "t"})
    with pytest.raises(ConfigError, match=message) as error:
        parse_config(Experiment, apply_overrides(values, [override]), "the config")
    assert str(error.value).count("\n  - ") <= 2


def test_home_folder_and_variables_are_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    experiment = resolved(
        "cache.path=~/c.zarr",
        "data.path=[~/t.csv, $SCRATCH/u.csv, 'cost$5.csv']",
        "encoder.source=~/enc",
        "run.dir=${SCRATCH}/run",
        "train.deepspeed_config=~/ds.json",
    )
    assert experiment.cache.path == "/home/me/c.zarr"
    assert experiment.data.files == ("/home/me/t.csv", f"{tmp_path}/u.csv", "cost$5.csv")
    assert experiment.encoder.source == "/home/me/enc"
    assert experiment.run.dir == f"{tmp_path}/run"
    assert experiment.train.deepspeed_config == "/home/me/ds.json"
    assert "~" not in experiment.to_yaml()


def test_a_key_of_any_type_or_not_read_may_be_yes_or_no() -> None:
    class Loose(Config):
        model_config = ConfigDict(extra="ignore")
        anything: dict[str, Any]
        number: int

    class Outer(Config):
        inner: tuple[Loose, ...]

    sound = {"anything": {"a": [True]}, "number": 1, "other": {"x": [True]}}
    assert parse_config(Loose, sound, "it").number == 1
    assert len(parse_config(Outer, {"inner": [sound]}, "it").inner) == 1
    with pytest.raises(ConfigError, match=r"^it is .*\n  - number: is yes or no[^\n]*$"):
        parse_config(Loose, {"anything": {"a": True}, "number": True}, "it")
