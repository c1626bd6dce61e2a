"""A run's program in a folder: `model.onnx` or `model.pt2`, and `model.json` beside it.

Both are traced by torch.export from the same module; rows are one dynamic dimension, none included.
ONNX needs the extra `export`, torch.export nothing.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim, ExportedProgram

from embedcache.errors import ConfigError
from embedcache.files import atomic_write
from fusionnet.programs.program import INPUTS, OUTPUT, RawProgram, without_trees
from fusionnet.programs.sidecar import NAME, example_rows, sidecar
from fusionnet.trained.run import TrainedRun

Kind = Literal["onnx", "torch"]
# read by onnxruntime since 1.14
ONNX_OPSET = 18
_FILES: dict[Kind, str] = {"onnx": "model.onnx", "torch": "model.pt2"}


def write_program(run: TrainedRun, kind: Kind, target: Path, with_trees: bool = True) -> None:
    """Write a new folder with the run's program.

    Raises RunError for a run with trees, unless they are to be left out, and ConfigError where what
    writes ONNX is not installed.
    """
    if kind == "onnx":
        check_onnx()
    program = RawProgram(run if with_trees else without_trees(run)).eval().requires_grad_(False)
    traced = traced_program(program)
    name = _FILES[kind]
    about: dict[str, Any] = {"format": kind, "file": name, "torch": torch.__version__}
    if kind == "onnx":
        about["opset"] = ONNX_OPSET
    content = sidecar(program, about, is_whole=run.blend is None)
    with atomic_write(target) as partial:
        partial.mkdir()
        if kind == "onnx":
            _save_onnx(traced, partial / name)
        else:
            torch.export.save(traced, partial / name)
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (partial / NAME).write_text(f"{text}\n", encoding="utf-8")


def traced_program(program: RawProgram) -> ExportedProgram:
    """Return the program that torch.export traces, for any number of rows."""
    rows = Dim("rows", min=0)
    return torch.export.export(
        program,
        example_rows(program.run),
        dynamic_shapes={name: {0: rows} for name in INPUTS},
        strict=False,
    )


def check_onnx() -> None:
    """Raise ConfigError where ONNX cannot be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a program in ONNX needs the package {error.name}: pip install"
            " 'embedcache-fusionnet[export]'"
        ) from None


def _save_onnx(traced: ExportedProgram, path: Path) -> None:
    with _quiet():
        found: Any = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=INPUTS,
            output_names=(OUTPUT,),
            opset_version=ONNX_OPSET,
            external_data=False,
            verbose=False,
        )
        found.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch's exporter says of its own ways, and of torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: rows will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(before)
