"""What a cache holds, for people and for scripts."""

import json
from collections.abc import Sequence

from embedcache.build.report import BuildReport
from embedcache.cache.reader import Cache
from embedcache.config.columns import NumericColumn
from embedcache.config.targets import TargetColumn
from embedcache.text import text_table

MOST_SHARES = 8  # classes of a target in one line


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
        "features of train rows (least, greatest and what a missing one stands for in their unit,"
        " mean and spread after the transform):",
        *text_table(_features(cache), num_left=2),
        "targets (mean and spread of train labels, after the transform):",
        *text_table(_targets(cache), num_left=2),
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
    rows: list[tuple[str, ...]] = [
        ("feature", "transform", "least", "greatest", "mean", "spread", "missing")
    ]
    scaling = cache.scaling
    for number, column in enumerate(cache.layout.numeric):
        fill = scaling.fill[number]
        statistics = (scaling.low, scaling.high, scaling.mean, scaling.std)
        rows.append(
            (
                _with_unit(column),
                column.transform,
                *(f"{values[number]:.5g}" for values in statistics),
                "-" if fill is None else f"{fill:.5g}",
            )
        )
    return rows


def _targets(cache: Cache) -> list[tuple[str, ...]]:
    """Return a row of cells per target, below their head."""
    rows: list[tuple[str, ...]] = [
        (("target", "transform", "mean", "spread", "positive, or shares of classes"))
    ]
    scaling = cache.scaling
    for number, target in enumerate(cache.layout.targets):
        rate = scaling.positive_rate.get(target.name)
        is_class = target.kind != "regression"
        shares = scaling.class_rates.get(target.name)
        statistics = (scaling.target_mean, scaling.target_std)
        rows.append(
            (
                _with_unit(target),
                target.kind if is_class else target.transform,
                *("-" if is_class else f"{values[number]:.5g}" for values in statistics),
                _shares(target, shares) if shares else "-" if rate is None else f"{rate:.4f}",
            )
        )
    return rows


def _shares(target: TargetColumn, shares: Sequence[float]) -> str:
    """Return the classes with their shares of the train labels, the first few of many."""
    pairs = list(zip(target.classes or (), shares, strict=True))
    more = ", ..." if len(pairs) > MOST_SHARES else ""
    return ", ".join(f"{name} {share:.3f}" for name, share in pairs[:MOST_SHARES]) + more


def _with_unit(column: NumericColumn | TargetColumn) -> str:
    return f"{column.column} [{column.unit}]" if column.unit else column.column


def _arrays(cache: Cache) -> list[tuple[str, ...]]:
    """Return a row of cells per array, the largest first, below their head."""
    rows: list[tuple[str, ...]] = [("array", "shape", "type", "bytes", "smaller")]
    sizes = sorted(cache.array_sizes().items(), key=lambda item: -item[1]["bytes"])
    for name, size in sizes:
        shape = "x".join(map(str, size["shape"]))
        ratio = f"{size['memory_bytes'] / size['bytes']:.1f} x" if size["memory_bytes"] else "-"
        rows.append((name, shape, size["dtype"], f"{size['bytes']:,}", ratio))
    return rows
