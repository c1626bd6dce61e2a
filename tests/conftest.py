"""Everything runs offline, on the CPU, on a few threads; EMBEDCACHE_GPU=1 leaves a GPU to the tests
marked gpu. The shared fixtures are in support/shared_fixtures.py.
"""

import shapes  # noqa: F401  # isort: skip  (before what it checks)
import fusionnet.commands  # noqa: F401  # isort: skip  (before torch: how threads wait)
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["EMBEDCACHE_VECTORS"] = "off"  # nothing is kept in the user's folders, nor found there
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is unset
if os.environ.get("EMBEDCACHE_GPU") != "1":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run: what hands them to xdist's workers needs no torch, and its
    workers start when it has loaded.
    """
    hands_out = config.getoption("dist", "no") != "no" and not config.getoption("collectonly")
    if not hands_out or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first, so that all workers end together, and keep a file's short ones on one
    worker, whose module fixtures they share.
    """
    items.sort(key=lambda item: not _is_long(item))
    for item in items:
        if not _is_long(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(REPOSITORY))))


def _is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "dist"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public tables, which lies beside the checkout on development machines
    only.
    """
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real public tables (../shared/data) are not on this machine")
    return folder
