"""What reads tables, caches and configs imports none of what encodes and trains, and a command that
is asked for help, or for what is not there, imports no torch.
"""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from embedcache.errors import UserError
from fusionnet.commands.cli import EMBEDCACHE, FUSIONNET

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("imports")]  # fixtures of seconds
HEAVY = ("transformers", "peft", "deepspeed", "sklearn", "matplotlib", "tensorboard")
LIGHT = (
    "embedcache",
    "embedcache.config.table",
    "embedcache.table.read",
    "embedcache.cache.reader",
    "embedcache.ranks",
    "fusionnet",
    "fusionnet.config.tasks",
    "fusionnet.experiment",
)
# What a command's work imports, in seconds of every start, only if it needs it.
WITHOUT = {
    "fusionnet.workflow.training": ("sklearn", "pandas", "matplotlib", "polars"),
    "fusionnet.workflow.evaluating": ("transformers", "peft", "deepspeed", "sklearn", "pandas"),
    "fusionnet.trained.reward": ("transformers", "peft", "deepspeed", "sklearn", "matplotlib"),
    "fusionnet.workflow.building": ("deepspeed", "matplotlib", "tensorboard"),
}
COMMANDS = tuple(f"fusionnet.commands.{module}" for module, _ in (EMBEDCACHE | FUSIONNET).values())
# Each module is imported by a fork of a process that has imported what they may all need; a command
# is also asked for help.
SCRIPT = """
import contextlib, importlib, io, json, os, sys
needed, names, heavy = map(json.loads, sys.argv[1:])
for name in needed:
    importlib.import_module(name)
for name in names:
    if os.fork() == 0:
        module, sys.argv = importlib.import_module(name), [name, "--help"]
        if ".commands." in name:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                module.main()
        print(json.dumps([name, sorted(set(sys.modules) & set(heavy))]), flush=True)
        os._exit(0)
    os.wait()
"""


def imported(
    needed: tuple[str, ...], names: tuple[str, ...], heavy: tuple[str, ...]
) -> dict[str, list[str]]:
    """Return which of the heavy packages each module imports."""
    words = [json.dumps(each) for each in (needed, names, heavy)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def by_light_modules() -> dict[str, list[str]]:
    return imported(("torch", "polars", "pydantic", "zarr"), LIGHT, HEAVY)


@pytest.fixture(scope="module")
def by_commands() -> dict[str, list[str]]:
    return imported((), COMMANDS, (*HEAVY, "torch"))


@pytest.fixture(scope="module")
def by_work() -> dict[str, list[str]]:
    return imported(("torch",), tuple(WITHOUT), (*HEAVY, "pandas", "polars"))


@pytest.mark.parametrize("name", WITHOUT)
def test_work_imports_only_what_it_needs(name: str, by_work: dict[str, list[str]]) -> None:
    assert not set(by_work[name]) & set(WITHOUT[name])


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("train --config configs/quickstart.yaml --set cache.path=nowhere", "no cache at nowhere"),
        ("init_config none.csv", "there is no table none.csv"),
        ("train --config nowhere.yaml", "no config file nowhere.yaml"),
        ("evaluate_model --run nowhere", "nowhere is not a run folder"),
        ("predict --run nowhere --input a.csv --output b.csv", "nowhere is not a run folder"),
    ],
)
def test_what_is_missing_is_said_without_torch(
    words: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *arguments = words.split()
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it is an ImportError now
    monkeypatch.setattr("sys.argv", [command, *arguments])
    for name in [name for name in sys.modules if name.startswith(("fusionnet", "embedcache"))]:
        # classes that are compared below, and those that beartype knows by their names
        kept = ("embedcache.errors", "embedcache.config", "embedcache.schema", "fusionnet.config")
        if not name.startswith(kept):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=missing):
        import_module(f"fusionnet.commands.{command}").main()


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_module_imports_nothing_heavy(
    name: str, by_light_modules: dict[str, list[str]]
) -> None:
    assert by_light_modules[name] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_without_torch(name: str, by_commands: dict[str, list[str]]) -> None:
    assert by_commands[name] == []


def test_what_is_heavy_would_be_seen() -> None:
    assert imported((), ("wave",), ("wave", "torch")) == {"wave": ["wave"]}
