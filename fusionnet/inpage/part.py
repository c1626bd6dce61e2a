"""The part of a report in which the model runs: markup, style and script that stand alone."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from fusionnet.inpage.columns import Start
from fusionnet.inpage.exported import MOST_BYTES, TOLERANCE, Exported, TooLarge, exported
from fusionnet.trained.run import TrainedRun

# in the order in which they build on one another
_SCRIPTS = (
    *("arrays", "inputs", "network", "trees", "answers"),
    *("dom", "controls", "results", "curve", "page"),
)


def live_part(
    run: TrainedRun, names: Mapping[str, Mapping[str, str]], starts: Sequence[Start]
) -> Markup:
    """Return the part of a page in which the run predicts, or why it does not.

    `names` are what the table calls some strings, by string column; `starts` are rows that its
    sliders may start from.
    """
    found = exported(run, names, starts)
    content = _refused(found) if isinstance(found, TooLarge) else _running(run, found)
    markup = _template().render(content | {"most": _size(MOST_BYTES)})
    style = _file("live.css")
    return Markup(f"<style>\n{style}</style>\n{markup}")


def _refused(found: TooLarge) -> dict[str, Any]:
    return {"size": _size(found.num_bytes)}


def _running(run: TrainedRun, found: Exported) -> dict[str, Any]:
    trees = " with its boosted trees" if run.blend is not None and found.has_all else ""
    return {
        "size": "",
        "has_all": found.has_all,
        "what": f"The trained network{trees}",
        "tolerance": TOLERANCE,
        "worst": found.worst,
        "intervals": found.header["intervals"],
        "header": embedded_json(found.header),
        "weights": Markup(base64.b64encode(found.blob).decode()),
        "script": Markup("\n".join(_file(f"js/{name}.js") for name in _SCRIPTS)),
    }


def embedded_json(value: Any) -> Markup:
    """Return JSON that ends no script element, whatever its texts are; all of it is ASCII."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _size(num_bytes: int) -> str:
    """Return how much of a page a blob takes in base64."""
    return f"{num_bytes * 4 / 3 / 1e6:.1f} MB"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_file("live.html.j2"))


def _file(name: str) -> str:
    return resources.files("fusionnet.inpage").joinpath(name).read_text(encoding="utf-8")
