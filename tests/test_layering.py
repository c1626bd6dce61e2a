"""Imports run one way: jobs and benchmarks -> fusionnet -> embedcache, and inside each package from
room to room; kernels import torch and triton alone; one file imports deepspeed.
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
# Rooms (folders, and files at the top of a package) that a room may import from its own package.
ROOMS: dict[str, dict[str, set[str]]] = {
    "embedcache": {
        "errors": set(),
        "system": {"errors"},
        "files": {"system"},
        "text": set(),
        "schema": {"errors", "text"},
        "values": set(),
        "config": {"schema", "values"},
        "launcher": {"errors"},
        "ranks": {"errors", "launcher"},
        "scaling": {"config"},
        "saving": {"text"},
        "table": {"config", "errors", "scaling", "text", "values"},
        "features": {"config", "errors", "table", "text"},
        "split": {"config", "schema", "errors", "text", "table"},
        "kernels": set(),
        "encoder": {"config", "schema", "errors", "files", "kernels", "text"},
        "cache": {"config", "schema", "errors", "files", "scaling", "table", "encoder"}
        | {"system"},
        "build": {"config", "errors", "files", "ranks", "saving", "scaling", "text"}
        | {"table", "split", "encoder", "cache", "system", "features"},
        "guess": {"config", "errors", "schema", "table", "text", "build"},
        "live": {"config", "errors", "kernels", "encoder", "cache"},
    },
    "fusionnet": {
        "launchers": set(),
        "stopping": {"launchers"},
        "config": set(),
        "metrics": {"config"},
        "yamlfile": set(),
        "experiment": {"config", "yamlfile"},
        "runfolder": {"experiment"},
        "kernels": set(),
        "rows": {"config"},
        "model": {"config", "kernels", "rows"},
        "blend": {"config", "model", "rows"},
        "calibration": {"config"},
        "recipe": {"config", "model"},
        "assemble": {"recipe", "model"},
        "train": {"config", "experiment", "metrics", "recipe", "assemble", "model", "rows"}
        | {"runfolder", "launchers", "stopping", "yamlfile"},
        "pretrain": {"config", "stopping", "train"},
        "trained": {"config", "metrics", "recipe", "model", "rows", "train", "yamlfile"}
        | {"runfolder", "blend", "calibration"},
        "inpage": {"config", "model", "rows", "trained", "blend", "calibration"},
        "programs": {"config", "model", "rows", "trained"},
        "evaluation": {"config", "metrics", "model", "rows", "trained", "runfolder", "yamlfile"}
        | {"calibration", "inpage"},
        "explain": {"config", "metrics", "model", "rows", "trained", "evaluation"},
        "design": {"config", "rows", "model", "trained", "evaluation"},
        "workflow": {"config", "experiment", "recipe", "train", "trained", "evaluation"}
        | {"runfolder", "yamlfile", "blend", "model", "rows", "calibration", "design"}
        | {"explain", "programs"},
        "rl": {"config", "design", "rows", "trained"},
        "estimators": {"experiment", "workflow", "trained", "runfolder", "evaluation", "metrics"}
        | {"blend", "calibration"},
        "serving": {"calibration", "config", "design", "stopping", "trained"},
        "commands": {"experiment", "workflow", "pretrain", "trained", "runfolder", "stopping"}
        | {"serving", "design"},
    },
}
REPOSITORY = Path(__file__).resolve().parents[1]
FILES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


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
    return path.relative_to(REPOSITORY).parts[0]


def test_there_is_something_to_check() -> None:
    assert {package_of(path) for path in FILES} >= {"embedcache", "fusionnet", "jobs"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_imports_run_one_way(path: Path) -> None:
    ours = {name.split(".")[0] for name in imported_modules(path)} & {*PACKAGES, "tests"}
    assert ours <= MAY_IMPORT[package_of(path)], (
        f"{path} imports {ours - MAY_IMPORT[package_of(path)]}"
    )


def room_of(parts: tuple[str, ...]) -> str:
    """Return the folder or file at the top of its package that holds a module."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else ""


def rooms_imported(path: Path) -> set[str]:
    """Return the other rooms of its own package that a file imports from."""
    package, room = package_of(path), room_of(path.relative_to(REPOSITORY).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            found |= {room_of((*(node.module or "").split("."), name.name)) for name in node.names}
        elif isinstance(node, ast.Import):
            ours = [name.name.split(".") for name in node.names if name.name.startswith(package)]
            found |= {room_of(tuple(parts)) for parts in ours}
    return found - {room, ""}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if package_of(path) in ROOMS],
    ids=lambda path: "/".join(path.parts[-3:]),
)
def test_rooms_import_one_way(path: Path) -> None:
    room = room_of(path.relative_to(REPOSITORY).parts)
    if room == "__init__":
        assert not rooms_imported(path), "a package's public names are imported lazily"
        return
    allowed = ROOMS[package_of(path)][room]
    assert rooms_imported(path) <= allowed, f"{path} imports {rooms_imported(path) - allowed}"


def test_the_rooms_have_no_circle() -> None:
    for rooms in ROOMS.values():
        left = dict(rooms)
        while left:
            ground = [room for room, below in left.items() if not below & set(left)]
            assert ground, f"a circle among {sorted(left)}"
            for room in ground:
                del left[room]


def test_what_reads_tables_and_caches_imports_the_tokens_alone_of_the_encoder() -> None:
    for path in FILES:
        if path.parts[-2] in ("table", "split", "cache"):
            encoder = {name for name in imported_modules(path) if "embedcache.encoder" in name}
            assert encoder <= {"embedcache.encoder.tokens"}, path


def test_kernels_import_torch_and_triton_alone() -> None:
    for path in FILES:
        if "kernels" in path.parts:
            tops = {name.split(".")[0] for name in imported_modules(path)}
            assert tops <= {
                "torch",
                "triton",
                "embedcache",
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
