"""The file of a run's calibration: read as it was written, refused where it is anything else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import RunError
from fusionnet.calibration.conformal import LEVELS
from fusionnet.calibration.saved import (
    Calibration,
    TaskChances,
    TaskScores,
    as_saved,
    calibration_path,
    read_calibration,
)

SCORES = as_saved((*(level / 50 for level in LEVELS[:-1]), math.inf))
FOUND = Calibration(
    run_id="run",
    epoch=3,
    unit="group",
    unit_name="patient",
    by="polymer",
    guaranteed=False,
    folds=0,
    scores={
        "ef": TaskScores(
            num_rows=70,
            num_units=7,
            least_units=2,
            pooled=SCORES,
            by_value={"[*]CC[*]": as_saved(tuple(1.0 for _ in LEVELS))},
        )
    },
    chances={"opt": TaskChances(temperature=1.3, threshold=0.4)},
)
TASKS = frozenset({"ef", "opt"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = calibration_path(tmp_path, "m")
    path.write_text(FOUND.model_dump_json())
    return path


def test_what_was_written_is_read(path: Path) -> None:
    found = read_calibration(path, "run", 3, TASKS)
    assert found == FOUND
    assert found is not None
    task = found.scores["ef"]
    assert task.score_at(90) == 1.8
    assert task.score_at(90, "[*]CC[*]") == 1.0
    assert task.score_at(90, "[*]CCC[*]") == 1.8
    assert math.isinf(task.score_at(99))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"run_id": "other"}, "was made for run other"),
        ({"scores": {"old": FOUND.model_dump()["scores"]["ef"]}}, "of the tasks old"),
        ({"chances": {"old": {}}}, "of the tasks old"),
        (
            {"scores": {"ef": {"num_rows": 1, "num_units": 1, "least_units": 1, "pooled": [1.0]}}},
            "no calibration",
        ),
        ({"chances": {"opt": {"temperature": 0}}}, "no calibration"),
        ({"chances": {"opt": {"threshold": 2}}}, "no calibration"),
        ({"unit": "planet"}, "no calibration of a run"),
        ({"more": 1}, "no calibration of a run"),
    ],
)
def test_what_is_not_the_runs_is_refused(path: Path, change: dict[str, Any], told: str) -> None:
    path.write_text(json.dumps(FOUND.model_dump() | change))
    with pytest.raises(RunError, match=told):
        read_calibration(path, "run", 3, TASKS)


@pytest.mark.parametrize("scores", [SCORES[::-1], [-1.0, *SCORES[1:]], [None, *SCORES[1:]]])
def test_scores_out_of_order_are_refused(path: Path, scores: list[float | None]) -> None:
    content = FOUND.model_dump(mode="json")
    content["scores"]["ef"]["by_value"] = {"x": scores}
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="no calibration of a run"):
        read_calibration(path, "run", 3, TASKS)


def test_another_epochs_is_none(path: Path) -> None:
    assert read_calibration(path, "run", 4, TASKS) is None


def test_a_missing_or_cut_file_is_told(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match="no calibration of a run"):
        read_calibration(path, "run", 3, TASKS)
    path.unlink()
    with pytest.raises(RunError, match="no calibration of a run"):
        read_calibration(path, "run", 3, TASKS)
