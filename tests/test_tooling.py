"""Continuous integration and the commit hook run what a developer runs."""

import os
import re
import tomllib
import warnings
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml


def targets(repository: Path) -> set[str]:
    """Return the names that `make` knows."""
    return set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_workflow_runs_targets_of_the_makefile_on_the_oldest_python_and_a_newer_one(
    repository: Path,
) -> None:
    text = (repository / ".github" / "workflows" / "ci.yml").read_text()
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    for job in yaml.safe_load(text)["jobs"].values():
        pythons = job["strategy"]["matrix"]["python"]
        assert oldest == pythons[0]
        assert all(isinstance(python, str) for python in pythons), "3.10 would be 3.1"
        commands = [step["run"].split() for step in job["steps"] if "run" in step]
        assert commands
        assert all(words[0] == "make" and words[1] in targets(repository) for words in commands)
    runs = re.findall(r"run: make (\w+)", text)
    assert {"check", "test", "demo", "audit", "release"} <= set(runs)


def test_the_hook_runs_what_make_lint_does(repository: Path) -> None:
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"][0][
        "hooks"
    ]
    lint = (repository / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    tools = {hook["entry"].split()[0].rpartition("/")[2] for hook in hooks}
    assert tools == set(re.findall(r"\$\(BIN\)/(\w+)", lint))


def test_every_tool_of_the_tests_has_a_tested_version(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^\w.-]", name)[0].lower().replace("_", "-") for name in wanted}
    lines = (repository / "configs" / "constraints.txt").read_text().lower().splitlines()
    pinned = {line.partition("==")[0].replace("_", "-") for line in lines if "==" in line}
    assert names - pinned == {"triton"}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process needs no groups")
def test_the_tests_of_a_file_share_a_worker(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@tests/test_tooling.py")


def test_one_deprecation_of_a_newer_python_is_no_error() -> None:
    for how in ("is deprecated", "is not supported in Python 3.14+ and may break"):
        warnings.warn(f"`torch.jit.script` {how}. Please ...", DeprecationWarning, stacklevel=1)
    with pytest.raises(DeprecationWarning):
        warnings.warn("`torch.jit.save` is deprecated.", DeprecationWarning, stacklevel=1)


def test_no_folder_of_tests_is_left_out(repository: Path, pytestconfig: pytest.Config) -> None:
    patterns = pytestconfig.getini("norecursedirs")
    names = {
        folder
        for file in (repository / "tests").rglob("test_*.py")
        for folder in file.relative_to(repository / "tests").parts[:-1]
    }
    assert {"build", "jobs"} <= names
    assert not [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
