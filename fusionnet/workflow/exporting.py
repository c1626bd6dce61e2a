"""A trained run in a form that other programs read."""

from pathlib import Path
from typing import Literal

from fusionnet.trained.publish import check_new, write_portable
from fusionnet.trained.run import load_run

Form = Literal["safetensors", "onnx", "torch"]
_WHAT: dict[Form, str] = {
    "safetensors": "the model as safetensors and JSON",
    "onnx": "the network as a program in ONNX, and model.json",
    "torch": "the network as a program of torch.export, and model.json",
}


def export(run_folder: Path, to: Form, target: Path, with_trees: bool = True) -> str:
    """Write a run's best epoch into a new folder; return in words what was written.

    Raises OutputError where there is such a folder, RunError where there is no such run, or it has
    trees that a program cannot hold and that are not to be left out.
    """
    check_new(target)
    run = load_run(run_folder)
    if to == "safetensors":
        write_portable(run, target)
    else:
        # not at the top: safetensors need no tracer
        from fusionnet.programs.files import write_program

        write_program(run, to, target, with_trees)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    without = "" if with_trees or run.blend is None else "; its trees are left out"
    return f"{target}: {_WHAT[to]}, {size / 1e6:.1f} MB{without}"
