"""Every code block of README.md and configs/README.md runs, and prints what the page says."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from forks import Forks

from embedcache.schema import parse_config
from fusionnet.commands import cli
from fusionnet.experiment import Experiment
from fusionnet.workflow.reference import with_reference

PAGES = ("README.md", "configs/README.md")
NUMBER = re.compile(r"\d+\.\d+")


def blocks(repository: Path, page: str, language: str) -> list[str]:
    """Return the fenced blocks of one language on a page."""
    text = (repository / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(repository: Path, page: str) -> Iterator[list[str]]:
    """Yield the words of each command line on a page, without its comment."""
    for block in blocks(repository, page, "sh"):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_the_first_example_runs_and_prints_what_the_page_shows(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(repository, "README.md", "python")[0]
    shown = blocks(repository, "README.md", "text")[0].splitlines()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in shown]
    errors = [[float(NUMBER.findall(line)[-1]) for line in lines] for lines in (printed, shown)]
    # another number of threads adds in another order
    torch.testing.assert_close(torch.tensor(errors[0]), torch.tensor(errors[1]), atol=0.1, rtol=0.1)
    assert errors[0][-1] < errors[0][0] / 5


def test_the_page_has_no_other_code(repository: Path) -> None:
    assert len(blocks(repository, "README.md", "python")) == 1
    for page in PAGES:
        text = (repository / page).read_text(encoding="utf-8")
        languages = re.findall(r"^```(\w*)\n", text, flags=re.MULTILINE)
        assert set(languages) <= {"python", "text", "sh", "yaml", ""}, page


def test_every_command_of_the_pages_exists(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    programs = {"embedcache": cli.EMBEDCACHE, "fusionnet": cli.FUSIONNET}
    for page in PAGES:
        for program, name, *_ in commands(repository, page):
            if program == "make":
                assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), name
            else:
                assert name in programs[program], f"{page}: {program} {name}"


def test_the_config_of_the_page_is_valid(repository: Path) -> None:
    (text,) = blocks(repository, "configs/README.md", "yaml")
    experiment = parse_config(Experiment, yaml.safe_load(text), "configs/README.md")
    assert [task.kind for task in experiment.tasks] == ["regression", "binary"]


@pytest.mark.slow
def test_the_four_commands_take_a_table_to_a_report(
    repository: Path,
    tiny_experiment: Path,
    forks: Forks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(tiny_experiment.read_text())
    values |= {"cache": {"path": "mine.zarr"}, "run": {"dir": "runs/mine", "name": "mine"}}
    lines = [words for words in commands(repository, "README.md") if words[0] != "make"]
    assert [words[1] for words in lines] == ["examples", "build", "train", "evaluate"]
    for program, *words in lines:
        script = tmp_path / f"run_{program}.py"
        script.write_text(f"from fusionnet.commands.cli import {program}\n\n{program}()\n")
        forks.run(script, *words)
        if words[0] == "examples":
            (tmp_path / "configs" / "mine.yaml").write_text(yaml.safe_dump(values))
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_reference_of_keys_is_up_to_date(repository: Path) -> None:
    text = (repository / "configs" / "README.md").read_text(encoding="utf-8")
    assert with_reference(text) == text, (
        "run: python -m fusionnet.workflow.reference configs/README.md"
    )
