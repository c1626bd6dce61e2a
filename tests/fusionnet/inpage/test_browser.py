"""In a browser a run says what it says in Python, whatever it is made of, and when it is moved."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from browser import needs_browser, played, width_needed

from fusionnet.config.tasks import prediction_columns
from fusionnet.inpage.columns import Start
from fusionnet.inpage.exported import TOLERANCE
from fusionnet.inpage.part import live_part
from fusionnet.trained.reward import RewardModel
from fusionnet.trained.run import TrainedRun

LEVEL = 90
FORMS: dict[str, dict[str, Any]] = {
    "joint": {"fusion": "joint"},
    "modality": {"fusion": "modality", "linear_skip": True},
    "mlp": {"fusion": "mlp", "linear_skip": True},
    "ple": {"fusion": "mlp", "numeric": "ple"},
    "periodic": {"fusion": "modality", "numeric": "periodic"},
    "periodic, a matrix each": {
        **{"fusion": "joint", "numeric": "periodic", "numeric_embedding.lite": "false"},
    },
    "members": {"fusion": "joint", "members": 3, "linear_skip": True, "pessimism": 0.7},
    "members of the whole": {"fusion": "joint", "members": 2, "member_layers": 2},
    "members from the end": {"fusion": "mlp", "members": 2, "member_layers": 0},
    "members and tokens": {"fusion": "modality", "members": 2},
    "trees": {"fusion": "mlp", "with_trees": True},
    "trees and members": {"fusion": "joint", "members": 2, "with_trees": True, "pessimism": 2.0},
}


def random_frame(run: TrainedRun, num_rows: int = 60) -> pl.DataFrame:
    """Return rows from all of the train rows' range and a little beyond, some with gaps."""
    rng = np.random.default_rng(1)
    frame: dict[str, Any] = {}
    scaling = run.scaling
    for place, column in enumerate(run.layout.numeric):
        if column.column not in [each.column for each in run.data.numeric]:
            continue
        low, high = scaling.low[place], scaling.high[place]
        values = low + (high - low) * rng.uniform(0, 1.05, num_rows)
        if column.fill is not None:
            values[rng.random(num_rows) < 0.3] = np.nan
        frame[column.column] = pl.Series(values).fill_nan(None)
    for spec in run.layout.strings:
        frame[spec.column] = rng.choice(list(run.strings[spec.name]), num_rows)
    for column, values in run.layout.categories:
        frame[column] = rng.choice(values, num_rows)
    return pl.DataFrame(frame)


