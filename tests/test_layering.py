"""Imports run one way: jobs and benchmarks -> fusionnet -> embedcache; kernels import torch and
triton alone; one file imports deepspeed.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGES = ("embedcache", "fusionnet", "jobs", "benchmarks")
MAY_IMPORT = {
    "embedcache": {"embedcache"},
    "fusionnet": {"embedcache", "fusionnet"},
    "jobs": {"embedcache", "fusionnet", "jobs"},
    "benchmarks": set(PACKAGES),
}
FILES = [
    path
    for package in PACKAGES
    for path in sorted((Path(__file__).resolve().parents[1] / package).rglob("*.py"))
]


def imported_modules(path: Path) -> set[str]:
    """Return every module that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def package_of(path: Path) -> str:
    """Return the first-level package that a file belongs to."""
    return path.relative_to(Path(__file__).resolve().parents[1]).parts[0]


def test_there_is_something_to_check() -> None:
    assert {package_of(path) for path in FILES} >= {"embedcache", "fusionnet", "jobs"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_imports_run_one_way(path: Path) -> None:
    ours = {name.split(".")[0] for name in imported_modules(path)} & {*PACKAGES, "tests"}
    assert ours <= MAY_IMPORT[package_of(path)], (
        f"{path} imports {ours - MAY_IMPORT[package_of(path)]}"
    )


def test_kernels_import_torch_and_triton_alone() -> None:
    for path in FILES:
        if "kernels" in path.parts:
            tops = {name.split(".")[0] for name in imported_modules(path)}
            assert tops <= {
                "torch",
                "triton",
                "fusionnet",
                "jaxtyping",
                *sys.stdlib_module_names,
            }, path


def test_one_file_imports_deepspeed() -> None:
    importers = [
        path.name
        for path in FILES
        if any(name.split(".")[0] == "deepspeed" for name in imported_modules(path))
    ]
    assert importers == ["engine.py"]


def test_no_job_bears_the_name_of_an_importable_package() -> None:
    # The deepspeed launcher puts jobs/ first on the path, where jobs/evaluate.py would hide the
    # package `evaluate`.
    taken = set(sys.stdlib_module_names) | {
        "evaluate",
        "datasets",
        "config",
        "tests",
        "torch",
        "transformers",
        "peft",
        "zarr",
        "polars",
    }
    jobs = {path.stem for path in FILES if path.parent.name == "jobs"} - {"__init__"}
    assert jobs
    assert not jobs & taken
