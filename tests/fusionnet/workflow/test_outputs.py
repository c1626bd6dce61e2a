"""Commands replace what they wrote themselves, in whatever folder, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import OutputError
from fusionnet.workflow.outputs import check_evaluation, check_explanation

OWN = json.dumps({"checkpoint": "best", "epoch": 3, "rows": "the run's own test rows"})
HINT = "name another"
KINDS: dict[str, tuple[Callable[..., None], str, list[str]]] = {
    "evaluation": (check_evaluation, "metrics.json", ["report.html", "plots"]),
    "explanation": (check_explanation, "importance.json", ["explain.html", "explain"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_somebodys_files_are_not_replaced(kind: str, tmp_path: Path) -> None:
    check, numbers, others = KINDS[kind]
    check(tmp_path, "test", HINT)
    for name in (numbers, others[0]):
        (tmp_path / name).write_text("[1, 2]")
        said = rf"holds {name}, which no {kind} of a run wrote; {HINT}"
        with pytest.raises(OutputError, match=said):
            check(tmp_path, "test", HINT)
        (tmp_path / name).unlink()
    (tmp_path / others[0]).write_text("mine")
    for damaged in ("", "{", "{}", '{"checkpoint": "best"}', "[" * 100_000):
        (tmp_path / numbers).write_text(damaged)
        with pytest.raises(OutputError, match="wrote"):
            check(tmp_path, "test", HINT)
    check(tmp_path, "validation", HINT)  # whose files have other names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whose", ["beside its numbers", "in a run's folder"])
def test_own_files_are_replaced(kind: str, whose: str, tmp_path: Path) -> None:
    check, numbers, others = KINDS[kind]
    content: dict[str, Any] = {"beside its numbers": (numbers, OWN)}
    name, text = content.get(whose, ("run_files.jsonl", ""))
    (tmp_path / name).write_text(text)
    (tmp_path / others[0]).write_text("old")
    check(tmp_path, "test", HINT)
