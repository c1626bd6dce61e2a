"""The file of a run's intervals: read as it was written, and refused where it is anything else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import RunError
from fusionnet.intervals.conformal import LEVELS
from fusionnet.intervals.saved import (
    Intervals,
    TaskIntervals,
    as_saved,
    intervals_path,
    read_intervals,
)

SCORES = as_saved((*(level / 50 for level in LEVELS[:-1]), math.inf))
FOUND = Intervals(
    run_id="run",
    epoch=3,
    unit="group",
    unit_name="patient",
    by="polymer",
    guaranteed=False,
    tasks={
        "ef": TaskIntervals(
            num_rows=70,
            num_units=7,
            pooled=SCORES,
            by_value={"[*]CC[*]": as_saved(tuple(1.0 for _ in LEVELS))},
        )
    },
)
KINDS = {"ef": "regression", "opt": "binary"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = intervals_path(tmp_path, "m")
    path.write_text(FOUND.model_dump_json())
    return path


def test_what_was_written_is_read(path: Path) -> None:
    found = read_intervals(path, "run", 3, KINDS)
    assert found == FOUND
    task = found.tasks["ef"]
    assert task.score_at(90) == 1.8
    assert task.score_at(90, "[*]CC[*]") == 1.0
    assert task.score_at(90, "[*]CCC[*]") == 1.8
    assert math.isinf(task.score_at(99))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epoch": 4}, "made for epoch 4 of run run, this is epoch 3"),
        ({"run_id": "other"}, "of run other"),
        ({"tasks": {"opt": FOUND.model_dump()["tasks"]["ef"]}}, "intervals of opt"),
        (
            {"tasks": {"ef": {"num_rows": 1, "num_units": 1, "pooled": [1.0]}}},
            "no intervals of a run",
        ),
        ({"unit": "planet"}, "no intervals of a run"),
        ({"more": 1}, "no intervals of a run"),
    ],
)
def test_what_is_not_the_runs_is_refused(path: Path, change: dict[str, Any], told: str) -> None:
    path.write_text(json.dumps(FOUND.model_dump() | change))
    with pytest.raises(RunError, match=told):
        read_intervals(path, "run", 3, KINDS)


@pytest.mark.parametrize("scores", [SCORES[::-1], [-1.0, *SCORES[1:]], [None, *SCORES[1:]]])
def test_scores_out_of_order_are_refused(path: Path, scores: list[float | None]) -> None:
    content = FOUND.model_dump(mode="json")
    content["tasks"]["ef"]["by_value"] = {"x": scores}
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="no intervals of a run"):
        read_intervals(path, "run", 3, KINDS)


def test_a_missing_or_cut_file_is_told(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match="no intervals of a run"):
        read_intervals(path, "run", 3, KINDS)
    path.unlink()
    with pytest.raises(RunError, match="a training writes it when it ends"):
        read_intervals(path, "run", 3, KINDS)
