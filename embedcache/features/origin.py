"""What features depend on beside their strings, for who asks without computing any: no rdkit."""

from importlib.metadata import version


def computed_origin() -> str:
    """Return what computed features depend on: another RDKit may compute others."""
    return f"RDKit {version('rdkit')}"
