"""A config written from a table: what was guessed of it, as commented YAML and in words."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from embedcache.errors import ConfigError
from embedcache.guess.entries import Entry, Guess, Role
from embedcache.guess.roles import Named
from embedcache.guess.whole import TableGuess, guess_table
from embedcache.schema import parse_config
from embedcache.text import count_of, text_table, visible
from fusionnet.config.train import VAL_ERROR
from fusionnet.experiment import Experiment
from fusionnet.workflow.schema import SCHEMA_FILE
from fusionnet.yamlfile import parse_yaml

if TYPE_CHECKING:  # transformers take seconds, and polyBERT is not asked
    from fusionnet.workflow.tokens import Tokens

POLYBERT = "kuelumbus/polyBERT"
READS_TEXT = "sentence-transformers/all-MiniLM-L6-v2"  # for columns of words, not of SMILES
# distinct strings up to which a laptop adapts the encoder; in every step of some 1,000 each of them
# is encoded and differentiated
MOST_TUNED = 64
ROWS_FOR_BINS = 1000  # of a table; numbers of smaller ones enter as they are
_WIDTH = 100
_NO_NAME = "(no name)"
_HEADS = {Role.STRING: "strings", Role.NUMERIC: "numeric", Role.CATEGORY: "categories"}


@dataclass(frozen=True)
class Draft:
    """A config for a table."""

    guess: TableGuess
    values: Entry  # the config as a mapping, its defaults left out
    num_tokens: Mapping[str, tuple[int, int]]  # of distinct strings and of all rows, by column

    @property
    def run(self) -> str:
        """The folder that a training of it will write."""
        return str(self.values["run"]["dir"])

    def check(self) -> Experiment:
        """Return the config as commands read it; raises ConfigError for what none can be."""
        return parse_config(Experiment, self.values, f"the config guessed of {self.guess.path}")

    def roles(self) -> str:
        """Return what each column was taken for and why, as a table, and what is left out."""
        lines = [("column", "role", "why")]
        for guess in self.guess.columns:
            name = visible(guess.column, 32) or _NO_NAME
            lines.append((name, guess.role.value, visible(guess.reason, 110)))
        found = text_table(lines, num_left=3)
        found.append(f"split: {self.guess.why_split}")
        return "\n".join([*found, *map(visible, self.guess.remarks)])

    def saving(self) -> str:
        """Return how many strings are encoded instead of how many rows, for each string column."""
        rows = self.guess.num_rows
        lines = []
        for name, distinct in self.guess.num_distinct.items():
            line = (
                f"saving: {name} has {count_of(distinct, 'distinct string')} in"
                f" {count_of(rows, 'row')}: one encoding serves {rows / distinct:,.1f} rows"
            )
            if name in self.num_tokens:
                once, all_rows = self.num_tokens[name]
                line += f"; {once:,} tokens instead of {all_rows:,}"
            lines.append(line)
        return "\n".join(lines)


def draft_config(
    table: str | Path,
    named: Named | None = None,
    tokens: "Tokens | None" = None,
    split: Mapping[str, Any] | None = None,
) -> Draft:
    """Return a config for the table at a path, of which all rows are read.

    `split` is what is known of how it is split. `tokens` are those of the encoder that is to read
    its strings, which says what it cannot read; unset, polyBERT is taken unasked. Raises
    TableError, ConfigError or SplitError.
    """
    judge = None if tokens is None else tokens.unreadable
    guess = guess_table(table, named, judge, split)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", _stem(Path(table))).strip("_")[:64] or "table"
    values: Entry = {"data": {"path": str(table), **guess.data}, "tasks": guess.tasks}
    values["split"] = guess.split
    if strings := values["data"].get("strings"):
        source = {"source": POLYBERT} if tokens is None else tokens.entry
        frozen = {"mode": "frozen"} if sum(guess.num_distinct.values()) > MOST_TUNED else {}
        values["encoder"] = source | frozen
        values["data"]["strings"] = [_with_encoder(column, tokens) for column in strings]
    values["model"] = _model(guess)
    values["train"] = {"monitor": VAL_ERROR}
    values["blend"] = {"boosting": True}
    values |= {"cache": {"path": f"{name}.zarr"}, "run": {"dir": f"runs/{name}", "name": name}}
    counts = {
        name: tokens.count(texts, guess.rows_of_strings[name])
        for name, texts in guess.texts.items()
        if tokens is not None
    }
    return Draft(guess, values, counts)


def _model(guess: TableGuess) -> Entry:
    """Return the form of network that had the least error on validation rows (LOG)."""
    model: Entry = {"fusion": "mlp"}
    if guess.data.get("numeric") and guess.num_rows >= ROWS_FOR_BINS:
        model["numeric"] = "ple"
    if guess.data.get("numeric") and guess.data.get("group"):
        model["linear_skip"] = True
    return model


def _with_encoder(column: Entry, tokens: "Tokens | None") -> Entry:
    """Return a string column that is read by the encoder of all, or one of words by its own."""
    if tokens is None and column.get("kind") == "text":
        return {**column, "encoder": {"source": READS_TEXT, "tokenizer": "any"}}
    return column


def _stem(table: Path) -> str:
    """Return a table's name without its suffixes, such as .csv.gz."""
    return table.name.partition(".")[0]


