"""What a build tells its user, in about a screenful.

Rows, strings, split, what was merged or unknown, time and size. The report is kept in the cache, so
that `embedcache inspect` and a build that found nothing to do can show it again.
"""

from dataclasses import dataclass
from typing import Any

from embedcache.cache.layout import StringSpec
from embedcache.cache.reader import Cache
from embedcache.cache.root import corrupt_root
from embedcache.config.split import SPLITS, Split
from embedcache.saving import Saving
from embedcache.split.report import SplitCounts, split_table
from embedcache.text import count_of

MOST_SHOWN = 3  # merged or unknown strings per column
MOST_SPLIT_LINES = 12
UP_TO_DATE = "up to date"
MOST_LEFT_OUT = 20


def split_counts(cache: Cache) -> SplitCounts:
    """Return what a cache says of its splits; raises CorruptCacheError for what cannot be."""
    try:
        return SplitCounts.model_validate(cache.report["split"])
    except ValueError as error:
        raise corrupt_root(cache.path, error) from None


def rows_of_split(cache: Cache, split: Split) -> int:
    """Return how many rows of a cache a split has."""
    return split_counts(cache).lines[-len(SPLITS) :][SPLITS.index(split)].rows


@dataclass(frozen=True)
class BuildReport:
    """What a cache holds, and what making it took."""

    status: str  # "built", "appended to" or UP_TO_DATE
    path: str
    identity: str
    num_rows: int
    strings: tuple[StringSpec, ...]
    num_features: int
    categories: tuple[tuple[str, int], ...]
    targets: tuple[str, ...]
    absent_targets: tuple[str, ...]
    num_groups: int
    num_excluded: int  # rows left out by data.exclude_rows
    num_blank: int  # records without any cell, which are no rows
    num_invalid: int  # rows left out by data.on_invalid
    invalid: tuple[str, ...]  # a line on each rule that they break
    remarks: tuple[str, ...]  # what a reader of the scores should know
    num_encoded: int  # strings that the encoder had to read
    num_stored: int  # strings whose vectors came from the store; the old cache had the others'
    saving: Saving | None  # of encoding each string once for all rows; None without strings
    encoding_s: float
    num_ranks: int  # that shared the encoding
    # by string column: string -> its parts that became <unk>
    unknown: dict[str, dict[str, list[str]]]
    # by string column: string -> its spellings in the table
    merged: dict[str, dict[str, tuple[str, ...]]]
    # by string column with features: where they are missing (see `attributes.report`)
    features: dict[str, dict[str, Any]]
    split: SplitCounts
    positive_rate: dict[str, float]  # train rows
    seconds: tuple[tuple[str, float], ...]  # by phase, in order
    num_bytes: int
    built: str  # when, in ISO 8601
    of_training: str = ""  # what a step on it will encode, where that is known

    @staticmethod
    def of(cache: Cache, status: str) -> "BuildReport":
        """Return the report of a finished cache."""
        layout, kept = cache.layout, cache.report
        return BuildReport(
            status=status,
            path=str(cache.path),
            identity=cache.identity.short,
            num_rows=layout.num_rows,
            strings=layout.strings,
            num_features=len(layout.numeric),
            categories=tuple((column, len(values)) for column, values in layout.categories),
            targets=tuple(target.name for target in layout.targets),
            absent_targets=layout.absent_targets,
            num_groups=len(layout.groups),
            num_excluded=kept["num_excluded"],
            num_blank=kept["num_blank"],
            num_invalid=kept["num_invalid"],
            invalid=tuple(kept["invalid"]),
            remarks=tuple(kept["remarks"]),
            num_encoded=kept["num_encoded"],
            num_stored=kept.get("num_stored", 0),
            saving=Saving(*kept["saving"]) if kept.get("saving") else None,
            encoding_s=kept["encoding"]["seconds"],
            num_ranks=kept["encoding"]["ranks"],
            unknown=kept["unknown"],
            merged={
                name: {text: tuple(spellings) for text, spellings in found.items()}
                for name, found in kept["merged"].items()
            },
            features=kept.get("features", {}),
            split=split_counts(cache),
            positive_rate=cache.scaling.positive_rate,
            seconds=tuple((phase, seconds) for phase, seconds in kept["seconds"]),
            num_bytes=cache.num_bytes,
            built=cache.provenance["built"],
        )

    def summary(self) -> str:
        """Return the report as plain text."""
        absent = f"; absent: {', '.join(self.absent_targets)}" if self.absent_targets else ""
        lines = [
            f"cache {self.path}: {self.status}, identity {self.identity},"
            f" {self.num_bytes / 1e6:,.1f} MB",
            self._rows_line(),
            *self._left_out(),
            f"targets: {', '.join(self.targets) or 'none'}{absent}",
        ]
        for spec in self.strings:
            standin = " (a stand-in, not published weights)" if spec.standin else ""
            read = (
                f"{spec.num_tokens:,} tokens, width {spec.width}, {spec.pooling} of"
                f" {spec.encoder.source}{standin}"
            )
            if not spec.width:
                read = "which no language model reads (encoder.mode none)"
            lines.append(f"strings '{spec.name}': {spec.num_strings:,} distinct, {read}")
            lines += self._features(spec)
            lines += self._oddities(spec.name)
        if self.saving is not None:
            lines.append(f"each string is encoded once: {self.saving.in_words()}")
        if self.of_training:
            lines.append(f"in training {self.of_training}")
        lines += split_table(self.split, MOST_SPLIT_LINES).splitlines()
        lines += self.remarks
        lines.append(self._time_line())
        return "\n".join(lines)

    def _rows_line(self) -> str:
        left_out = ((self.num_excluded, "exclude_rows"), (self.num_invalid, "on_invalid"))
        told = [f"{count:,} left out by data.{key}" for count, key in left_out if count]
        if self.num_blank:
            told.append(f"not counting {count_of(self.num_blank, 'blank line')}")
        apart = ", ".join(told)
        categories = [f", {column} ({count} categories)" for column, count in self.categories]
        groups = f", {self.num_groups:,} groups" if self.num_groups else ""
        return (
            f"rows: {self.num_rows:,}{f' ({apart})' if apart else ''} with"
            f" {self.num_features} numeric features{''.join(categories)}{groups}"
        )

    def _left_out(self) -> list[str]:
        """Return a line on each rule that rows were left out for."""
        shown = [f"  - {line}" for line in self.invalid[:MOST_LEFT_OUT]]
        more = len(self.invalid) - MOST_LEFT_OUT
        return shown + ([f"  - and {more:,} more rules"] if more > 0 else [])

    def _time_line(self) -> str:
        total = sum(seconds for _, seconds in self.seconds)
        if self.status == UP_TO_DATE:
            return f"nothing to do: it was built on {self.built} in {total:.1f} s"
        is_read = any(spec.width for spec in self.strings)
        unused = [*([] if is_read else ["strings"]), *([] if self.features else ["features"])]
        times = ", ".join(
            f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds if phase not in unused
        )
        if not is_read:
            return f"built in {total:.1f} s: {times}"
        rate = ""
        if self.num_encoded:
            ranks = f", {self.num_ranks} ranks" if self.num_ranks > 1 else ""
            rate = f" ({self.num_encoded / max(self.encoding_s, 1e-3):,.0f} strings/s{ranks})"
        stored = f", {self.num_stored:,} from the vector store" if self.num_stored else ""
        return (
            f"built in {total:.1f} s: {times}; {self.num_encoded:,} strings encoded anew{rate}"
            f"{stored}"
        )

    def _features(self, spec: StringSpec) -> list[str]:
        """Return a line on a column's features, and one on those that are missing."""
        if not spec.features:
            return []
        sets = ", ".join(f"{each.name} {len(each.columns):,}" for each in spec.features)
        lines = [f"  with {count_of(len(spec.feature_columns), 'feature')}: {sets}"]
        found = self.features.get(spec.name, {})
        if found.get("num_missing"):
            columns = found["columns"]
            of_none = found["of_none"]
            empty = f", of which {of_none:,} without any value" if of_none else ""
            lines.append(
                f"  {found['num_missing']:,} of their"
                f" {spec.num_strings * len(spec.feature_columns):,} values are missing or infinite,"
                f" in {count_of(len(columns), 'column')}{empty} ({_first(columns)}); the median of"
                " the train strings stands for them"
            )
        return lines

    def _oddities(self, name: str) -> list[str]:
        """Return a line on merged spellings and one on unknown tokens, where there are any."""
        merged, unknown = self.merged.get(name, {}), self.unknown.get(name, {})
        lines = []
        if merged:
            shown = [
                f"{text:.60} <- {' | '.join(f'{spelling:.40}' for spelling in spellings)}"
                for text, spellings in merged.items()
            ]
            are = "string is" if len(merged) == 1 else "strings are"
            lines.append(f"  {len(merged):,} {are} spelled in several ways: {_first(shown)}")
        if unknown:
            shown = [
                f"{', '.join(repr(part) for part in parts):.60} in {text:.60}"
                for text, parts in unknown.items()
            ]
            lines.append(
                f"  {len(unknown):,} strings have parts that the tokenizer does not know:"
                f" {_first(shown)}"
            )
        return lines


def _first(items: list[str]) -> str:
    return "; ".join(items[:MOST_SHOWN]) + ("; ..." if len(items) > MOST_SHOWN else "")
