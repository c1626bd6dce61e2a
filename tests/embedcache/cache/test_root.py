"""A root whose digest is right but which no build wrote is refused by what is wrong in it."""

import copy as copying
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedcache.build.report import BuildReport
from embedcache.cache import manifest
from embedcache.cache.reader import open_cache
from embedcache.errors import CorruptCacheError, StaleCacheError

Attributes = dict[str, Any]


@pytest.fixture(scope="module")
def cache(built_study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged") / "cache.zarr"
    return shutil.copytree(built_study.cache.path, folder)


@pytest.fixture(scope="module")
def root(cache: Path) -> Attributes:
    return manifest.read_root(cache)


def forge(cache: Path, attributes: Attributes) -> None:
    """Write a root with the digest that these attributes have."""
    signed = {**attributes, "digest": manifest._digest_of(attributes)}
    document = {"attributes": signed, "node_type": "group", "zarr_format": 3}
    (cache / manifest.ROOT).write_bytes(manifest._canonical(document))


def read(cache: Path) -> None:
    """Read what commands read."""
    opened = open_cache(cache)
    opened.rows()
    opened.strings("polymer")
    BuildReport.of(opened, "complete").summary()
    json.dumps(opened.array_sizes())


FAULTS: dict[str, tuple[Callable[[Attributes], object], str]] = {
    **{
        f"no {key}": (lambda root, key=key: root.pop(key), f"{key}: Field required")
        for key in ("layout", "files", "identity", "provenance", "report")
    },
    "no version": (lambda root: root.pop("format_version"), "format_version is no number"),
    "no table": (lambda root: root["identity"].pop("table"), "which table the cache was built"),
    "rows": (lambda root: root["layout"].update(num_rows=10**12), r"array 'rows/string_id' is"),
    "fewer rows": (lambda root: root["layout"].update(num_rows=7), r"the root says \[7, 1\]"),
    "negative rows": (lambda root: root["layout"].update(num_rows=-1), "num_rows: Input should"),
    "rows of a kind": (lambda root: root["layout"].update(num_rows="x"), "num_rows: Input should"),
    "a feature less": (lambda root: root["layout"]["numeric"].pop(), "features: the statistics"),
    "a target less": (lambda root: root["layout"]["targets"].pop(), "the statistics are of"),
    "another width": (
        lambda root: root["layout"]["strings"][0].update(width=25),
        "widths of vectors: the statistics are of",
    ),
    "another column": (
        lambda root: root["layout"]["strings"][0].update(name="other"),
        "the statistics are of",
    ),
    "a category less": (
        lambda root: root["layout"]["categories"][0][1].pop(),
        "rows have no value of 'kind', which has 2: rows",
    ),
    "a chunk less": (
        lambda root: root["files"].pop("rows/numeric/c/0/0"),
        r"array 'rows/numeric' is \[240, 5\] in 3 files, the root says .* and lists 2",
    ),
    "a file outside": (
        lambda root: root["files"].update({"../x": {"bytes": 1, "sha256": "0"}}),
        "which lies outside of the cache",
    ),
    "a file of a kind": (lambda root: root["files"].update(x=5), "files.x: Input should be"),
    "report": (lambda root: root["report"].update(encoding=[]), "report.encoding: Input should"),
    "split": (lambda root: root["report"]["split"].update(lines=[]), "must be those of train"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_root_that_no_build_wrote_is_refused(case: str, cache: Path, root: Attributes) -> None:
    change, message = FAULTS[case]
    attributes = copying.deepcopy(root)
    change(attributes)
    forge(cache, attributes)
    with pytest.raises(CorruptCacheError, match=message):
        read(cache)


def test_a_root_as_it_was_is_read_and_one_of_another_format_is_stale(
    cache: Path, root: Attributes
) -> None:
    forge(cache, root)
    read(cache)
    forge(cache, {"format_version": 3, "complete": True})
    with pytest.raises(StaleCacheError, match="has format 3"):
        read(cache)


def test_a_root_that_is_nested_too_deep_is_damaged(cache: Path) -> None:
    (cache / manifest.ROOT).write_bytes(b"[" * 100_000)
    with pytest.raises(CorruptCacheError, match="was changed or damaged"):
        read(cache)