def as_yaml(draft: Draft, schema: bool = False) -> str:
    """Return the draft as commented YAML; `schema`: with the line by which editors find it."""
    guess, values = draft.guess, draft.values
    lines = list(_head(guess, schema))
    lines += ["data:", f"  path: {_flow(values['data']['path'])}"]
    data = values["data"]
    if "csv" in data:
        lines.append(f"  csv: {_flow(data['csv'])}")
    if "null_values" in data:
        lines.append(f"  null_values: {_flow(data['null_values'])}  # cells for a missing value")
    if "on_invalid" in data:
        for remark in ("refuse (the default) would not read this table:", *guess.remarks[:6]):
            lines += _comment(visible(remark, 250), 2)
        lines.append("  on_invalid: skip")
    for role, key in _HEADS.items():
        if data.get(key):
            lines.append(f"  {key}:")
            lines += _entries(guess.of(role), data[key], 4)
    lines += _group(guess)
    lines += _ignored(guess.of(Role.IGNORED))
    lines += ["", "tasks:", *_entries(guess.of(Role.TARGET), values["tasks"], 2)]
    lines += ["", *_split(guess), *_encoder(values.get("encoder"))]
    lines += [
        "",
        "# the form of least error on validation rows of five tables; the specification's is joint",
        f"model: {_flow(values['model'])}",
        "",
        "# the epoch of the least validation losses, whatever weights of tasks were learnt",
        f"train: {_flow(values['train'])}",
        "",
        "# trees on the same rows and features, weighed against the network on validation rows",
        f"blend: {_flow(values['blend'])}",
    ]
    lines += ["", f"cache: {_flow(values['cache'])}", f"run: {_flow(values['run'])}", ""]
    text = "\n".join(lines)
    if parse_yaml(text, "the config") != values:  # a name that YAML cannot hold
        raise ConfigError(
            f"{guess.path} has names that no config can hold; rename columns with control"
            " characters"
        )
    return text


def _head(guess: TableGuess, schema: bool) -> Iterator[str]:
    if schema:
        yield f"# yaml-language-server: $schema={SCHEMA_FILE}"
    yield from _comment(
        f"Guessed by `fusionnet init` from {visible(guess.path.name)} ({guess.num_rows:,} rows,"
        f" {count_of(len(guess.columns), 'column')}). A guess may be wrong: each says why. Only"
        " what differs from the defaults is here; all keys are in configs/README.md.",
        0,
    )
    yield ""


def _entries(guesses: Sequence[Guess], entries: Sequence[Entry], indent: int) -> Iterator[str]:
    """Yield the items of a list, each with its reason."""
    for guess, entry in zip(guesses, entries, strict=True):
        yield from _explained(f"{' ' * indent}- {_flow(entry)}", guess.reason, indent)


def _explained(line: str, reason: str, indent: int) -> Iterator[str]:
    """Yield a line with its reason behind it, or above it where that would be too long."""
    whole = f"{line}  # {visible(reason)}"
    if len(whole) <= _WIDTH:
        yield whole
    else:
        yield from _comment(visible(reason), indent)
        yield line


def _group(guess: TableGuess) -> Iterator[str]:
    for found in guess.of(Role.GROUP):
        yield from _explained(f"  group: {_flow(found.column)}", found.reason, 2)


def _ignored(guesses: Sequence[Guess]) -> Iterator[str]:
    if guesses:
        yield "  # not used:"
    for guess in guesses:
        yield from _comment(
            f"{visible(guess.column) or _NO_NAME}: {visible(guess.reason)}", 2, hang=4
        )


def _split(guess: TableGuess) -> Iterator[str]:
    why = guess.why_split
    if guess.num_distinct and guess.split.get("strategy") == "random":
        why += "; for strings that training never saw: {strategy: leave_strings_out}"
    yield from _explained(f"split: {_flow(guess.split)}", why, 0)


def _encoder(encoder: Entry | None) -> Iterator[str]:
    if encoder is None:
        return
    yield ""
    if encoder.get("source", POLYBERT) == POLYBERT:
        yield from _comment(
            "a Hugging Face hub id or folder; without network: `embedcache make-encoder --out"
            " encoder` makes a stand-in of random weights, for a try: {source: encoder}; or {mode:"
            " none}, which reads strings by their features alone",
            0,
        )
    if encoder.get("mode") == "frozen":
        yield from _comment(
            "frozen: so many strings are encoded once, not in every step; {mode: per_step} adapts"
            " the encoder by LoRA, which takes hours without a GPU",
            0,
        )
    yield f"encoder: {_flow(encoder)}"


def _comment(text: str, indent: int, hang: int = 0) -> Iterator[str]:
    start = f"{' ' * indent}# "
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=start + " " * (hang // 2),
        subsequent_indent=start + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _flow(value: Any) -> str:
    """Return a value as YAML on one line, quoted where it has to be."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()
