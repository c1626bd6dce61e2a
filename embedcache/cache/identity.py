"""What a cache was made from, entry by entry.

So a cache of something else is refused with the difference, not with "hash mismatch". An identity
holds everything that the cache's content depends on: the bytes of the table's files, what its
columns mean, the split, the encoder's weights, the tokenizer, the pooling, the number format. It
does not hold what the content does not depend on: where files lie, how rows are chunked and
compressed, the encoding mode and LoRA settings of a run. Many runs share one cache.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

FORMAT_VERSION = 9
ABSENT = "(none)"
ROTATION = "split.rotation"  # the entry that one cache can have in several values
LEFT_OUT = "split.left_out"  # of a view of a cache alone: the folds that validate in it
DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")


@dataclass(frozen=True)
class Identity:
    """The entries of a cache's identity, by readable name."""

    entries: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest over all entries."""
        return hashlib.sha256(json.dumps(dict(self.entries), sort_keys=True).encode()).hexdigest()

    @property
    def files(self) -> tuple[str, ...]:
        """The digest of each of the table's files, in the order of their rows."""
        return tuple(self.entries["table"].split(", "))

    def grows_into(self, other: "Identity") -> bool:
        """Return whether `other` differs only in files that follow those of this one."""
        same = {name: text for name, text in self.entries.items() if name != "table"} == {
            name: text for name, text in other.entries.items() if name != "table"
        }
        return (
            same
            and len(other.files) > len(self.files)
            and other.files[: len(self.files)] == self.files
        )

    @property
    def short(self) -> str:
        """The first digits of the digest, for messages."""
        return self.digest[:12]

    def difference(self, other: "Identity") -> list[str]:
        """Return one line for each entry that is not the same in `other`: "split.seed: 0 -> 1"."""
        lines = []
        for name in sorted({*self.entries, *other.entries}, key=_reading_order):
            mine, theirs = self.entries.get(name), other.entries.get(name)
            if (
                mine == theirs
                or _in_new_item(name, mine, self.entries)
                or _in_new_item(name, theirs, other.entries)
            ):
                continue
            lines.append(f"{name}: {_show(mine)} -> {_show(theirs)}")
        return lines


def _reading_order(name: str) -> tuple[bool, str]:
    """Order entries for a reader: the table and the encoder before the many settings of columns."""
    return ("[" in name, name)


def _in_new_item(name: str, value: str | None, entries: Mapping[str, str]) -> bool:
    """Return whether `name` belongs to a list item that `entries` lacks, as its list says."""
    if value is not None or "[" not in name:
        return False
    item = name[: name.index("]") + 1]
    return not any(other.startswith(item) for other in entries)


def _show(value: str | None) -> str:
    if value is None:
        return ABSENT
    return DIGEST.sub(lambda found: found[0][:8] + "..", value)
