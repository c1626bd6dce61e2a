"""The page of an explanation, and the section of a report that shows the same.

Pictures are inlined as images, in which no script runs; every name and string is escaped.
"""

import base64
from pathlib import Path

from markupsafe import Markup

from fusionnet.evaluation.report import page_file, template
from fusionnet.explain.saved import Explained, ExplainedString, explain_files, read_explained
from fusionnet.explain.words import (
    NOT_CAUSES,
    NOT_CHEMISTRY,
    attribution_in_words,
    error_in_words,
    growths,
    importance_means,
    tokens_in_words,
)
from fusionnet.trained.run import TrainedRun


def page_of(run: TrainedRun, explained: Explained, pictures: Path) -> str:
    """Return the page of an explanation, whose pictures lie in a folder."""
    page = template("fusionnet.explain", "explain.html.j2")
    return page.render(
        run=run,
        explained=explained,
        section=section_of(explained, pictures),
        style=Markup(page_file("report.css")),
        script=Markup(page_file("tables.js")),
    )


def section_beside(run: TrainedRun, folder: Path, split: str) -> Markup:
    """Return the section of a report on what lies in its folder.

    Nothing where that is no explanation of this run, epoch and split.
    """
    files = explain_files(folder, split)
    found = read_explained(files.numbers)
    wanted = (run.run_id, run.epoch, split)
    if found is None or (found.run_id, found.epoch, found.split) != wanted:
        return Markup()
    return section_of(found, files.pictures)


def section_of(explained: Explained, pictures: Path) -> Markup:
    """Return the section on what a run reads; pictures that are gone are left out."""
    section = template("fusionnet.explain", "explained.html.j2").render(
        explained=explained,
        means=importance_means(explained),
        errors=[error_in_words(each, explained.errors[each]) for each in explained.shown],
        tables=[
            (what, growths(explained, single))
            for what, single in (("shuffled", True), ("shuffled together", False))
        ],
        figures=[
            (f"{column}: importance", inlined)
            for column, name in explained.figures.items()
            if (inlined := _inlined(pictures, name))
        ],
        drawings=[
            (each, _inlined(pictures, each.picture or ""), _lines(each))
            for each in explained.strings
        ],
        not_causes=NOT_CAUSES,
        not_chemistry=NOT_CHEMISTRY,
    )
    return Markup(section)  # escaped by its template


def _lines(string: ExplainedString) -> list[tuple[str, bool]]:
    """Return a line on each target, and whether its shares add up."""
    lines = []
    for column, found in string.attributions.items():
        text = attribution_in_words(column, found)
        if string.picture is None:
            text += f". {tokens_in_words(string, found)}"
        lines.append((text, found.is_complete))
    return lines


def _inlined(folder: Path, name: str) -> str:
    """Return a picture of the folder itself in base64, nothing where there is none."""
    file = folder / Path(name).name
    return base64.b64encode(file.read_bytes()).decode() if name and file.is_file() else ""
