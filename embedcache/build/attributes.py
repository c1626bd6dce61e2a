"""What the root of a new cache says of its origin and of the build that made it."""

import sys
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from embedcache.build.features import ColumnFeatures
from embedcache.build.files import TableFiles
from embedcache.build.request import BuildRequest
from embedcache.build.strings import EncodedStrings

PACKAGES = ("numpy", "polars", "zarr", "torch", "transformers", "rdkit", "scikit-learn")


def provenance(request: BuildRequest, files: TableFiles) -> dict[str, Any]:
    """Return the config, the versions of packages, the time, and the number of rows by file."""
    data = request.data.model_dump(mode="json")
    data["path"] = [Path(file).name for file in request.data.files]
    before = [] if files.base is None else files.base.provenance["rows_of_files"]
    return {
        "config": {
            "data": data,
            "targets": [target.model_dump(mode="json") for target in request.targets],
            "split": request.split.model_dump(mode="json"),
            "encoder": request.encoder.model_dump(mode="json"),
        },
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in PACKAGES},
        },
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows_of_files": [*before, *(file.table.num_rows for file in files.files)],
    }


def report(
    files: TableFiles,
    strings: EncodedStrings,
    features: Mapping[str, ColumnFeatures],
    remarks: list[str],
    num_ranks: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what `BuildReport` tells of the build; `seconds` are those of its phases."""
    before = {} if files.base is None else files.base.report
    tables = [file.table for file in files.files]
    return {
        "num_encoded": strings.num_encoded,
        "num_stored": strings.num_stored,
        "encoding": {"seconds": round(strings.seconds, 3), "ranks": num_ranks},
        "num_excluded": before.get("num_excluded", 0) + sum(each.num_excluded for each in tables),
        "num_blank": before.get("num_blank", 0) + sum(each.num_blank for each in tables),
        "num_invalid": before.get("num_invalid", 0) + sum(each.num_invalid for each in tables),
        "invalid": [
            *before.get("invalid", []),
            *(line for each in tables for line in each.invalid),
        ],
        "remarks": [
            *strings.remarks,
            *(line for each in features.values() for line in each.remarks),
            *remarks,
        ],
        "saving": strings.saving(files.num_rows),
        "features": {name: _missing(each) for name, each in features.items() if each.sets},
        "unknown": {column.spec.name: column.unknown for column in strings.columns},
        "merged": {
            column.spec.name: _merged(files, column.spec.name) for column in strings.columns
        },
        "split": files.tally.counts().model_dump(mode="json"),
        "seconds": [(phase, round(spent, 3)) for phase, spent in seconds.items()],
    }


def _missing(features: ColumnFeatures) -> dict[str, Any]:
    """Return of how many strings features were computed, and where there are none."""
    missing = np.isnan(features.values).sum(0)
    columns = [name for each in features.sets for name in each.columns]
    return {
        "num_computed": features.num_computed,
        "num_missing": int(missing.sum()),
        "columns": [columns[k] for k in np.flatnonzero(missing).tolist()],
        "of_none": int((missing == len(features.values)).sum()),
    }


def _merged(files: TableFiles, name: str) -> dict[str, list[str]]:
    """Return the strings of a column that all files together spell in several ways, with those."""
    found = [file.table.strings[name].merged for file in files.files]
    if files.base is not None:
        found.insert(0, files.base.report["merged"].get(name, {}))
    spellings: dict[str, set[str]] = defaultdict(set)
    for merged in found:
        for text, ways in merged.items():
            spellings[text].update(ways)
    return {text: sorted(ways) for text, ways in spellings.items()}
