"""The page stands alone, escapes what comes from a table, says loudly what its numbers are worth,
and draws what can be drawn.
"""

import re
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from embedcache.cache.reader import open_cache
from embedcache.text import NONE, number
from fusionnet.config.tasks import REGRESSION_METRICS
from fusionnet.evaluation.evaluate import evaluate_run
from fusionnet.evaluation.figures import LONGEST_NAME, STYLE, by_value, history, parity
from fusionnet.evaluation.plots import AUTHOR, file_stem
from fusionnet.evaluation.report import write_report
from fusionnet.evaluation.result import Evaluation
from fusionnet.train.checkpoint import load_checkpoint, save_checkpoint
from fusionnet.trained.run import TrainedRun, all_records, load_run


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> TrainedRun:
    return load_run(shutil.copytree(made_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def evaluation(
    made_run: Path, tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    oracle = tmp_path_factory.mktemp("oracle") / "oracle.parquet"
    pl.read_parquet(tiny_experiment.parent / "table.parquet").select("outcome").write_parquet(
        oracle
    )
    return evaluate_run(
        load_run(made_run),
        open_cache(tiny_experiment.parent / "cache.zarr"),
        "test",
        oracle,
        progress=False,
    )


def text_of(page: str) -> str:
    """Return what a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.slow
def test_the_page_stands_alone_and_shows_every_plot(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    page = write_report(run, evaluation, all_records(run), run.folder).read_text()
    plots = sorted(path.stem for path in (run.folder / "plots").iterdir())
    assert plots == [
        "by_patient",
        "by_real",
        "calibration_opt",
        "parity_aux",
        "parity_ef",
        "training_loss",
        "training_metrics",
    ]
    assert page.count("data:image/png;base64,") == len(plots)
    assert not re.search(r'(src|href)="(?!data:)', page)
    for path in (run.folder / "plots").iterdir():
        pixels = imread(path)[..., :3].mean(axis=2)
        assert min(pixels.shape) > 200
        # something is drawn, and dark enough to be seen in grey
        assert (pixels < 0.5).mean() > 0.002


@pytest.mark.slow
def test_the_page_says_what_the_numbers_are_worth(run: TrainedRun, evaluation: Evaluation) -> None:
    goals = tuple(
        task.model_copy(update={"goals": {"mae": 1e9, "rmse": 0.0} if task.name == "ef" else {}})
        for task in run.tasks
    )
    noted = replace(run, note="Synthetic & made up.", recipe=replace(run.recipe, tasks=goals))
    text = text_of(write_report(noted, evaluation, run.records[:1], run.folder).read_text())
    for part in (
        "Unfinished. The run has 1 of 2 epochs behind it",
        "Note. Synthetic &amp; made up.",
        "Stand-in encoder.",
        "✓ pass",
        "✗ FAIL",
        "(misses the goal too)",
        "mean of",
        "standard deviation",
    ):
        assert part in text
    assert number(evaluation.metrics["outcome"]["mae"]) in text
    assert "share of the" in text
    assert "Beside baselines" in text
    best = evaluation.baselines["mean of the string's train rows"]["outcome"]
    assert f"mean of the string&#39;s train rows {number(best['mae'])} {number(best['r2'])}" in text
    plain = text_of(
        write_report(
            run, replace(evaluation, oracle=None, split="train"), run.records, run.folder
        ).read_text()
    )
    assert "fitted to these rows" in plain
    assert "oracle" not in plain.lower().replace("diamonds: the oracle", "")
    assert (run.folder / "report_train.html").is_file()


def test_values_of_the_table_are_escaped_and_whole(run: TrainedRun, evaluation: Evaluation) -> None:
    evil, long = "<script>alert(1)</script>", "n" * 10_000
    table = {
        {0: evil, 1: "a\0b", 2: long}.get(place, value): entry
        for place, (value, entry) in enumerate(evaluation.by["patient"].items())
    }
    evaluation = replace(evaluation, by={"mol/kg": table})
    page = write_report(run, evaluation, all_records(run), run.folder).read_text()
    assert evil not in page
    assert page.count("<script") == page.count("</script>") == 1  # that of wide tables
    assert "&lt;script&gt;" in page
    assert "<td>a\ufffdb</td>" in page
    assert "\0" not in page
    assert f"<td>{long}</td>" in page
    assert (run.folder / "plots" / "by_mol_kg.png").is_file()


ODD = [
    "mol/kg",
    "mol_kg",
    "Mol_kg",
    "../../x",
    "..",
    "",
    ".hidden",
    "a\0b",
    "a\nb",
    "con",
    "\u00e9",
    "e\u0301",
    "\u00c9",
    "n" * 10_000,
    "n" * 10_001,
    "\U00020000" * 300,
    "$5^$",
    "<script>alert(1)</script>",
]


def test_any_name_is_a_file_of_its_own_on_any_file_system(tmp_path: Path) -> None:
    stems: dict[str, str] = {}
    for name in ODD:
        stem = file_stem(f"by_{name}", stems)
        (tmp_path / f"{stem}.png").touch(exist_ok=False)
        assert re.fullmatch(r"by_[\w-]*", stem)
        stems[stem] = name
    assert len(list(tmp_path.iterdir())) == len(ODD)
    assert len({unicodedata.normalize("NFC", stem).casefold() for stem in stems}) == len(ODD)
    assert file_stem("by_patient", stems) == "by_patient"


def texts_of(figure: Figure) -> list[Text]:
    """Return the texts of a figure as they are drawn."""
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "$5^$",
        "$0-$5",
        "_a^b",
        r"\frac{",
        pytest.param("a\0b\n", id="control"),
        pytest.param("n" * 10_000, id="long"),
    ],
)
def test_names_in_figures_are_no_formulas_and_short(
    name: str, run: TrainedRun, evaluation: Evaluation
) -> None:
    task = run.tasks[0].model_copy(update={"column": name, "unit": name})
    table = {
        value: {**entry, name: entry["outcome"]}
        for value, entry in zip(
            [name, *evaluation.by["patient"]], evaluation.by["patient"].values(), strict=False
        )
    }
    many = np.linspace(0, 1e6, 3000)
    with mpl.rc_context(STYLE):
        figures = [
            parity(many, many, task),
            parity(many[:10], many[:10], task),
            by_value(table, 1.0, task, "mae"),
            history(run.records, 1, task),
        ]
        for figure in figures:
            texts = texts_of(figure)
            shown = [text.get_text() for text in texts]
            assert not any(text.get_parse_math() for text in texts)
            assert any(name.rstrip("\n")[:20].replace("\0", "\ufffd") in each for each in shown)
            assert max(map(len, shown)) < 2 * LONGEST_NAME + 40
            assert not any("mathdefault" in each for each in shown)


@pytest.mark.slow
def test_the_training_table_goes_on_after_the_best_epoch(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    later = {**run.records[-1], "epoch": 3, "train_loss": 0.125, "val_loss": 9.75}
    last = run.folder / "tiny_last.pt"
    content = {**load_checkpoint(last), "epoch": 3, "records": [*run.records, later]}
    save_checkpoint(last, content)
    for log in ("", "null", "[5]", "{}", '[{"epoch": 1}]', "[" * 9999):  # for people, not for us
        (run.folder / "training_log.json").write_text(log)
        assert all_records(run) == [*run.records, later]
    assert "3 0.125 9.750" in text_of(
        write_report(run, evaluation, all_records(run), run.folder).read_text()
    )
    save_checkpoint(last, {**content, "run_id": "another"})
    assert all_records(run) == run.records
    last.unlink()
    assert all_records(run) == run.records


def test_what_cannot_be_drawn_or_computed_is_left_out(
    run: TrainedRun, evaluation: Evaluation
) -> None:
    targets = evaluation.targets.copy()
    targets[:, 2] = np.nan
    targets[:, 0] = 1.0
    metrics = {
        **evaluation.metrics,
        "gappy": dict.fromkeys(REGRESSION_METRICS),
        "outcome": {"mae": 0.5, "rmse": 0.5, "r2": None, "spearman": None},
    }
    pictures = run.folder / "plots"
    pictures.mkdir()
    old = Figure()
    old.savefig(pictures / "parity_aux.png", metadata={"Author": AUTHOR})
    (pictures / "parity_by_hand.png").write_bytes(b"somebody's")
    text = text_of(
        write_report(
            run,
            replace(evaluation, targets=targets, metrics=metrics, oracle=None),
            run.records,
            run.folder,
        ).read_text()
    )
    # of what an earlier evaluation drew nothing is left, of what others put there everything
    drawn = {path.stem for path in pictures.iterdir()}
    assert {stem for stem in drawn if "parity" in stem} == {"parity_ef", "parity_by_hand"}
    assert re.search(rf"gappy 0 {NONE} {NONE} {NONE}", text)
