"""What a cache was made from, part by part, so that a cache of something else is refused with the
difference, not with "hash mismatch".

An identity holds everything that the cache's content depends on: the bytes of the table's files,
what its columns mean, the split, the encoder's weights, the tokenizer, the pooling, the number
format. It does not hold what the content does not depend on: where files lie, how rows are chunked,
the encoding mode and LoRA settings of a run. Many runs share one cache.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

FORMAT_VERSION = 5
ABSENT = "(none)"
DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")


@dataclass(frozen=True)
class Identity:
    """The parts of a cache's identity, by readable name."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest over all parts."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()

    @property
    def files(self) -> tuple[str, ...]:
        """The digest of each of the table's files, in the order of their rows."""
        return tuple(self.parts["table"].split(", "))

    def grows_into(self, other: "Identity") -> bool:
        """Whether `other` differs only in files that follow those of this one."""
        same = {name: text for name, text in self.parts.items() if name != "table"} == {
            name: text for name, text in other.parts.items() if name != "table"
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
        """Return one line for each part that is not the same in `other`: "split.seed: 0 -> 1"."""
        lines = []
        for name in sorted({*self.parts, *other.parts}, key=_reading_order):
            mine, theirs = self.parts.get(name), other.parts.get(name)
            if (
                mine == theirs
                or _in_new_item(name, mine, self.parts)
                or _in_new_item(name, theirs, other.parts)
            ):
                continue
            lines.append(f"{name}: {_show(mine)} -> {_show(theirs)}")
        return lines


def _reading_order(name: str) -> tuple[bool, str]:
    """Order parts for a reader: the table and the encoder before the many settings of columns."""
    return ("[" in name, name)


def _in_new_item(name: str, value: str | None, parts: Mapping[str, str]) -> bool:
    """Whether `name` belongs to a list item that `parts` does not have at all; the line of its list
    says so already.
    """
    if value is not None or "[" not in name:
        return False
    item = name[: name.index("]") + 1]
    return not any(other.startswith(item) for other in parts)


def _show(value: str | None) -> str:
    if value is None:
        return ABSENT
    return DIGEST.sub(lambda found: found[0][:8] + "..", value)
