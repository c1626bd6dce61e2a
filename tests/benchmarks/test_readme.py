"""The READMEs hold what the results say, whatever has been measured; quick runs never come there,
and never over what was published.
"""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme
from benchmarks.__main__ import BENCHMARKS, STUDIES, main, module_of
from benchmarks.harness.cells import number
from benchmarks.harness.publish import markdown, output_path, picture
from benchmarks.harness.stamp import RESULTS
from benchmarks.quality import ORACLE, REFERENCE, mean_sd, report, variants
from benchmarks.readme_sections import SECTIONS
from benchmarks.studies import electrolyte
from embedcache.errors import UserError
from fusionnet.commands.command import run_job

THREE = ("throughput_bf16", "stage1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "benchmarks"):
        (folder / "README.md").write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n")
    return tmp_path


def written(root: Path) -> str:
    readme.main(["--root", str(root)])
    return (root / "benchmarks" / "README.md").read_text()


def quality() -> dict[str, Any]:
    scores = {
        "delta_EF_pct mae": [1.0, 1.2],
        "delta_EF_pct r2": [0.5, 0.7],
        "is_optimal auroc": [0.9, None],
        "seconds": [1.0, 2.0],
    }
    oracle = {
        "delta_EF_pct mae": [0.9, 0.9],
        "delta_EF_pct r2": [0.9, 0.9],
        "is_optimal auroc": [0.99, 0.99],
    }
    better = {**scores, "delta_EF_pct mae": [0.95, 1.05], "delta_EF_pct r2": [0.6, 0.8]}
    models = {REFERENCE: scores, "boosting, strings one-hot": better, ORACLE: oracle}
    split = {"rows": [{"train": 7, "validation": 2, "test": 1}], "models": models}
    return {
        "seeds": 2,
        "epochs": 1,
        "encoder": "tiny",
        "splits": {"patients left out": split},
        "command": "c",
        "commit": "d",
        "date": "e",
        "hardware": {"processor": "p", "cores": 2},
        "versions": {"torch": "2"},
    }


def test_what_was_not_measured_is_said(root: Path) -> None:
    text = written(root)
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    for name in ("throughput", *SECTIONS):
        assert f"`python -m benchmarks {name}`: not measured." in text


@pytest.mark.slow
def test_numbers_come_from_the_json_and_writing_twice_changes_nothing(root: Path) -> None:
    results = root / "benchmarks" / "results"
    (results / "quality.json").write_text(json.dumps(quality()))
    shutil.copy(RESULTS / "store.json", results)
    (results / "quality_quick.json").write_text("{}")
    written(root)
    text = written(root)  # now that there is a picture
    assert "1.100 ± 0.141" in text
    # the least error; the oracle is no model
    assert "| best model | boosting, strings one-hot |" in text
    assert "![Error" in text
    assert "Also measured: [store](results/store.md)." in text
    assert "quick" not in text
    assert written(root) == text
    readme.main(["--root", str(root), "--check"])
    for file, word in (
        ("benchmarks/README.md", "1.100"),
        ("README.md", "1e-5"),
        ("benchmarks/results/store.md", "Parquet"),
    ):
        kept = (root / file).read_text()
        (root / file).write_text(kept.replace(word, "typed"))
        with pytest.raises(UserError, match="does not hold"):
            readme.main(["--root", str(root), "--check"])
        (root / file).write_text(kept)
    (results / "quality.json").write_text(json.dumps({**quality(), "seeds": 3}))
    with pytest.raises(UserError, match="does not hold"):
        readme.main(["--root", str(root), "--check"])


def test_the_top_readme_has_three_numbers_and_their_sources(repository: Path) -> None:
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in THREE}
    lines = readme.headline().splitlines()
    assert len(lines) == 3
    speedup = found["throughput_bf16"]["speedup"]["per_step_vs_naive_128"]
    assert f"**{speedup:.0f} x**" in lines[0]
    assert f"**{found['stage1']['seconds'] / 60:.0f} min**" in lines[2]
    for line in lines:
        (link,) = re.findall(r"\]\((.+?)\)", line)
        assert (repository / link).is_file()


def test_a_quick_run_is_refused(root: Path) -> None:
    (root / "benchmarks" / "results" / "quality.json").write_text(
        json.dumps({**quality(), "quick": True})
    )
    with pytest.raises(UserError, match="quick run"):
        written(root)


