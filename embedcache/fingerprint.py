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
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embedcache.config import DataConfig, EncoderConfig, SplitConfig, TargetColumn
from embedcache.encoder import encoder_digest
from embedcache.errors import TableError
from embedcache.tokens import load_tokenizer, tokenizer_digest

FORMAT_VERSION = 3
DTYPE = "float32"  # of embeddings
ABSENT = "(none)"
BLOCK_BYTES = 1 << 22
DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")
LARGE_BYTES = 1 << 31  # about two seconds of hashing


@dataclass(frozen=True)
class Identity:
    """The parts of a cache's identity, by readable name."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest over all parts."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

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

    def to_json(self) -> str:
        """Return the parts as JSON text."""
        return json.dumps(dict(self.parts), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Identity":
        """Return what `to_json` wrote."""
        return Identity(json.loads(text))


def wanted_identity(
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    encoder: EncoderConfig,
    known_files: tuple[str, ...] = (),
) -> Identity:
    """Return the identity of the cache that this configuration asks for; reads the table's bytes
    and the encoder's files.

    `known_files` stand for the digests of the first files where these are absent, as on a machine
    that was sent the cache alone.
    """
    known = dict(enumerate(known_files))
    digests = [
        known[k] if k in known and not Path(file).is_file() else f"sha256 {table_digest(file)}"
        for k, file in enumerate(data.files)
    ]
    parts = {"format": str(FORMAT_VERSION), "dtype": DTYPE, "table": ", ".join(digests)}
    parts |= _flat(
        "data",
        data.model_dump(mode="json", exclude={"path": True, "strings": {"__all__": {"encoder"}}}),
    )
    parts |= _flat("targets", [target.model_dump(mode="json") for target in targets])
    parts |= _flat("split", split.model_dump(mode="json"))
    if any(column.encoder is None for column in data.strings):
        parts |= {f"encoder.{name}": value for name, value in encoder_parts(encoder).items()}
    for column in data.strings:
        if column.encoder is not None:
            parts |= {
                f"data.strings[{column.name}].encoder.{name}": value
                for name, value in encoder_parts(column.encoder).items()
            }
    return Identity(parts)


def encoder_parts(encoder: EncoderConfig) -> dict[str, str]:
    """Return what the vector of a string depends on, besides the string."""
    return {
        "weights": encoder_digest(encoder),
        "tokenizer": tokenizer_digest(load_tokenizer(encoder)),
        "pooling": encoder.pooling,
    }


def encoding_key(encoder: EncoderConfig) -> str:
    """Return a short key that two encoders share only if they give the same vector for every
    string.
    """
    text = json.dumps({**encoder_parts(encoder), "dtype": DTYPE}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table_digest(path: str | Path) -> str:
    """Return the sha256 of a table's bytes, as `sha256sum` prints it."""
    file = Path(path)
    if not file.is_file():
        raise TableError(f"there is no table {file}; data.path must name a Parquet or CSV file")
    return file_digest(file)


def file_digest(file: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    size = file.stat().st_size
    bar = tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"hashing {file.name}",
        disable=None if size > LARGE_BYTES else True,
    )
    with file.open("rb") as stream, bar:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _flat(prefix: str, value: Any) -> dict[str, str]:
    """Return a nested config as flat parts. Items of a list go by their name or column; the list
    itself is one part that states their order.
    """
    if isinstance(value, dict):
        return {
            name: text
            for key, inner in value.items()
            for name, text in _flat(f"{prefix}.{key}", inner).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        names = [item.get("name", item["column"]) for item in value]
        items = {
            name: text
            for key, item in zip(names, value, strict=True)
            for name, text in _flat(f"{prefix}[{key}]", item).items()
        }
        return {prefix: ", ".join(names), **items}
    return {prefix: value if isinstance(value, str) else json.dumps(value)}


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
