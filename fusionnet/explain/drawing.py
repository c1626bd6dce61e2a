"""A string's structure as SVG, its atoms shaded by what they add to a prediction.

One panel per target: warm atoms raise it, cold ones lower it, by a scale of its own that is written
below; the largest numbers stand beside their atoms. Whatever text comes from the table is escaped.
"""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rdkit.Chem.Draw import rdMolDraw2D

from embedcache.text import visible
from fusionnet.explain.atoms import Structure

MARK = "<!-- fusionnet explain -->"  # in our files, which alone are deleted
WIDTH, HEIGHT = 520, 290  # of a structure, in pixels
_HEAD, _FOOT = 64, 58  # above and below it
_ACROSS = 2  # panels beside each other
_RAISES, _LOWERS = np.array([0.86, 0.42, 0.12]), np.array([0.25, 0.48, 0.75])
_NOTED, _MOST_NOTED = 0.25, 6  # of the largest share, and atoms: more numbers hide a structure
_FONT = 'font-family="system-ui, Helvetica, Arial, sans-serif"'


class Panel(NamedTuple):
    """What is drawn for one target."""

    lines: tuple[str, str, str]  # above it: what is explained, of which string, how much it is
    remark: str  # below
    shares: Float[np.ndarray, " A"]  # of the atoms
    unit: str


def drawn_structure(structure: Structure, panels: Sequence[Panel]) -> str:
    """Return an SVG picture with one panel beside the other."""
    across, height = min(_ACROSS, len(panels)), _HEAD + HEIGHT + _FOOT
    parts = []
    for place, panel in enumerate(panels):
        x, y = place % _ACROSS * WIDTH, place // _ACROSS * height
        parts.append(f'<g transform="translate({x} {y})">{_panel(structure, panel)}</g>')
    width, height = across * WIDTH, height * -(-len(panels) // _ACROSS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}">{MARK}<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _panel(structure: Structure, panel: Panel) -> str:
    largest = float(np.abs(panel.shares).max(initial=0.0))
    molecule = _molecule(structure, panel.shares, largest)
    what, of_string, how_much = panel.lines
    texts = [
        _text(what, 12, 20, size=14, longest=52, bold=True),
        _text(of_string, 12, 38, size=12, longest=68),
        _text(how_much, 12, 55, size=12, longest=72),
        _text(panel.remark, 12, _HEAD + HEIGHT + 44, size=12, longest=76),
    ]
    bar = _scale_bar(largest, panel.unit)
    return f'{"".join(texts)}<g transform="translate(0 {_HEAD})">{molecule}</g>{bar}'


def _molecule(structure: Structure, shares: Float[np.ndarray, " A"], largest: float) -> str:
    """Return RDKit's drawing of the shaded structure, as an element of a picture."""
    molecule = rdMolDraw2D.PrepareMolForDrawing(structure.molecule, kekulize=False)
    colours = {atom: colour_of(share, largest) for atom, share in enumerate(shares.tolist())}
    for atom in np.argsort(-np.abs(shares), kind="stable")[:_MOST_NOTED].tolist():
        if largest and abs(shares[atom]) >= _NOTED * largest:
            note = _signed(float(shares[atom]), largest)
            molecule.GetAtomWithIdx(atom).SetProp("atomNote", note)
    drawer = rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT)
    options: Any = drawer.drawOptions()  # RDKit's stubs take a member for the whole
    options.useBWAtomPalette()
    options.clearBackground = False
    options.annotationFontScale = 0.6
    options.padding = 0.06
    drawer.DrawMolecule(
        molecule,
        highlightAtoms=list(colours),
        highlightAtomColors=colours,
        highlightAtomRadii=dict.fromkeys(colours, 0.4),
        highlightBonds=[],
    )
    drawer.FinishDrawing()
    return re.sub(r"<\?xml[^>]*\?>\s*", "", drawer.GetDrawingText())


def colour_of(share: float, largest: float) -> tuple[float, float, float]:
    """Return red, green and blue of a share: white for none, a full colour for the largest."""
    strength = abs(share) / largest if largest else 0.0
    full = _RAISES if share > 0 else _LOWERS
    red, green, blue = (1 - strength * (1 - full)).tolist()
    return red, green, blue


def _scale_bar(largest: float, unit: str) -> str:
    """Return the legend: which colour is how much."""
    top = _HEAD + HEIGHT + 10
    steps = 21
    cells = []
    for step in range(steps):
        place = 2 * step / (steps - 1) - 1
        red, green, blue = (round(255 * each) for each in colour_of(place, 1.0))
        cells.append(
            f'<rect x="{160 + 200 * step / steps:.1f}" y="{top}" width="{200 / steps + 0.5:.1f}"'
            f' height="9" fill="rgb({red},{green},{blue})"/>'
        )
    ends = [
        _text(f"lowers {_signed(-largest, largest)}{unit}", 154, top + 9, 12, 30, anchor="end"),
        _text(f"raises {_signed(largest, largest)}{unit}", 366, top + 9, 12, 30),
    ]
    return "".join([*cells, *ends])


def _signed(value: float, largest: float) -> str:
    """Return a share with its sign, to two digits of the largest one."""
    decimals = max(0, 1 - math.floor(math.log10(largest))) if largest else 0
    return f"{value:+.{min(decimals, 8)}f}"


def _text(
    text: str,
    x: int,
    y: int,
    size: int,
    longest: int,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="#1c1c1c" text-anchor="{anchor}"{weight}'
        f" {_FONT}>{escape(visible(text, longest))}</text>"
    )
