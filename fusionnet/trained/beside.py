"""What lies beside a run's best checkpoint, made when its training ended: trees and calibration."""

from pathlib import Path
from typing import Any

from embedcache.errors import RunError
from fusionnet.blend.blend import Blend
from fusionnet.blend.saved import blend_path, read_blend
from fusionnet.calibration.saved import Calibration, calibration_path, read_calibration
from fusionnet.config.blend import BlendConfig
from fusionnet.config.calibration import CalibrationConfig
from fusionnet.recipe import Recipe
from fusionnet.runfolder.listing import Listing


def blend_beside(
    listing: Listing, folder: Path, config: BlendConfig, checkpoint: dict[str, Any], recipe: Recipe
) -> Blend | None:
    """Return the trees beside the best epoch; None where there are to be none, or not yet."""
    path = blend_path(folder, listing.name)
    has_ended = _has_ended(listing, folder, checkpoint)
    if not (path.is_file() or (config.boosting and has_ended)):
        return None
    blend = read_blend(path, listing.run_id, checkpoint["epoch"], recipe.tasks)
    return blend if blend.tasks else None


def calibration_beside(
    listing: Listing,
    folder: Path,
    config: CalibrationConfig,
    checkpoint: dict[str, Any],
    recipe: Recipe,
) -> Calibration | None:
    """Return what was measured of the best epoch; None where that is not done yet.

    Raises RunError where a run that has ended lacks what its probabilities depend on.
    """
    path = calibration_path(folder, listing.name)
    if path.is_file():
        names = frozenset(task.name for task in recipe.tasks)
        return read_calibration(path, listing.run_id, checkpoint["epoch"], names)
    has_ended = _has_ended(listing, folder, checkpoint)
    has_chances = any(task.kind != "regression" for task in recipe.tasks)
    if has_ended and has_chances and config.probabilities != "none":
        raise RunError(
            f"there is no {path}, by which the run's probabilities are calibrated. Put the file"
            " back, or have it measured again with: fusionnet train --config ... --resume"
        )
    return None


def _has_ended(listing: Listing, folder: Path, checkpoint: dict[str, Any]) -> bool:
    """Return whether a run's training has ended; an exported model says so of itself."""
    is_final_there = (folder / f"{listing.name}_final.pt").is_file()
    return bool(checkpoint.get("has_ended", is_final_there))
