"""What a cache holds, for people and for scripts."""

import json

from embedcache.build.report import BuildReport
from embedcache.cache.reader import Cache


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
    ]
    scaling = cache.scaling
    for column, mean, std in zip(cache.layout.numeric, scaling.mean, scaling.std, strict=True):
        unit = f" [{column.unit}]" if column.unit else ""
        lines.append(
            f"  {column.column + unit:<40} {column.transform:<14} {mean:>12.5g} {std:>12.5g}"
        )
    lines.append(
        f"arrays, largest first (codec {cache.codec}; stored bytes, and how many times smaller than"
        " in memory):"
    )
    sizes = sorted(cache.array_sizes().items(), key=lambda item: -item[1]["bytes"])
    for name, size in sizes:
        ratio = f"{size['memory_bytes'] / size['bytes']:.1f} x" if size["memory_bytes"] else "-"
        lines.append(
            f"  {name:<36} {'x'.join(map(str, size['shape'])):>16} {size['dtype']:<8}"
            f" {size['bytes']:>14,} {ratio:>10}"
        )
    versions = ", ".join(
        f"{name} {number}" for name, number in cache.provenance["versions"].items()
    )
    lines.append(
        f"built {cache.provenance['built']} from"
        f" {', '.join(cache.provenance['config']['data']['path'])} with {versions}"
    )
    return "\n".join(lines)
