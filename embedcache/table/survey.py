"""The survey of one file: which values its columns have, and everything that is wrong with them.

Each method answers for one kind of column and notes what it finds wrong, so that a user sees all of
it at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from embedcache.config.columns import CategoryColumn, RowWeight, StringColumn
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.table.checks import first_rows
from embedcache.table.classes import with_classes
from embedcache.table.counting import (
    Groups,
    Label,
    ValueCounts,
    count_groups,
    count_values,
    known_first,
    values_of,
)
from embedcache.table.repeatunit import NUMBER, each_kind_first, reasons_text
from embedcache.table.strings import DistinctStrings, distinct_strings
from embedcache.table.vocabulary import Vocabularies, followed_by, in_order
from embedcache.text import count_of, nearest, rows_text

# the strings of a column that whatever reads them cannot read, with the reason
Judge = Callable[[StringColumn, Sequence[str]], Mapping[str, str]]
MOST_FACETS = 10_000  # distinct values of a report_by column: each is a line of a report
MOST_LINES = 10  # of one kind in the report of violations
MOST_NAMES = 5  # in one line


@dataclass
class Survey:
    """One file while it is read: what the files before it named, and all that was found wrong."""

    frame: pl.LazyFrame  # canonical columns
    columns: frozenset[str]  # their names
    known: Vocabularies
    label: Label | None  # the one whose shares the splits have in common
    violations: list[str]
    judge: Judge | None = None  # of strings, beside what each column's kind asks
    # by canonical column: the values that are refused, with the reason
    refused: dict[str, dict[str, str]] = field(default_factory=dict)

    def note_refused(self, data: DataConfig) -> None:
        """Note the strings and categories that are refused, all in `refused`."""
        for column in data.strings:
            if f"string:{column.name}" in self.columns:
                self.strings(column, self.spellings(column))
        for category in data.categories:
            if f"category:{category.column}" in self.columns:
                self.category(category)

    def targets(
        self, configured: Sequence[TargetColumn], absent: Sequence[str]
    ) -> tuple[tuple[TargetColumn, ...], tuple[str, ...]]:
        """Return the targets with labels, and the names of the optional ones without.

        A target that is labelled in an earlier file may lack labels here; `absent` are those
        without a column.
        """
        configured = [
            with_classes(target, self.frame, self.columns, self.known, self.violations)
            for target in configured
        ]
        unseen = [target for target in configured if target.name not in self.known.targets]
        readable = [target for target in unseen if f"target:{target.name}" in self.columns]
        observed, empty = set(self.known.targets), set(absent)
        for target, (num_labels, num_positive) in zip(
            readable, self._label_counts(readable), strict=True
        ):
            what = f"target column '{target.column}'"
            if num_labels:
                observed.add(target.name)
            elif target.optional:
                empty.add(target.name)
            elif not any(line.startswith(f"{what}: not a number") for line in self.violations):
                self.violations.append(
                    f"{what}: no row has a label; drop the target, or mark it optional"
                )
            if num_labels and target.kind == "binary" and num_positive in (0, num_labels):
                self.violations.append(
                    f"{what}: all {count_of(num_labels, 'label')} belong to one class,"
                    f" {'1' if num_positive else '0'}"
                )
        return (
            tuple(target for target in configured if target.name in observed),
            tuple(target.name for target in unseen if target.name in empty),
        )

    def check_label(self, observed: Sequence[TargetColumn], absent: Sequence[str]) -> None:
        """Note a stratifying label that has none here; forget one whose column is missing.

        Of one that is there, its classes are known now.
        """
        if self.label is None:
            return
        name = self.label.column.removeprefix("target:")
        if name in absent:
            self.violations.append(
                "the optional target that split.stratify_by names has no labels in this table;"
                " unset split.stratify_by"
            )
        if self.label.column not in self.columns:
            self.label = None
            return
        for target in observed:
            if target.name == name and target.has_codes:
                self.label = Label(self.label.column, target.classes or ())

    def check_weight(self, rule: RowWeight | None) -> None:
        """Note a rule that fits no row of a first file."""
        if rule is None or "weighted" not in self.columns or self.known.num_rows:
            return
        if not self.frame.select(pl.col("weighted").any()).collect(engine="streaming").item():
            none = "weighs more than 0"
            if rule.weight is not None:
                none = f"equals {rule.equals!r}; correct row_weight.equals, or leave row_weight out"
            self.violations.append(f"row_weight column '{rule.column}': no row {none}")

    def strata(self) -> tuple[str, ...]:
        """Return the values of the stratum column, known ones first; none where there is none."""
        if "stratum" not in self.columns:
            return ()
        return followed_by(self.known.strata, values_of(self.frame, "stratum"))

    def folds(self) -> tuple[str, ...]:
        """Return the table's own names of folds, numbers in their order; note new ones."""
        if "fold" not in self.columns:
            return ()
        found = values_of(self.frame, "fold")
        if not self.known.num_rows:
            return in_order(found)
        new = [name for name in found if name not in self.known.folds]
        if new:
            self.violations.append(
                f"fold column: {', '.join(map(repr, new[:MOST_NAMES])):.200} is no fold of the"
                f" files before, whose folds are {', '.join(self.known.folds):.200}; join the files"
                " into one table, or give their rows these folds"
            )
        return self.known.folds

    def groups(self, strata: tuple[str, ...]) -> Groups | None:
        """Return the groups, known ones first; note those whose stratum is not one value."""
        if "group" not in self.columns:
            return None
        if "stratum" in self.columns:
            self._check_strata_of_groups()
        groups, changed = known_first(count_groups(self.frame, self.label, strata), self.known)
        if changed:
            self.violations.append(
                f"stratum column: {count_of(len(changed), 'group')} with another value than in the"
                f" files before, e.g. {', '.join(map(repr, changed[:MOST_NAMES]))}"
            )
        return groups

    def spellings(self, column: StringColumn) -> ValueCounts:
        """Return the strings of a column as the table writes them."""
        return count_values(self.frame, f"string:{column.name}", self.label)

    def strings(self, column: StringColumn, spellings: ValueCounts) -> DistinctStrings:
        """Return the distinct prepared strings, and note the spellings that are refused."""
        known = self.known.strings.get(column.name, ())
        strings, refused = distinct_strings(column, spellings.values, spellings.num_rows, known)
        what, num_rows = f"string column '{column.column}'", spellings.rows_by_value
        told = {
            spelling: f"is not a {column.kind}: it {reason}" for spelling, reason in refused.items()
        }
        unreadable = self._unreadable(column, strings)
        refused |= unreadable
        told |= unreadable
        if told:
            self.refused[f"string:{column.name}"] = {
                spelling: f"{what}: it {reason}" for spelling, reason in told.items()
            }
        lines = {
            spelling: f"{spelling!r:.120} {told[spelling]}; {count_of(num_rows[spelling], 'row')}:"
            for spelling in each_kind_first(refused)[:MOST_LINES]
        }
        self._note_values(f"string:{column.name}", what, lines, num_rows)
        if len(refused) > MOST_LINES:
            self.violations.append(
                f"{what}: {count_of(len(refused), 'string')} refused in all:"
                f" {reasons_text(refused.values())}"
            )
        return strings

    def _unreadable(self, column: StringColumn, strings: DistinctStrings) -> dict[str, str]:
        """Return the spellings of new strings that the judge refuses, with the reason."""
        if self.judge is None:
            return {}
        known = set(self.known.strings.get(column.name, ()))
        reasons = self.judge(column, [text for text in strings.text if text not in known])
        spelled = zip(strings.spellings, strings.id_of_spelling.tolist(), strict=True)
        return {
            spelling: reasons[strings.text[string_id]]
            for spelling, string_id in spelled
            if strings.text[string_id] in reasons
        }

    def check_text(self, column: StringColumn, strings: DistinctStrings) -> None:
        """Note a column of any text whose strings are numbers, each of them."""
        texts = strings.text
        if column.kind == "text" and texts and all(NUMBER.fullmatch(text) for text in texts):
            self.violations.append(
                f"string column '{column.column}': every string is a number, e.g. {texts[0]!r:.40};"
                " an encoder reads its digits, not its size: list a quantity under data.numeric, a"
                " code under data.categories"
            )

    def category(self, column: CategoryColumn) -> tuple[str, ...]:
        """Return the categories in their order, and note the unknown ones."""
        name, other = f"category:{column.column}", column.other
        others = () if other is None else (other,)
        if column.values is None:
            known = self.known.categories.get(column.column, ())
            found = count_values(self.frame, name).rows_by_value
            frequent = [value for value, rows in found.items() if rows >= column.min_rows]
            return followed_by(known, (*frequent, *others))
        admissible = tuple(dict.fromkeys((*column.values, *others)))
        if other is not None:
            return admissible
        num_rows = count_values(self.frame, name).rows_by_value
        unknown = [value for value in num_rows if value not in admissible and value.strip()]
        if unknown:
            self.refused[name] = {
                value: f"category column '{column.column}': {value!r:.80} is unknown"
                for value in unknown
            }
        lines = {
            value: f"unknown category {value!r:.80}{nearest(value, admissible)}:"
            f" {count_of(num_rows[value], 'row')};"
            for value in unknown[:MOST_LINES]
        }
        what = f"category column '{column.column}'"
        self._note_values(name, what, lines, num_rows)
        self._note_more(what, len(unknown), "unknown category", "unknown categories")
        return admissible

    def facet(self, column: str) -> tuple[str, ...]:
        """Return the values of a report_by column, and note if there are too many to report."""
        known = self.known.facets.get(column, ())
        values = followed_by(known, values_of(self.frame, f"facet:{column}"))
        if len(values) > MOST_FACETS:
            self.violations.append(
                f"report_by column '{column}' has {len(values):,} distinct values, at most"
                f" {MOST_FACETS:,} can be reported"
            )
        return values

    def _label_counts(self, targets: Sequence[TargetColumn]) -> list[tuple[int, int]]:
        """Return how many labels each target has, and how many of them are 1."""
        if not targets:
            return []
        labels = [pl.col(f"target:{target.name}") for target in targets]
        ones = [
            pl.lit(0) if target.has_codes else (label == 1).sum()
            for target, label in zip(targets, labels, strict=True)
        ]
        counted = self.frame.select(
            *(label.count().alias(f"labels:{k}") for k, label in enumerate(labels)),
            *(one.alias(f"positives:{k}") for k, one in enumerate(ones)),
        )
        counts = counted.collect(engine="streaming").row(0)
        return list(zip(counts[: len(targets)], counts[len(targets) :], strict=True))

    def _check_strata_of_groups(self) -> None:
        """Note the groups that lie in several strata."""
        extremes = self.frame.group_by("group").agg(
            low=pl.col("stratum").min(), high=pl.col("stratum").max()
        )
        several = extremes.filter(pl.col("low") != pl.col("high"))
        found = several.select("group", "low", "high").collect(engine="streaming").sort("group")
        if found.height:
            shown = [
                f"{group!r} ({low!r}, {high!r})"
                for group, low, high in found.head(MOST_NAMES).iter_rows()
            ]
            self.violations.append(
                f"stratum column: {count_of(found.height, 'group')} with several values, e.g."
                f" {', '.join(shown)}; a group must lie in one stratum"
            )

    def _note_values(
        self, column: str, what: str, lines: Mapping[str, str], num_rows: Mapping[str, int]
    ) -> None:
        """Note some values of a canonical column, each with its line and its first rows."""
        if lines:
            rows = first_rows(self.frame, pl.col(column), lines)
            self.violations += [
                f"{what}: {line} {rows_text(rows[value], num_rows[value])}"
                for value, line in lines.items()
            ]

    def _note_more(self, what: str, count: int, noun: str, nouns: str) -> None:
        """Note how many values were not shown."""
        more = count - MOST_LINES
        if more > 0:
            self.violations.append(f"{what}: and {more:,} more {noun if more == 1 else nouns}")