def test_every_published_result_can_be_shown() -> None:
    text = readme.results()
    for file in RESULTS.glob("throughput_*.json"):
        if not file.stem.endswith("_quick"):
            found = json.loads(file.read_text())
            line = next(
                line
                for line in text.splitlines()
                if line.startswith("| [") and f"/{file.stem}.md)" in line
            )
            rate, padded, longest, frozen = line.strip("| ").split(" | ")[1:]
            speedup = found["speedup"]
            assert rate == number(found["modes"]["per_step"]["rows_per_s"])
            assert float(padded.split(" (")[0]) == round(speedup["per_step_vs_naive_128"])
            assert float(longest) == round(speedup["per_step_vs_naive_longest"])
            assert float(frozen) == pytest.approx(1 / speedup["per_step_vs_frozen"], abs=0.005)


def test_a_quick_run_writes_beside_the_published_result() -> None:
    assert output_path("sweeps", Namespace(json=None, quick=False)) == RESULTS / "sweeps.json"
    assert output_path("sweeps", Namespace(json=None, quick=True)) == RESULTS / "sweeps_quick.json"
    assert output_path("sweeps", Namespace(json=Path("x.json"), quick=True)) == Path("x.json")


def test_the_list_and_a_wrong_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    main()
    listed = capsys.readouterr().out
    for name in ("throughput", "sweeps", "peers", "scaling", "quality", "electrolyte", "readme"):
        assert f"  {name} " in listed
    monkeypatch.setattr("sys.argv", ["benchmarks", "nope"])
    with pytest.raises(SystemExit) as ended:
        run_job(main)
    assert ended.value.code == 2
    assert "no benchmark nope" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*BENCHMARKS, *STUDIES])
def test_each_name_is_a_module(name: str) -> None:
    assert {"main", "report"} <= vars(module_of(name)).keys()


def test_quality_says_differences_seed_by_seed(tmp_path: Path) -> None:
    assert mean_sd([1.0, 3.0, None]) == (2.0, pytest.approx(2**0.5))
    assert mean_sd([None]) is None
    text = markdown(report(quality()), quality())
    assert "0.700 ± 0.141 (+0.100)" in text
    assert "0.600 ± 0.141 |" in text  # the reference itself has no difference
    picture(report(quality()), tmp_path / "quality.json")
    assert (tmp_path / "quality.png").stat().st_size > 5000


def test_every_kind_of_fusion_takes_part() -> None:
    made = variants()
    assert len(set(made.values())) == len(made) >= 4
    varied = {change.split("=")[0] for changes in made.values() for change in changes}
    assert varied <= {
        "encoder.mode",
        "encoder.pooling",
        "model.fusion",
        "model.linear_skip",
        "model.feature_noise",
    }
    assert any("modality" in name for name in made)


def test_electrolyte_gives_mean_and_spread_over_seeds() -> None:
    runs = [
        {"model": {"mae": 1.0, "rmse": 2.0, "r2": 0.5, "seconds": 3.0}},
        {"model": {"mae": 3.0, "rmse": 2.0, "r2": 0.7, "seconds": 3.0}},
    ]
    both, one = electrolyte.over_seeds(runs)["model"], electrolyte.over_seeds(runs[:1])["model"]
    assert (both["mae"], both["mae_sd"], both["rmse_sd"]) == (2.0, pytest.approx(2**0.5), 0.0)
    assert "mae_sd" not in one
    made = {"command": "c", "commit": "d", "date": "e"}
    split = {
        "rows": {"train": 1, "validation": 1, "test": 1},
        "distinct": {"polymer": 2},
        "standin": True,
        "seeds": 2,
        "models": {"model": both},
        **made,
    }
    found = {
        **quality(),
        "splits": {
            "whole polymers left out": {**split, "models": {"model": both, "other": one}},
            "random rows": split,
        },
    }
    text = markdown(electrolyte.report(found), found)
    assert "| model | 2.000 ± 1.414 | 2.000 ± 0.000 | 0.600 ± 0.141 | 3 |" in text
    assert "`c` at d, e; 2 seed(s)." in text
    shown = SECTIONS["electrolyte"](found, False)
    assert "| model | 2.00 ± 1.41, R2 0.60 | 2.00 ± 1.41, R2 0.60 |" in shown
    assert "| other | 1.00, R2 0.50 | not measured |" in shown
    assert "| least error | other | model |" in shown


def test_the_commands_of_the_page_are_known(repository: Path) -> None:
    text = (repository / "benchmarks" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    words = [line.partition("#")[0].split() for line in block.splitlines()]
    asked = [line[3:] for line in words if line[:3] == ["python", "-m", "benchmarks"]]
    assert len(asked) == len(words) - 1  # the first installs
    assert {line[0] for line in asked if line} <= {*BENCHMARKS, "readme"}
    known = "".join((repository / "benchmarks" / "harness" / "publish.py").read_text())
    known += (repository / "benchmarks" / "readme.py").read_text()
    flags = {word for line in asked for word in line[1:]}
    assert all(f'"{flag}"' in known for flag in flags)
