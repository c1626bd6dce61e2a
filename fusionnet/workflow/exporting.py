"""A trained run in a form that other programs read."""

from pathlib import Path
from typing import Literal

from fusionnet.trained.publish import check_new, write_portable
from fusionnet.trained.run import load_run

Form = Literal["safetensors"]


def export(run_folder: Path, to: Form, target: Path) -> str:
    """Write a run's best epoch into a new folder; return in words what was written.

    Raises OutputError where there is such a folder, RunError where there is no such run.
    """
    check_new(target)
    write_portable(load_run(run_folder), target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return f"{target}: the model as safetensors and JSON, {size / 1e6:.1f} MB"
