"""Where the numbers of a report come from: when and by what they were made, of which table and
encoder, and what they took.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusionnet.trained.run import TrainedRun

PACKAGES = ("torch", "numpy", "polars", "transformers")
_DIGITS = 16  # of a digest, enough to tell tables apart


def provenance(run: TrainedRun) -> list[tuple[str, str]]:
    """Return what made the numbers, as (what, text)."""
    seeds = {name: run.config[name]["seed"] for name in ("split", "train")}
    own = version("embedcache-fusionnet")
    packages = [*PACKAGES, *(["lightgbm"] if run.blend is not None else [])]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    found = [
        ("evaluated", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("by", f"fusionnet {own}{_commit()}, Python {platform.python_version()}, {versions}"),
        ("on", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {run.device}"),
        ("run", f"{run.name}, id {run.run_id}"),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items())),
    ]
    for name, title in (("table", "table"), ("encoder.weights", "encoder's weights")):
        if digest := run.identity.get(name):
            found.append((title, _short(digest)))
    return found


def _short(digests: str) -> str:
    """Return digests, of which there is one per file, cut to what tells them apart."""
    parts = [each.removeprefix("sha256 ") for each in digests.split(", ")]
    return "sha256 " + ", ".join(part[:_DIGITS] for part in parts)


def _commit() -> str:
    """Return the checkout's commit in words, "" where the package is installed without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return ""
    found = done.stdout.strip()
    return f" (commit {found})" if done.returncode == 0 and found else ""


def costs(
    records: list[dict[str, Any]], spent_s: Mapping[str, float], peak_bytes: int
) -> list[dict[str, Any]]:
    """Return one line per phase: what it was, its seconds, and the most memory of its process.

    `spent_s` are the seconds of the evaluation's own phases, `peak_bytes` the peak of them all.
    """
    lines = []
    if records:
        rows_per_s = [record["rows_per_s"] for record in records if record.get("rows_per_s")]
        rate = f", {sum(rows_per_s) / len(rows_per_s):,.0f} rows/s" if rows_per_s else ""
        lines.append(
            {
                "phase": f"training, {len(records)} epochs with validation{rate}",
                "seconds": float(sum(record["seconds"] for record in records)),
                "bytes": max(record.get("peak_rss_bytes", 0) for record in records),
            }
        )
    for phase, seconds in spent_s.items():
        lines.append({"phase": phase, "seconds": seconds, "bytes": peak_bytes})
    return lines
