"""The reward of rows whose strings are given once, for a policy's inner loop.

A frame is read, checked and its strings looked up in every call; here strings are encoded and
projected once, and a call is arithmetic on tensors.

Axes: B rows, D fusion width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from embedcache.config.columns import StringColumn
from embedcache.errors import TableError
from embedcache.table.psmiles import prepare_string
from fusionnet.config.reward import Unseen
from fusionnet.model.evaluator import RowEvaluator
from fusionnet.rows.tensors import RowInputs
from fusionnet.trained.batches import standardised
from fusionnet.trained.blended import Found, TreeTables, found_of, tree_tables
from fusionnet.trained.formula import Formula
from fusionnet.trained.frames import known_strings, new_strings, unreadable
from fusionnet.trained.novelty import NewStrings, new_strings_of
from fusionnet.trained.rewards import Rewards, rewards_of
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.vectors import vectors_of_all_strings


@dataclass(frozen=True)
class Rewarder:
    """A frozen run that rewards rows of given strings, in raw units."""

    run: TrainedRun
    formula: Formula
    pessimism: float
    evaluate: RowEvaluator
    tables: Sequence[Float[Tensor, "_ D"]]  # of the strings and all categories
    of_trees: TreeTables
    # which strings and categories train rows had, by string column, then by category column; None
    # where nobody looks
    known: Sequence[Bool[Tensor, " _"]] | None
    new: NewStrings | None  # of the strings that were given
    unseen: Unseen

    @torch.no_grad()
    def __call__(self, inputs: RowInputs) -> Rewards:
        """Return the rewards of rows, with hard thresholds, without gradients.

        `inputs.string_id[:, c]` is the number of the row's string among those that were given for
        the run's string column c; `inputs.numeric` holds raw units in the order of
        `run.scaling.columns`, `inputs.category` codes, the places of values in
        `run.layout.categories`. Bounds of the config are not checked. Raises
        NonFinitePredictionError where a reward is NaN or infinite, TableError for a category that
        no train row had where `unseen` is "refuse".
        """
        run = self.run
        inputs = inputs.to(run.device)
        found, predictions = self.predicted(inputs)
        rewards = self.rewards(inputs, found, predictions)
        if self.known is None:
            return rewards
        known = torch.ones(inputs.num_rows, dtype=torch.bool, device=run.device)
        columns = (*inputs.string_id.unbind(1), *inputs.category.unbind(1))
        for own, place in zip(self.known, columns, strict=True):
            known = known & own[place]
        if self.unseen == "refuse" and run.scaling.untrained_categories and not known.all():
            rows = (~known).nonzero()[:, 0].tolist()
            raise TableError(
                f"{len(rows):,} of {inputs.num_rows:,} rows have a category that no train row had"
                f" (reward.unseen: refuse), the first of them row {rows[0]}"
            )
        return replace(rewards, known=known, outside=run.scaling.is_outside(inputs.numeric).any(1))

    def rewards(
        self, inputs: RowInputs, found: Found, predictions: Float[Tensor, "B P"]
    ) -> Rewards:
        """Return the rewards of rows, on the run's device, of which this is `predicted`."""
        variance = None if self.new is None else self.new.variance(inputs)
        return rewards_of(
            self.run, self.formula, found, predictions, self.pessimism, of_strings=variance
        )

    @torch.no_grad()
    def predicted(self, inputs: RowInputs) -> tuple[Found, Float[Tensor, "B P"]]:
        """Return what the run says of rows on its device, and that as the reward reads it."""
        run = self.run
        rows = standardised(run, inputs)
        found = found_of(run, self.evaluate(self.tables, rows), rows, self.of_trees)
        return found, found.in_units(run, run.reward.binary)


def rewarder_on(
    run: TrainedRun,
    evaluate: RowEvaluator,
    formula: Formula,
    texts: Mapping[str, Sequence[str]],
    pessimism: float,
    unseen: Unseen,
) -> Rewarder:
    """Return the rewarder of the strings that rows may have, by string column.

    Raises one TableError with all strings that break a rule of the run's config.
    """
    prepared = _prepared(run, texts, unseen)
    names = list(prepared)
    vectors = [vectors_of_all_strings(run, name, prepared[name]) for name in names]
    flags = [torch.from_numpy(known_strings(run, name, prepared[name])) for name in names]
    flags += _known_categories(run)
    return Rewarder(
        run,
        formula,
        pessimism,
        evaluate,
        evaluate.tables(vectors),
        tree_tables(run, prepared, vectors),
        None if unseen == "allow" else [each.to(run.device) for each in flags],
        new_strings_of(run, formula, prepared),
        unseen,
    )


def _known_categories(run: TrainedRun) -> Iterator[Bool[Tensor, " _"]]:
    """Yield for each category column which of its values train rows had."""
    for name, values in run.layout.categories:
        known = torch.ones(len(values), dtype=torch.bool)
        known[list(run.scaling.untrained_categories.get(name, ()))] = False
        yield known


def _prepared(
    run: TrainedRun, texts: Mapping[str, Sequence[str]], unseen: Unseen
) -> dict[str, list[str]]:
    """Return strings as the encoder reads them, by the run's string columns in their order."""
    columns = run.data.strings
    names = [column.name for column in columns]
    if sorted(texts) != sorted(names) or not all(texts.values()):
        raise TableError(
            f"strings must be given for each string column of {run.folder}:"
            f" {', '.join(names) or 'it has none'}; got some for"
            f" {', '.join(name for name, own in texts.items() if own) or 'none'}"
        )
    prepared, refused = {}, []
    for column in columns:
        prepared[column.name], lines = _prepared_column(run, column, texts[column.name], unseen)
        refused += lines
    if refused:
        lines_of_all = "\n".join(f"  - {line}" for line in refused)
        raise TableError(f"some strings cannot be rewarded by {run.folder}:\n{lines_of_all}")
    return prepared


def _prepared_column(
    run: TrainedRun, column: StringColumn, texts: Sequence[str], unseen: Unseen
) -> tuple[list[str], list[str]]:
    """Return a column's strings, and a line on each that is refused."""
    found, reasons = {}, {}
    for spelling in dict.fromkeys(texts):
        try:
            found[spelling] = prepare_string(spelling, column)
        except ValueError as reason:
            reasons[spelling] = f"is not a {column.kind}: it {reason}"
    judge = new_strings if unseen == "refuse" else unreadable
    judged = judge(run, column, list(dict.fromkeys(found.values())))
    reasons |= {spelling: judged[text] for spelling, text in found.items() if text in judged}
    lines = [
        f"'{column.name}' number {texts.index(spelling)}: {spelling!r:.120} {reason}"
        for spelling, reason in reasons.items()
    ]
    return [found.get(spelling, "") for spelling in texts], lines
