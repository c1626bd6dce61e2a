"""The stars of a SMILES: one spelling for each."""

import re

_BRACKETS_OR_STAR = re.compile(r"\[[^\]]*\]|\*")
# numbered (`[*:1]`), isotope-labelled (`[1*]`), or both; `[#0]` is RDKit's other word for a star
_LABELLED_STAR = re.compile(r"\[\d*(?:\*|#0)(?::\d+)?\]")


def bracket_stars(text: str) -> str:
    """Return a SMILES with every `*` outside brackets written `[*]`."""
    return _BRACKETS_OR_STAR.sub(lambda match: "[*]" if match[0] == "*" else match[0], text)


def unlabelled_stars(text: str) -> str:
    """Return a SMILES with every star written `[*]`, numbered and isotope-labelled ones too."""
    return _LABELLED_STAR.sub("[*]", bracket_stars(text))
