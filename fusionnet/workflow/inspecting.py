"""What a cache holds, for people and for scripts."""

import json

from embedcache.build.report import BuildReport
from embedcache.cache.reader import Cache
from embedcache.text import text_table


def as_json(cache: Cache) -> dict[str, object]:
    """Return everything about a cache but its rows."""
    return {
        "path": str(cache.path),
        "bytes": cache.num_bytes,
        "codec": cache.codec,
        "identity": dict(cache.identity.entries),
        "layout": cache.layout.model_dump(mode="json"),
        "scaling": json.loads(cache.scaling.to_json()),
        "provenance": cache.provenance,
        "report": cache.report,
        "arrays": cache.array_sizes(),
    }


def as_text(cache: Cache) -> str:
    """Return a cache's report, its features in their units, and its origin."""
    lines = [
        BuildReport.of(cache, "complete").summary(),
        "features (mean and spread of train rows, after the transform):",
        *text_table(_features(cache), num_left=2),
        f"arrays, largest first (codec {cache.codec}; stored bytes, and how many times smaller than"
        " in memory):",
        *text_table(_arrays(cache)),
    ]
    versions = ", ".join(
        f"{name} {number}" for name, number in cache.provenance["versions"].items()
    )
    lines.append(
        f"built {cache.provenance['built']} from"
        f" {', '.join(cache.provenance['config']['data']['path'])} with {versions}"
    )
    return "\n".join(lines)


def _features(cache: Cache) -> list[tuple[str, ...]]:
    """Return a row of cells per numeric feature, below their head."""
    rows: list[tuple[str, ...]] = [("feature", "transform", "mean", "spread")]
    scaling = cache.scaling
    for column, mean, std in zip(cache.layout.numeric, scaling.mean, scaling.std, strict=True):
        unit = f" [{column.unit}]" if column.unit else ""
        rows.append((column.column + unit, column.transform, f"{mean:.5g}", f"{std:.5g}"))
    return rows


def _arrays(cache: Cache) -> list[tuple[str, ...]]:
    """Return a row of cells per array, the largest first, below their head."""
    rows: list[tuple[str, ...]] = [("array", "shape", "type", "bytes", "smaller")]
    sizes = sorted(cache.array_sizes().items(), key=lambda item: -item[1]["bytes"])
    for name, size in sizes:
        shape = "x".join(map(str, size["shape"]))
        ratio = f"{size['memory_bytes'] / size['bytes']:.1f} x" if size["memory_bytes"] else "-"
        rows.append((name, shape, size["dtype"], f"{size['bytes']:,}", ratio))
    return rows
