"""What each split holds: rows, groups, strings and class rates, counted as rows stream by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int, Int8, Int64

from embedcache.config import SPLITS, TargetColumn
from embedcache.errors import SplitError


@dataclass(frozen=True)
class SplitReport:
    """How many rows and groups each split got, overall and by stratum, and with which class
    rates.
    """

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...] = ()

    def table(self, most_lines: int | None = None) -> str:
        """Return the report as aligned plain text; where it has more than `most_lines` lines,
        without the break-down by stratum.
        """
        brief = most_lines is not None and len(self.lines) > most_lines
        cells = [self.header, *(self.lines[-len(SPLITS) :] if brief else self.lines)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        aligned = [
            [
                cell.ljust(w) if c < 2 else cell.rjust(w)
                for c, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in cells
        ]
        return "\n".join(["  ".join(row).rstrip() for row in aligned] + list(self.remarks))


@dataclass
class SplitTally:
    """Counts what each split holds while the rows stream by: rows, groups, distinct strings, labels
    and positives.
    """

    strata: tuple[str, ...]  # () or one value: no break-down
    num_groups: int  # 0: the table has no groups
    num_strings: dict[str, int]  # by string column
    targets: tuple[str, ...]
    binary: tuple[bool, ...]
    rows: Int64[np.ndarray, "3 Q"] = field(init=False)
    labelled: Int64[np.ndarray, "3 Q T"] = field(init=False)
    positive: Int64[np.ndarray, "3 Q T"] = field(init=False)
    group_stratum: Int64[np.ndarray, " G"] = field(init=False)
    group_in: Bool[np.ndarray, "3 G"] = field(init=False)
    string_in: dict[str, Bool[np.ndarray, "3 _"]] = field(init=False)

    def __post_init__(self) -> None:
        """Start all counts at zero."""
        num_strata, num_targets = max(1, len(self.strata)), len(self.targets)
        self.rows = np.zeros((3, num_strata), dtype=np.int64)
        self.labelled = np.zeros((3, num_strata, num_targets), dtype=np.int64)
        self.positive = np.zeros((3, num_strata, num_targets), dtype=np.int64)
        self.group_stratum = np.zeros(self.num_groups, dtype=np.int64)
        self.group_in = np.zeros((3, self.num_groups), dtype=bool)
        self.string_in = {
            name: np.zeros((3, count), dtype=bool) for name, count in self.num_strings.items()
        }

    def grown(
        self,
        strata: tuple[str, ...],
        num_groups: int,
        num_strings: dict[str, int],
        targets: Sequence[TargetColumn],
    ) -> "SplitTally":
        """Return the same counts with room for the strata, groups, strings and targets of one more
        file, all of which follow the known ones but targets.
        """
        names, binary = (
            tuple(target.name for target in targets),
            tuple(target.kind == "binary" for target in targets),
        )
        grown = SplitTally(strata, num_groups, num_strings, names, binary)
        known = [names.index(name) for name in self.targets]
        grown.rows[:, : self.rows.shape[1]] = self.rows
        grown.labelled[:, : self.rows.shape[1], known] = self.labelled
        grown.positive[:, : self.rows.shape[1], known] = self.positive
        grown.group_stratum[: self.num_groups] = self.group_stratum
        grown.group_in[:, : self.num_groups] = self.group_in
        for name, seen in self.string_in.items():
            grown.string_in[name][:, : seen.shape[1]] = seen
        return grown

    def add(
        self,
        split: Int8[np.ndarray, " N"],
        stratum: Int[np.ndarray, " N"],
        group: Int[np.ndarray, " N"],
        strings: dict[str, Int[np.ndarray, " N"]],
        targets: np.ndarray,
    ) -> None:
        """Count one block of rows; `targets` is [N, T] with NaN where unobserved, `stratum` all
        zero and `group` ignored where there are none.
        """
        cell = split.astype(np.int64) * self.rows.shape[1] + stratum
        self.rows += np.bincount(cell, minlength=self.rows.size).reshape(self.rows.shape)
        for t in range(len(self.targets)):
            shape = self.rows.shape
            self.labelled[:, :, t] += np.bincount(
                cell[~np.isnan(targets[:, t])], minlength=self.rows.size
            ).reshape(shape)
            self.positive[:, :, t] += np.bincount(
                cell[targets[:, t] == 1], minlength=self.rows.size
            ).reshape(shape)
        if self.num_groups:
            self.group_in[split, group] = True
            self.group_stratum[group] = stratum
        for name, string_id in strings.items():
            self.string_in[name][split, string_id] = True

    def report(self) -> SplitReport:
        """Return the counts as a table: one line per split and stratum, then one per split."""
        names = [target for target, binary in zip(self.targets, self.binary, strict=True) if binary]
        header = (
            "split",
            "stratum",
            "groups",
            "rows",
            "share",
            *names,
            *(f"{name} strings" for name in self.num_strings),
        )
        cells = (
            [(split, q) for split in range(3) for q in range(len(self.strata))]
            if len(self.strata) > 1
            else []
        )
        lines = [self._line(split, q) for split, q in cells] + [
            self._line(split, None) for split in range(3)
        ]
        return SplitReport(header, tuple(lines), tuple(self._remarks()))

    def _line(self, split: int, stratum: int | None) -> tuple[str, ...]:
        """Return one line of the report; a stratum of None is the whole split."""
        chosen = slice(None) if stratum is None else [stratum]
        rows, labelled, positive = (
            counts[split, chosen].sum(0) for counts in (self.rows, self.labelled, self.positive)
        )
        groups = int(
            self.group_in[split][
                slice(None) if stratum is None else self.group_stratum == stratum
            ].sum()
        )
        rates = [
            f"{positive[t] / labelled[t]:.4f}" if labelled[t] else "-"
            for t in range(len(self.targets))
            if self.binary[t]
        ]
        strings = [
            f"{int(seen[split].sum()):,}" if stratum is None else ""
            for seen in self.string_in.values()
        ]
        share = f"{100 * rows / max(1, int(self.rows.sum())):.2f}%"
        name = "all" if stratum is None else self.strata[stratum]
        return (
            SPLITS[split],
            name,
            f"{groups:,}" if self.num_groups else "-",
            f"{rows:,}",
            share,
            *rates,
            *strings,
        )

    def _remarks(self) -> list[str]:
        """Return what a reader of the scores should know."""
        remarks = []
        straddling = int((self.group_in.sum(0) > 1).sum())
        if straddling:
            remarks.append(
                f"{straddling:,} of {self.num_groups:,} groups have rows in more than one split:"
                " scores do not speak of unseen groups"
            )
        for name, seen in self.string_in.items():
            for split in (1, 2):
                unseen = int((seen[split] & ~seen[0]).sum())
                if unseen:
                    remarks.append(
                        f"{unseen:,} of {int(seen[split].sum()):,} distinct {name} strings of"
                        f" {SPLITS[split]} are not in train"
                    )
        return remarks

    def check(self, strategy: str, left_out: str | None) -> None:
        """Raise one SplitError with everything that makes the split unusable; `left_out` names the
        column whose strings must not recur.
        """
        problems = [
            f"no row is in {SPLITS[split]}" for split in range(3) if not self.rows[split].sum()
        ]
        if strategy in ("group", "column") and self.num_groups:
            straddling = np.flatnonzero(self.group_in.sum(0) > 1)
            if len(straddling):
                problems.append(
                    f"{len(straddling):,} of {self.num_groups:,} groups of data.group have rows in"
                    " more than one split"
                )
        if left_out is not None and (self.string_in[left_out].sum(0) > 1).any():
            problems.append(f"distinct {left_out} strings have rows in more than one split")
        for t, (name, binary) in enumerate(zip(self.targets, self.binary, strict=True)):
            labelled, positive = (
                int(self.labelled[0, :, t].sum()),
                int(self.positive[0, :, t].sum()),
            )
            if labelled == 0:
                problems.append(f"no train row has a label for '{name}'")
            elif binary and positive in (0, labelled):
                problems.append(
                    f"the train rows hold only one class of '{name}' ({positive:,} of {labelled:,}"
                    " positive)"
                )
        if problems:
            raise SplitError(
                f"split.strategy '{strategy}' gives an unusable split: "
                + "; ".join(problems)
                + "\n"
                + self.report().table()
                + "\nTry another split.seed or split.rotation, fewer folds, or another strategy."
            )
