"""Results as people read them: bars that say their values and limits, texts and pictures that are
what the JSON says, parts that a run leaves alone.
"""

import json
import subprocess
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

import benchmarks.harness.stamp
from benchmarks import readme
from benchmarks.harness.pictures import COLORS, Panel, draw, draw_panel
from benchmarks.harness.publish import machine, picture, with_kept
from benchmarks.harness.stamp import RESULTS, stamp
from embedcache.errors import UserError


def test_a_panel_says_each_value_and_what_its_lines_are() -> None:
    figure, axes = plt.subplots()
    draw_panel(
        axes,
        Panel(
            "title",
            "seconds",
            {"first": (2.0, 1.5, 3.0), "second": 0.125},
            {"goal": 4.0, "best": 1.0},
            ours=("second",),
        ),
    )
    second, first = axes.patches  # drawn from below: the first thing is on top
    assert (first.get_width(), second.get_width()) == (2.0, 0.125)
    assert first.get_y() > second.get_y()
    assert [to_hex(bar.get_facecolor()) for bar in (first, second)] == [
        COLORS["light"],
        COLORS["ours"],
    ]
    assert [text.get_text() for text in axes.texts] == ["0.12", "2.00"]
    assert [text.xy[0] for text in axes.texts] == [0.125, 3.0]  # beyond the spread, not across it
    assert axes.get_xlabel() == "seconds\ndashed: goal, 4.00, dotted: best, 1.00"
    assert axes.get_xlim()[1] > 4.0
    plt.close(figure)


def test_names_that_panels_share_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        "benchmarks.harness.pictures.save", lambda figure, path: drawn.append(figure)
    )
    same, other = Panel("a", "s", {"x": 1.0, "y": 2.0}), Panel("b", "s", {"z": 1.0})
    draw(tmp_path / "same.png", [same, same])
    draw(tmp_path / "other.png", [same, other])
    draw(tmp_path / "rows.png", [same] * 5)  # three in a row: the sixth place stays empty
    written = [
        [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
        for figure in drawn
    ]
    named, bare = ["y", "x"], ["", ""]
    in_rows = [named, bare, bare, named, bare]
    assert written[:2] == [[named, bare], [named, ["z"]]]
    assert written[2][:5] == in_rows
    assert [axes.axison for axes in drawn[2].axes] == [True] * 5 + [False]
    for figure in drawn:
        plt.close(figure)


def test_a_run_of_one_part_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert with_kept(file, "parts", {"b": 1}, "abc") == {"b": 1}
    file.write_text(json.dumps({"parts": {"c": 2, "b": 3, "gone": 4}}))
    kept = with_kept(file, "parts", {"b": 1}, "abc")
    assert list(kept.items()) == [("b", 1), ("c", 2)]


def test_fewer_threads_than_cores_are_said() -> None:
    made = stamp()
    made["hardware"] |= {
        "processor": "p",
        "cores": 4,
        "threads": 1,
        "gpu": None,
        "emulates_bf16": False,
    }
    assert machine(made) == "4 cores (1 thread) of p"
    made["hardware"]["threads"] = 4
    assert machine(made) == "4 cores of p"
    made["hardware"]["emulates_bf16"] = True
    assert machine(made) == "4 cores of p (bf16 emulated)"
    made["hardware"]["gpu"] = "g"
    assert machine(made) == "4 cores of p, g"


def test_a_result_is_dirty_where_code_differs_from_its_commit_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.harness.stamp, "REPOSITORY", tmp_path)
    assert benchmarks.harness.stamp._commit() == "unknown"
    result, code = (
        tmp_path / "benchmarks" / "results" / "sweeps.json",
        tmp_path / "embedcache" / "live.py",
    )
    for file in (result, code):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git = ("git", "-c", "user.name=n", "-c", "user.email=e")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "m")):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    clean = benchmarks.harness.stamp._commit()
    assert clean != "unknown"
    result.write_text("2")
    assert benchmarks.harness.stamp._commit() == clean
    code.write_text("2")
    assert benchmarks.harness.stamp._commit() == f"{clean}-dirty"


def test_published_texts_are_what_the_json_says(repository: Path) -> None:
    readme.main(["--root", str(repository), "--check"])
    for file, _ in readme.published(RESULTS):
        assert file.with_suffix(".png").is_file()


@pytest.mark.parametrize("name", ["throughput_fp32", "build"])
def test_published_pictures_can_be_drawn_again(name: str, tmp_path: Path) -> None:
    file, module = next(each for each in readme.published(RESULTS) if each[0].stem == name)
    picture(module.report(json.loads(file.read_text())), tmp_path / "picture.json")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_each_result_belongs_to_the_benchmark_of_its_name(tmp_path: Path) -> None:
    for name in ("stage1_modality", "throughput_bf16", "sweeps", "sweeps_quick", "build"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert {file.stem: module.__name__ for file, module in readme.published(tmp_path)} == {
        "build": "benchmarks.studies.build",
        "stage1_modality": "benchmarks.stage1",
        "sweeps": "benchmarks.sweeps",
        "throughput_bf16": "benchmarks.throughput",
    }
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(UserError, match="no benchmark writes"):
        list(readme.published(tmp_path))
