"""The whole page in a browser: nothing is cut off on a phone, nothing goes wrong, with the model in
it or without.
"""

from pathlib import Path

import pytest
from browser import needs_browser, played, width_needed

from fusionnet.workflow.evaluating import evaluate_folder


@pytest.fixture(scope="module")
def page(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("evaluated")
    evaluate_folder(made_run, out=out, with_baselines=False)
    return (out / "report.html").read_text(encoding="utf-8")


@needs_browser
@pytest.mark.slow
def test_nothing_is_cut_off_on_a_phone(page: str, tmp_path: Path) -> None:
    assert width_needed(page, 400, tmp_path) <= 400


@needs_browser
@pytest.mark.slow
def test_tables_are_as_wide_as_there_is_room(page: str, tmp_path: Path) -> None:
    script = """
      await wait(2000);
      const tables = [...document.querySelectorAll(".scroll")];
      return {
        cut: tables.filter((each) => each.scrollWidth > each.clientWidth + 1).length,
        stacked: document.querySelectorAll(".stacked").length,
        shown: document.querySelectorAll(".live-predictions tbody tr").length,
      };
    """
    assert played(page, script, tmp_path) == {"cut": 0, "stacked": 0, "shown": 3}
