"""Every code block of README.md and configs/README.md runs, and prints what the page says."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
import yaml
from forks import Forks
from shared_fixtures import tiny_frame

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
    assert len(blocks(repository, "README.md", "python")) == 2
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


@pytest.fixture
def own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of one's own, in which the commands are run."""
    monkeypatch.chdir(tmp_path)
    table = tiny_frame(num_rows=150).select("smiles", "x0", "kind", tg="outcome")
    table.write_csv("mine.csv")
    table.head(5).write_csv("new.csv")
    return tmp_path


SHORT = {"train": {"epochs": 1, "prove": 0}}


@pytest.mark.slow
def test_two_lines_of_python_predict_a_table(
    repository: Path, own_table: Path, tiny_encoder_folder: Path
) -> None:
    code, fit = blocks(repository, "README.md", "python")[1], 'target="tg")'
    assert code.count(fit) == 1
    short = f'target="tg", encoder={{"source": "{tiny_encoder_folder}"}}, **short)'
    names: dict[str, Any] = {"short": SHORT}
    exec(compile(code.replace(fit, short), "README.md", "exec"), names)
    assert names["predictions"]["predicted_tg"].len() == 5


@pytest.mark.slow
def test_the_four_commands_take_a_table_to_a_report(
    repository: Path, own_table: Path, tiny_encoder_folder: Path, forks: Forks
) -> None:
    lines = [words for words in commands(repository, "README.md") if words[0] != "make"]
    assert [words[1] for words in lines] == ["init", "build", "train", "evaluate"]
    lines[0] += ["--encoder", str(tiny_encoder_folder)]
    for program, *words in lines:
        script = own_table / f"run_{program}.py"
        script.write_text(f"from fusionnet.commands.cli import {program}\n\n{program}()\n")
        forks.run(script, *words)
        if words[0] == "init":
            config = own_table / "mine.yaml"
            values = yaml.safe_load(config.read_text(encoding="utf-8"))
            values["train"] |= SHORT["train"]
            config.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert (own_table / "runs" / "mine" / "report.html").is_file()


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_prints(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    book = json.loads((repository / "configs" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], len({cell["id"] for cell in book["cells"]})) == (
        4,
        len(book["cells"]),
    )
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    num_shortened = 0
    for cell in cells:
        code, shortened = re.subn(
            r'train=\{"epochs": \d+\}',
            'train={"epochs": 1, "prove": 0}, blend={"parts": 2, "most_trees": 20}',
            "".join(cell["source"]),
        )
        num_shortened += shortened
        exec(compile(code, "notebook.ipynb", "exec"), names)
    assert num_shortened == 2
    roles = [line.split() for line in capsys.readouterr().out.splitlines()]
    stored = [line.split() for output in cells[2]["outputs"] for line in output.get("text", [])]
    assert stored[:6] == roles[:6]
    assert all(cell["outputs"] for cell in cells if "fit(" in "".join(cell["source"]))
    assert names["model"].evaluate()["strength (MPa)"]["mae"] < 20


def test_the_reference_of_keys_is_up_to_date(repository: Path) -> None:
    text = (repository / "configs" / "README.md").read_text(encoding="utf-8")
    assert with_reference(text) == text, (
        "run: python -m fusionnet.workflow.reference configs/README.md"
    )
