"""Every mistake of `python -m benchmarks mistakes` ends as it should, and its judge sees one that
does not.
"""

import json
import os
import re
from pathlib import Path

import polars as pl
import pytest
import yaml
from forks import Forks

from benchmarks.harness.publish import markdown
from benchmarks.injection.processes import Done
from benchmarks.injection.scene import COLUMNS, SMALL
from benchmarks.mistakes import configs
from benchmarks.mistakes.kinds import REFUSED, judged, refused, said
from benchmarks.mistakes.polymers import BAD_TO_PREDICT, NUM_ROWS, UNUSABLE, made_strings, table
from benchmarks.studies.mistakes import mistakes, played, report
from embedcache.errors import ConfigError
from fusionnet.experiment import load_experiment

SLIPS = [  # what is refused before the table is read
    each
    for each in configs.MISTAKES
    if each.expected.verdict == REFUSED
    and each.commands[0][2] == "mine.yaml"
    and "folds" not in each.name
]


def play_all(folder: Path) -> None:
    """Make all mistakes in a fork of the warm server, and write how they ended."""
    ends = played(folder, mistakes(), workers=os.cpu_count() or 1)
    (folder / "ends.json").write_text(json.dumps(ends))


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.xdist_group("mistakes")
def test_every_mistake_ends_as_it_should(forks: Forks, tmp_path: Path) -> None:
    done = forks.call(play_all, tmp_path).wait(timeout_s=400)
    assert done.code == 0, done
    ends = json.loads((tmp_path / "ends.json").read_text())
    assert len(ends) == len(mistakes())
    for end in ends:
        assert not end["wrong"], end


@pytest.mark.parametrize("slip", SLIPS, ids=[each.name for each in SLIPS])
def test_a_slip_in_a_config_is_named(slip: configs.Mistake, tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text(yaml.safe_dump(COLUMNS))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    slip.bring(tmp_path, pl.DataFrame())
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "mine.yaml")
    for word in slip.expected.tells:
        assert word in str(error.value)


def test_names_differ_and_each_has_its_source() -> None:
    names = [each.name for each in mistakes()]
    assert len(set(names)) == len(names) > 60
    for each in mistakes():
        assert re.match(r"^[\w.-]+/[\w.-]+(#\d+| \S+)$", each.source), each.source
        assert each.commands or each.frame


@pytest.mark.parametrize(
    ("done", "num_wrong"),
    [
        (Done("build", 2, "", "error: x is 1\n"), 0),
        (Done("build", 2, "", "error: y\n"), 1),
        (Done("build", 2, "", "error: x\nerror: x\n"), 1),
        (Done("build", 0, "x", ""), 3),
        (Done("build", 1, "", "Traceback (most recent call last):\n  error: x\n"), 3),
        (Done("build", None, "", ""), 3),
    ],
)
def test_the_judge(done: Done, num_wrong: int) -> None:
    assert len(judged(done, refused("x"))) == num_wrong


def test_a_remark_that_is_missing_is_seen() -> None:
    assert judged(Done("build", 0, "12 rows", ""), said("12 rows")) == []
    assert judged(Done("build", 0, "12 rows", ""), said("1 row left out")) != []


def test_the_table_of_polymers_has_its_shape() -> None:
    strings = made_strings(500)
    assert len(set(strings)) == 500
    rows = table(strings)
    assert rows.height == NUM_ROWS
    assert rows.filter(pl.col("SMILES").is_in(UNUSABLE)).height == len(UNUSABLE) == 18
    labels = rows.drop("id", "SMILES")
    assert (labels.select(pl.sum_horizontal(pl.all().is_not_null()))).to_series().eq(1).all()
    assert not set(BAD_TO_PREDICT.values()) & set(strings)


def test_the_ends_are_published() -> None:
    end = {
        "name": "a|b",
        "source": "o/r#1",
        "command": "python -m jobs.build_cache",
        "expected": REFUSED,
        "told": "error: <5 | 6",
        "wrong": [],
        "printed": ["rows: 5"],
    }
    found = {
        "mistakes": [end, {**end, "wrong": ["not said"], "printed": []}],
        "seconds": 3,
        "drawn": False,
        "command": "c",
        "commit": "d",
        "date": "e",
        "hardware": {"processor": "p", "cores": 2},
        "versions": {"torch": "2"},
    }
    text = markdown(report(found), found)
    row = r"| a\|b | o/r#1 | `python -m jobs.build_cache` | refused | error: &lt;5 \| 6 |"
    assert f"{row} so |" in text
    assert f"{row} **not so** |" in text
    assert "$ python -m jobs.build_cache\nrows: 5" in text
