"""What each split holds, in numbers as a cache stores it, and as the text that a user reads."""

from collections.abc import Iterator, Sequence

from pydantic import Field, model_validator

from embedcache.config.split import SPLITS
from embedcache.schema import Config
from embedcache.text import text_table

MOST_NAMED = 5  # classes, folds or gaps in one remark


class SplitLine(Config):
    """What one split holds, or one stratum of it."""

    split: str
    stratum: str | None  # None: all of them
    groups: int | None  # None: the table has no groups
    rows: int
    labelled: dict[str, int]  # rows with a label, by target
    positive: dict[str, int]  # by binary target
    strings: dict[str, int]  # distinct ones by string column; of whole splits only


class SplitCounts(Config):
    """What all splits hold, and what a reader of scores should know of them."""

    lines: tuple[SplitLine, ...]  # by split and stratum, where there are strata; then by split
    num_groups: int
    straddling_groups: int  # that have rows in more than one split
    # distinct ones that train lacks, by string column and split
    unseen_strings: dict[str, dict[str, int]]
    num_unused: int = 0  # rows in no split, which are later than the test rows
    # those of several that no row has, by target and split
    missing_classes: dict[str, dict[str, list[str]]] = Field(default_factory=dict)
    folds_without: dict[str, list[int]] = Field(default_factory=dict)  # by what they lack, in words

    @model_validator(mode="after")
    def _names_agree(self) -> "SplitCounts":
        whole = self.lines[-len(SPLITS) :]
        if [line.split for line in whole] != list(SPLITS):
            raise ValueError(f"the last lines must be those of {', '.join(SPLITS)}")
        columns = set(whole[0].strings)
        for line in self.lines:
            if not line.positive.keys() <= line.labelled.keys():
                raise ValueError(f"{line.split}: positive rows of targets without labels")
        for line in whole:
            if line.strings.keys() != columns or line.positive.keys() != whole[0].positive.keys():
                raise ValueError(f"{line.split}: other columns than those of {whole[0].split}")
        for column, unseen in self.unseen_strings.items():
            if column not in columns or not unseen.keys() <= set(SPLITS):
                raise ValueError(f"unseen strings of '{column}', which no split has")
        return self


def split_table(counts: SplitCounts, most_lines: int | None = None) -> str:
    """Return the counts as aligned plain text, and the remarks on them.

    Where there are more than `most_lines` lines, they come without the break-down by stratum.
    """
    whole = counts.lines[-len(SPLITS) :]
    brief = most_lines is not None and len(counts.lines) > most_lines
    total = sum(line.rows for line in whole)
    targets, columns = list(whole[0].positive), list(whole[0].strings)
    strings = [f"{column} strings" for column in columns]
    rows = [["split", "stratum", "groups", "rows", "share", *targets, *strings]]
    rows += [_cells(line, total, columns) for line in (whole if brief else counts.lines)]
    return "\n".join([*text_table(rows, num_left=2), *_labels(whole), *_remarks(counts)])


def unlabelled(counts: SplitCounts, split: str) -> list[str]:
    """Return the names of the targets for which no row of a split has a label."""
    line = counts.lines[-len(SPLITS) :][SPLITS.index(split)]
    return [name for name, labels in line.labelled.items() if labels == 0]


def _cells(line: SplitLine, total: int, columns: list[str]) -> list[str]:
    """Return one line of the table, given the rows of all splits."""
    labelled = line.labelled
    rates = [
        f"{positive / labelled[target]:.4f}" if labelled[target] else "-"
        for target, positive in line.positive.items()
    ]
    return [
        line.split,
        "all" if line.stratum is None else line.stratum,
        "-" if line.groups is None else f"{line.groups:,}",
        f"{line.rows:,}",
        f"{100 * line.rows / max(1, total):.2f}%",
        *rates,
        *(f"{line.strings[column]:,}" if column in line.strings else "" for column in columns),
    ]


def _labels(whole: Sequence[SplitLine]) -> Iterator[str]:
    """Yield a line on the labels of the targets that some rows lack, by split."""
    sparse = [
        f"{name} {' / '.join(f'{line.labelled[name]:,}' for line in whole)}"
        for name in whole[0].labelled
        if any(line.labelled[name] < line.rows for line in whole)
    ]
    if sparse:
        yield f"labels in {' / '.join(line.split for line in whole)}: {', '.join(sparse)}"


def _remarks(counts: SplitCounts) -> Iterator[str]:
    """Yield what a reader of the scores should know."""
    if counts.num_unused:
        yield f"{counts.num_unused:,} rows are later than the test rows, and in no split"
    if counts.straddling_groups:
        yield (
            f"{counts.straddling_groups:,} of {counts.num_groups:,} groups have rows in more than"
            " one split: scores do not speak of unseen groups"
        )
    for line in counts.lines[-len(SPLITS) :]:
        yield from _missing_labels(line)
    for name, by_split in counts.missing_classes.items():
        for split, missing in by_split.items():
            unlearnt = "; the model cannot learn that" if split == SPLITS[0] else ""
            yield f"{split} has no label of class {_some(missing)} of '{name}'{unlearnt}"
    if counts.folds_without:
        shown = [f"{what} in fold {_some(folds)}" for what, folds in counts.folds_without.items()]
        yield f"cross-validation would lack metrics: no {_some(shown, '; ')}"
    distinct = {line.split: line.strings for line in counts.lines[-len(SPLITS) :]}
    for column, unseen_in in counts.unseen_strings.items():
        for split, unseen in unseen_in.items():
            if unseen:
                yield (
                    f"{unseen:,} of {distinct[split][column]:,} distinct {column} strings of"
                    f" {split} are not in train"
                )


def _some(values: Sequence[object], comma: str = ", ") -> str:
    """Return the first few values."""
    shown = comma.join(map(str, values[:MOST_NAMED]))
    return shown + (f"{comma}..." if len(values) > MOST_NAMED else "")


def _missing_labels(line: SplitLine) -> Iterator[str]:
    """Yield what a split has no label of; a training is not refused for it, as it is for train."""
    for name, labels in line.labelled.items():
        if line.rows and not labels:
            yield f"no {line.split} row has a label for '{name}'"
    for name, positive in line.positive.items():
        if line.labelled[name] and positive in (0, line.labelled[name]):
            kind = "negative" if positive else "positive"
            yield f"{line.split} has no {kind} label of '{name}'"
