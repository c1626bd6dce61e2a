"""Strings that an encoder could not tell from others: its tokenizer does not know their parts.

A part that is unknown here and there is for the report. Where nothing else is left of a string, or
where what is lost is the dot between two molecules, a vector would stand for another string.
"""

from collections.abc import Mapping, Sequence

from embedcache.config.columns import StringColumn
from embedcache.errors import TokenizerError

MOST_LISTED = 10


def refuse_unread(strings: Sequence[str]) -> None:
    """Raise TokenizerError for these strings of which no part is known, if there are any."""
    if strings:
        raise TokenizerError(
            f"{len(strings):,} strings have no part that the encoder's tokenizer knows, so that all"
            " of one length would have one vector; leave their rows out, or take an encoder that"
            f" reads them:\n{_listed(strings)}"
        )


def refuse_unread_dots(column: StringColumn, unknown: Mapping[str, list[str]]) -> None:
    """Raise TokenizerError for strings of several fragments whose `.` is unknown.

    `unknown` are the unknown parts of each string that has any.
    """
    unread = unread_dots(column, unknown)
    if unread:
        raise TokenizerError(
            f"string column '{column.column}': the encoder's tokenizer does not know the '.' that"
            f" parts the fragments of {len(unread):,} strings (polyBERT's does not); give each part"
            " a string column of its own, and leave fragments out, or take an encoder that reads"
            f" '.':\n{_listed(unread)}"
        )


def unread_dots(column: StringColumn, unknown: Mapping[str, list[str]]) -> list[str]:
    """Return the strings of several fragments, where a column has such, whose `.` is unknown."""
    if not column.fragments:
        return []
    return [text for text, parts in unknown.items() if any("." in part for part in parts)]


def _listed(strings: Sequence[str]) -> str:
    more = [f"  - and {len(strings) - MOST_LISTED:,} more"] if len(strings) > MOST_LISTED else []
    return "\n".join([*(f"  - {text!r:.120}" for text in strings[:MOST_LISTED]), *more])
