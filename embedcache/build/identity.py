"""The identity of the cache that a configuration asks for, and what else the cache must have."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedcache.cache.identity import FORMAT_VERSION, ROTATION, Identity
from embedcache.cache.reader import Cache
from embedcache.config.columns import StringColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.config.features import FeatureTable
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn
from embedcache.encoder.loading import DTYPE, encoder_entries
from embedcache.errors import TableError
from embedcache.features.origin import computed_origin
from embedcache.files import file_digest
from embedcache.table.kinds import no_table, parquet_files


def wanted_identity(
    data: DataConfig,
    targets: tuple[TargetColumn, ...],
    split: SplitConfig,
    encoder: EncoderConfig,
    known_files: tuple[str, ...] = (),
    known_tables: Mapping[str, str] | None = None,
) -> Identity:
    """Return the identity of the cache that this configuration asks for.

    Reads the table's bytes and the encoder's files. `known_files` stand for the digests of the
    first files where these are absent, as on a machine that was sent the cache alone, and
    `known_tables`, a cache's entries, for those of tables of features.
    """
    known = dict(enumerate(known_files))
    digests = [
        known[k] if k in known and not Path(file).exists() else f"sha256 {table_digest(file)}"
        for k, file in enumerate(data.files)
    ]
    not_content: Any = {"path": True, "strings": {"__all__": {"encoder", "features"}}}
    entries = {
        "format": str(FORMAT_VERSION),
        "dtype": DTYPE,
        "table": ", ".join(digests),
        **_flat("data", data.model_dump(mode="json", exclude=not_content)),
        **_flat("targets", [target.model_dump(mode="json") for target in targets]),
        **_flat("split", split.settled().model_dump(mode="json")),
    }
    for column in data.strings:
        entries |= _feature_entries(column, known_tables or {})
    encoders = {f"data.strings[{column.name}].encoder": column.encoder for column in data.strings}
    if None in encoders.values():
        encoders["encoder"] = encoder
    for where, config in encoders.items():
        own: Mapping[str, str] = {}
        if config is not None:
            own = encoder_entries(config) if config.reads else {"mode": config.mode}
        entries |= {f"{where}.{name}": value for name, value in own.items()}
    return Identity(entries)


def _feature_entries(column: StringColumn, known: Mapping[str, str]) -> dict[str, str]:
    """Return what a column's features depend on beside its strings."""
    where = f"data.strings[{column.name}].features"
    if not column.features:
        return {}
    names: list[str] = []
    entries: dict[str, str] = {}
    for feature in column.features:
        if isinstance(feature, FeatureTable):
            names.append(f"table {len(entries) + 1}")
            entry = f"{where}.{names[-1]}"
            is_known = entry in known and not Path(feature.table).exists()
            entries[entry] = known[entry] if is_known else own_origin(feature)
        else:
            names.append(feature)
    if column.computed_features:
        entries[f"{where}.computed by"] = computed_origin()
    return {where: ", ".join(names), **entries}


def own_origin(feature: FeatureTable) -> str:
    """Return what a user's own features depend on beside the strings."""
    return f"sha256 {table_digest(feature.table, 'features.table')} by {feature.key}"


def differs_in_rotation(cache: Cache, wanted: Identity) -> bool:
    """Return whether a cache is the wanted one but for its rotation (see `rotation`)."""
    mine, theirs = dict(cache.identity.entries), dict(wanted.entries)
    return mine.pop(ROTATION, None) != theirs.pop(ROTATION, None) and mine == theirs


def has_states(cache: Cache, data: DataConfig, encoder: EncoderConfig) -> bool:
    """Return whether the cache has the hidden states that the encoding mode asks for.

    They are no part of its identity: other modes share the cache.
    """
    wanted = {column.name: (column.encoder or encoder).prefix_layer for column in data.strings}
    return all(wanted[spec.name] in (None, spec.prefix_layer) for spec in cache.layout.strings)


def table_digest(path: str | Path, named: str = "data.path") -> str:
    """Return the sha256 of a table's bytes, as `sha256sum` prints it.

    For a folder of Parquet files it is that of their names and their digests. `named` says in
    messages which key names it.
    """
    file = Path(path)
    if file.is_dir():
        digest, parts = hashlib.sha256(), parquet_files(file)
        if not parts:
            raise TableError(f"there is no Parquet file in the folder {file}, which {named} names")
        for part in parts:
            digest.update(f"{part.relative_to(file)}\0{file_digest(part)}\n".encode())
        return digest.hexdigest()
    if not file.is_file():
        raise no_table(file, named)
    return file_digest(file)


def _flat(prefix: str, value: Any) -> dict[str, str]:
    """Return a nested config as flat entries.

    Items of a list go by their name or column; the list itself is one entry, their order.
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
