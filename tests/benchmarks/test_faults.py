"""The promise of `python -m benchmarks faults`, on a few cases of every attack; and that its judge
sees a planted fault of each kind.
"""

import json
from pathlib import Path
from typing import Any

import faulty
import pytest
from forks import Forks

from benchmarks.faults import PROMISES, report, summed
from benchmarks.harness.publish import markdown
from benchmarks.injection.cases import KEPT, judged, worst
from benchmarks.injection.cases import Outcome as End
from benchmarks.injection.compare import differences, not_finite
from benchmarks.injection.pool import Result
from benchmarks.injection.processes import Done

REFUSAL = "error: there is no cache\n"


@pytest.fixture(scope="module")
def played(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("faults")
    done = forks.call(faulty.short_form, folder).wait(timeout_s=500)
    assert done.code == 0, done
    return {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("short", "planted")
    }


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_no_case_of_the_short_form_breaks_a_promise(played: dict[str, Any]) -> None:
    assert played["short"].keys() == faulty.SHORT.keys()
    for name, results in played["short"].items():
        assert 0 < len(results) <= len(faulty.SHORT[name])
        for result in results:
            assert result["verdict"] in KEPT, f"{name} {result['number']}: {result}"


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_a_planted_fault_is_seen(played: dict[str, Any]) -> None:
    for name, results in played["planted"].items():
        assert [result["verdict"] for result in results] == [name.split()[0]], results


@pytest.mark.parametrize(
    ("code", "err", "differing", "verdict"),
    [
        (0, "", [], "harmless"),
        (0, "", ["x differs"], "wrong"),
        (2, REFUSAL, [], "detected"),
        (2, "usage: x\npython -m jobs.train: error: no\n", [], "detected"),
        (2, "", [], "traceback"),
        (2, REFUSAL * 2, [], "traceback"),
        (1, "Traceback (most recent call last):\n", [], "traceback"),
        (0, "Traceback (most recent call last):\n", [], "traceback"),
        (1, REFUSAL, [], "traceback"),
        (-11, "", [], "traceback"),
        (None, "", [], "hang"),
    ],
)
def test_the_judge(code: int | None, err: str, differing: list[str], verdict: str) -> None:
    assert judged(Done("train", code, "", err), lambda: differing).verdict == verdict


def test_the_gravest_end_counts() -> None:
    ends = [End("harmless"), End("detected"), End("hang"), End("lost"), End("wrong")]
    assert [worst(*ends[:count]).verdict for count in (1, 2, 3, 4)] == [
        "harmless",
        "detected",
        "hang",
        "lost",
    ]


def test_seconds_are_no_difference_and_nan_is_one() -> None:
    old = {"records": [{"epoch": 1, "loss": 0.5, "seconds": 1.0}]}
    same = {"records": [{"epoch": 1, "loss": 0.5, "seconds": 2.0}]}
    other = {"records": [{"epoch": 1, "loss": 0.6, "seconds": 1.0}]}
    assert differences(same, old) == []
    assert len(differences(other, old)) == 1
    assert len(differences({}, old)) == 1
    assert not_finite({"a": [1.0, {"b": float("nan")}]}) == [".a.1.b is nan"]


def test_counts_and_broken_promises_are_published(tmp_path: Path) -> None:
    results = {
        "kills": [
            Result(0, "kills", "killed before rename", "harmless", "", 1.0),
            Result(7, "kills", "killed before link", "wrong", "best differs", 1.0),
        ]
    }
    found = summed(results) | {
        "seed": 0,
        "seconds": 60,
        "command": "c",
        "commit": "d",
        "date": "e",
        "hardware": {"processor": "p", "cores": 2},
        "versions": {"torch": "2"},
    }
    assert found["total"]["tried"] == 2
    assert found["promises"]["kills"]["wrong"] == 1
    text = markdown(report(found), found)
    assert "| kills | 2 | 0 | 1 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "`--only kills --case 7`: wrong: killed before link" in text


def test_every_promise_has_its_attacks(repository: Path) -> None:
    folder = repository / "benchmarks" / "injection"
    attacks = {path.stem for path in folder.glob("*.py") if "\ndef cases(" in path.read_text()}
    assert attacks == PROMISES.keys() == faulty.SHORT.keys() | faulty.LEFT_OUT