def page_rows(run: TrainedRun, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows as the page takes them."""
    found = []
    for row in frame.to_dicts():
        numeric: list[float | None] = []
        for column in run.layout.numeric:
            if column.column in row:
                numeric.append(row[column.column])
            else:
                numeric.append(float(numeric[-1] is None))
        strings = [run.strings[spec.name][row[spec.column]] for spec in run.layout.strings]
        categories = [values.index(row[column]) for column, values in run.layout.categories]
        found.append({"numeric": numeric, "strings": strings, "categories": categories})
    return found


def in_python(run: TrainedRun, frame: pl.DataFrame) -> tuple[torch.Tensor, pl.DataFrame, Any]:
    """Return predictions [B, P] as the page has them, all that is predicted, and the rewards."""
    model = RewardModel(run)
    table = model.predict(frame, coverage=LEVEL / 100)
    names = []
    for task in run.tasks:
        if task.has_codes:
            names += [f"probability_{task.column}_{label}" for label in task.classes or ()]
        else:
            names.append(f"predicted_{task.column}")
    return table.select(names).to_torch(), table, model.reward(frame)


def off(run: TrainedRun, place: int, found: Any, wanted: Any) -> float:
    """Return the greatest difference, as the tolerance is defined."""
    task = run.tasks[place]
    one, other = (torch.as_tensor(each, dtype=torch.float64) for each in (found, wanted))
    if task.kind != "regression":
        return float((one - other).abs().max())
    scale = run.scaling.of_target(place)
    learnt = [scale.as_learnt(each.reshape(-1, 1)) for each in (one, other)]
    return float((learnt[0] - learnt[1]).abs().max() / run.scaling.target_std[place])


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_page_says_what_python_says(form: str, run_of: Any, tmp_path: Path) -> None:
    run = run_of(**FORMS[form])
    frame = random_frame(run)
    rows = json.dumps(page_rows(run, frame))
    found = played(live_part(run, {}, []), f"return fusionnet.evaluate({rows}, {LEVEL});", tmp_path)
    wanted, table, rewards = in_python(run, frame)
    for place, (task, own) in enumerate(zip(run.tasks, prediction_columns(run.tasks), strict=True)):
        values = [row["predictions"][place] for row in found]
        assert off(run, place, values, wanted[:, own]) < TOLERANCE, task.name
        if task.kind == "regression":
            for side, kind in enumerate(("lower", "upper")):
                bounds = np.array([row["bounds"][place][side] or np.nan for row in found])
                bound = table[f"{kind}_{task.column}"].to_numpy()
                known = np.isfinite(bound)
                # JSON has no infinity, which is null
                assert (np.isnan(bounds.astype(float)) == ~known).all()
                # of bounds beyond the labels of the train rows nothing is left to compare as learnt
                inside = known & (np.abs(bound) < 1e30)
                assert off(run, place, bounds[inside], bound[inside]) < 5 * TOLERANCE, task.name
        else:
            names = task.classes or ("0", "1")
            sets = table.select(f"set_{task.column}_{label}" for label in names).to_numpy()
            assert ([row["bounds"][place] for row in found] == sets).mean() > 0.99
        if task.has_codes:
            named = [(task.classes or ())[row["chosen"][place]] for row in found]
            assert (pl.Series(named) == table[f"predicted_{task.column}"]).mean() > 0.98
    totals = torch.tensor([row["reward"]["total"] for row in found])
    # a penalty's threshold may lie between two numbers that are the same but for rounding
    assert ((totals - rewards).abs() < 5 * TOLERANCE).float().mean() > 0.98


@needs_browser
@pytest.mark.slow
def test_what_is_moved_is_shown(run_of: Any, tmp_path: Path) -> None:
    run = run_of(fusion="modality")
    run = replace(run, scaling=replace(run.scaling, untrained_strings={"polymer": (2,)}))
    run = replace(run, reward=run.reward.model_copy(update={"unseen": "refuse"}))
    frame = random_frame(run, 3).fill_null(1.0)
    (first, second, _) = page_rows(run, frame)
    texts = [list(run.strings[spec.name]) for spec in run.layout.strings]
    starts = [
        Start(
            f"row {number}",
            row["numeric"],
            [own[k] for own, k in zip(texts, row["strings"], strict=True)],
            row["categories"],
        )
        for number, row in enumerate((first, second))
    ]
    script = (
        f"const second = {json.dumps(second)};"
        + """
      const shownText = () => ({
        total: document.getElementById("live-total").textContent,
        table: document.querySelector(".live-predictions").textContent,
        trust: document.querySelector(".live-trust").textContent,
        line: document.querySelector(".live-picture .line").getAttribute("points"),
        title: document.querySelector(".live-picture svg").getAttribute("aria-label"),
      });
      const move = async (node, value, kind) => {
        node.value = value;
        node.dispatchEvent(new Event(kind, { bubbles: true }));
        await wait(1500);
        return shownText();
      };
      await wait(1500);
      const found = { before: shownText() };
      const ranges = document.querySelectorAll(".live-field input[type=range]");
      found.slid = await move(ranges[0], 900, "input");
      found.value = document.getElementById("live-feature-0").value;
      found.outside = await move(document.getElementById("live-feature-0"), "9.5", "input");
      found.refused = await move(document.getElementById("live-feature-0"), "11", "input");
      found.started = await move(document.getElementById("live-start"), "1", "change");
      found.level = await move(document.getElementById("live-level"), "50", "change");
      found.curve = await move(document.getElementById("live-target"), "2", "change");
      found.other = await move(document.getElementById("live-strings-0"), "2", "change");
      found.exact = fusionnet.evaluate([second], 90)[0].reward.total;
      return found;
    """
    )
    found = played(live_part(run, {}, starts), script, tmp_path)
    assert found["before"]["title"].startswith("number [mm] along")
    model = RewardModel(run)

    def total(row: dict[str, Any]) -> float:
        values = dict(zip([c.column for c in run.layout.numeric], row["numeric"], strict=True))
        for spec, own, k in zip(run.layout.strings, texts, row["strings"], strict=True):
            values[spec.column] = own[k]
        for (column, names), code in zip(run.layout.categories, row["categories"], strict=True):
            values[column] = names[code]
        return float(model.reward(pl.DataFrame([values]), unseen="flag")[0])

    moved = {**first, "numeric": [float(found["value"]), *first["numeric"][1:]]}
    for step, row in (("before", first), ("slid", moved), ("started", second)):
        assert float(found[step]["total"].replace("\u2212", "-")) == pytest.approx(
            total(row), abs=6e-3
        ), step
    assert found["exact"] == pytest.approx(total(second), abs=1e-3)
    assert found["slid"]["line"] != found["before"]["line"]
    assert "outside: no" in found["before"]["trust"]
    assert first["strings"][0] != 2
    assert "no train row had" not in found["before"]["trust"]
    assert "known: no, no train row had this smiles" in found["other"]["trust"]
    assert "its reward is refused" in found["other"]["trust"]
    assert "refused" not in found["before"]["trust"]
    assert "was not trained there" in found["outside"]["trust"]
    assert found["refused"]["total"] == "\u2013"
    assert found["level"]["table"] != found["started"]["table"]
    assert "50 % of labels" in found["level"]["title"]
    assert found["curve"]["title"].startswith("decades along")
    assert found["other"]["table"] != found["curve"]["table"]


@needs_browser
@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone(run_of: Any, tmp_path: Path) -> None:
    assert width_needed(live_part(run_of(), {}, []), 400, tmp_path) <= 400


def test_a_page_loads_nothing_and_names_end_no_script(run_of: Any) -> None:
    page = live_part(run_of(), {}, [])
    assert "alert(1)" in page
    assert page.count("<script") == page.count("</script>") == 3
    assert "<!--" not in page.partition('id="live-header"')[2].partition("</script>")[0]
    assert "\u2028" not in page
    assert not re.search(
        r"(src|href|@import|url\()\s*=?\s*[\"'(]?(?!#)", page.partition("<script")[0]
    )
    script = page.rpartition("<script>")[2]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(|WebSocket", script)
