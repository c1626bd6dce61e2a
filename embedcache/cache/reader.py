"""The cache as its readers see it: `open_cache(path)` and what the opened cache gives.

    /                 attributes: format_version, identity, layout, provenance, report, complete,
                      files (see `manifest`)
    /strings/<name>   text [S], token_ids [P], token_offsets [S + 1], embeddings [S, E],
                      num_rows [S], prefix [P, E] (mode prefix), features [S, K] (where the
                      config asks for some; raw, NaN is missing); P tokens end to end,
                      text_hash [S], vector_hash [S], prefix_hash [S] (see `consistency`)
    /rows             string_id [N, C], string_hash [N, C], numeric [N, F], category [N, K],
                      targets [N, T], weight [N], group [N], stratum [N], split [N], fold [N],
                      facets [N, R]
    /scaling          attributes: transforms, means and spreads of train rows and of their strings'
                      vectors
    /groups           name: the names of the groups, where the table has groups

Everything is plain Zarr v3 with its core codecs and named dimensions: any Zarr reader can open it.
Fill values are NaN and -1, never a plausible value, and nothing is read before its digest was
checked, so what is damaged is an error that names the array and chunk. Other tools check less, but
need nothing of ours:

    import zarr
    root = zarr.open_group("cache.zarr", mode="r")
    vectors, text = root["strings/polymer/embeddings"][:], root["strings/polymer/text"][:]

    import xarray as xr
    rows = xr.open_zarr("cache.zarr", group="rows", consolidated=False)
    train_mean = rows.numeric[rows.split.values == 0].mean("row")

    import pandas as pd, zarr
    numeric = zarr.open_array("cache.zarr/rows/numeric", mode="r")
    frame = pd.DataFrame(numeric[:], columns=numeric.attrs["columns"])
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int32, Int64, Shaped
from torch import Tensor

from embedcache.cache import manifest
from embedcache.cache.arrays import CheckedArrays
from embedcache.cache.codec import codec_of
from embedcache.cache.consistency import (
    check_codes,
    check_rows,
    check_strings,
    state_hashes,
    vector_hashes,
)
from embedcache.cache.identity import Identity
from embedcache.cache.layout import (
    ROW_ARRAYS,
    Layout,
    RowArray,
    RowBlock,
    StringSpec,
    StringTable,
    array_shapes,
    widths,
)
from embedcache.cache.leaving import await_thread_at_exit
from embedcache.cache.replaced import Unreplaced
from embedcache.cache.root import check_root, corrupt_root
from embedcache.config.cache import CodecName
from embedcache.encoder.tokens import TokenTable, no_tokens
from embedcache.scaling import Scaling
from embedcache.table.strings import text_hashes
from embedcache.table.vocabulary import Vocabulary

ROWS_PER_CHECK = 1 << 20


class Cache:
    """A cache opened for reading; made by `open_cache`."""

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        """Take the checked root attributes of the store at `path`."""
        self.path = path
        self.identity = Identity(attributes["identity"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.report: dict[str, Any] = attributes["report"]
        self._files: dict[str, dict[str, Any]] = attributes["files"]
        self._unreplaced = Unreplaced(path, self._files, self.identity.short)
        await_thread_at_exit()
        # None: the splits are those that were written
        self._split_of_fold: Int8[np.ndarray, " folds"] | None = None
        self._hashes: dict[str, Int64[np.ndarray, " S"]] = {}
        self._arrays = arrays = CheckedArrays(path, self._files)
        groups = [str(name) for name in arrays.read("groups/name")] if "groups" in arrays else []
        try:
            self.layout = Layout.model_validate({**attributes["layout"], "groups": groups})
            self.scaling = Scaling.from_json(json.dumps(arrays.attributes("scaling")))
            self.layout.check_scaling(self.scaling)
        except ValueError as error:
            raise corrupt_root(path, error) from None
        arrays.check_shapes(array_shapes(self.layout))

    @property
    def num_bytes(self) -> int:
        """Size of all files but the root metadata."""
        return sum(entry["bytes"] for entry in self._files.values())

    @property
    def num_files(self) -> int:
        """Files that the manifest covers."""
        return len(self._files)

    @property
    def rows_per_block(self) -> int:
        """Rows that one file holds; blocks of as many are read without decoding anything twice."""
        array = self._arrays.array("rows/weight")
        return (array.shards or array.chunks)[0]

    @property
    def codec(self) -> CodecName:
        """The codec that the cache was built with."""
        return codec_of(self._arrays.array("rows/weight"))

    def resplit(self, split_of_fold: Int8[np.ndarray, " folds"], identity: Identity) -> "Cache":
        """Return the same cache with other folds in its splits, under its identity as such.

        Its `scaling` and `report` are still those of the old splits (see `build.rotation`).
        """
        view = copy.copy(self)
        view.identity, view._split_of_fold = identity, split_of_fold
        return view

    def strings(self, name: str, with_states: bool = False) -> StringTable:
        """Return the strings of the column with this short name.

        `with_states` reads the cached hidden states too, if there are any. Raises KeyError for an
        unknown name, CorruptCacheError for what is not what was written.
        """
        with self._unreplaced:
            return self._strings(self.layout.strings_of(name), with_states)

    def _strings(self, spec: StringSpec, with_states: bool) -> StringTable:
        name = spec.name
        group = f"strings/{name}"
        tokens, vectors = no_tokens(spec.num_strings), torch.zeros(spec.num_strings, 0)
        if spec.width:
            tokens = self._tokens(spec, with_states)
            vectors = torch.from_numpy(self._arrays.read(f"{group}/embeddings"))
        strings = StringTable(
            text=[str(text) for text in self._arrays.read(f"{group}/text")],
            tokens=tokens,
            embeddings=vectors,
            num_rows=torch.from_numpy(self._arrays.read(f"{group}/num_rows")),
            features=self._features(spec),
        )
        self._check_strings(spec, strings)
        return strings

    def _tokens(self, spec: StringSpec, with_states: bool) -> TokenTable:
        group = f"strings/{spec.name}"
        has_states = with_states and spec.prefix_layer is not None
        return TokenTable(
            values=torch.from_numpy(self._arrays.read(f"{group}/token_ids")),
            offsets=torch.from_numpy(self._arrays.read(f"{group}/token_offsets")),
            states=torch.from_numpy(self._arrays.read(f"{group}/prefix")) if has_states else None,
        )

    def _features(self, spec: StringSpec) -> Float32[Tensor, "S K"]:
        if not spec.features:
            return torch.zeros(spec.num_strings, 0)
        return torch.from_numpy(self._arrays.read(f"strings/{spec.name}/features"))

    def rows(self, start: int = 0, stop: int | None = None) -> RowBlock:
        """Return rows `start` to `stop` in table order, every row's string known to be its own.

        Only the chunks that hold them are read. Raises IndexError for rows that are not there.
        """
        stop = self.layout.num_rows if stop is None else stop
        if not 0 <= start <= stop <= self.layout.num_rows:
            raise IndexError(f"rows {start} to {stop} of a cache of {self.layout.num_rows} rows")
        width = widths(self.layout)
        with self._unreplaced:
            arrays = {
                array.name: self._read_rows(array, width.get(array.name), start, stop)
                for array in ROW_ARRAYS
            }
            block = RowBlock(**arrays)
            if self._split_of_fold is not None:
                block = replace(block, split=self._split_of_fold[block.fold])
            self._check_rows(block.string_id, block.string_hash, start)
            self._check_codes(block, start)
        return block

    def array_sizes(self) -> dict[str, dict[str, Any]]:
        """Return the shape and type of each array, and its bytes on disk and in memory.

        The bytes in memory are 0 for text, whose size there is not fixed.
        """
        return self._arrays.sizes()

    def verify(self) -> None:
        """Read every file.

        Raises CorruptCacheError if one is not what was written, a vector not its string's, or a
        string not its row's.
        """
        self._arrays.check_all()
        for spec in self.layout.strings:
            self.strings(spec.name, with_states=True)
        arrays = [array for array in ROW_ARRAYS if array.name in ("string_id", "string_hash")]
        for start in range(0, self.layout.num_rows, ROWS_PER_CHECK):
            stop = min(start + ROWS_PER_CHECK, self.layout.num_rows)
            string_id, string_hash = (
                self._read_rows(array, len(self.layout.strings), start, stop) for array in arrays
            )
            self._check_rows(string_id, string_hash, start)

    def _check_strings(self, spec: StringSpec, strings: StringTable) -> None:
        name, text, tokens = f"strings/{spec.name}", strings.text, strings.tokens
        self._compare(text, f"{name}/text_hash", text_hashes(text), f"{name}/text_hash")
        found = vector_hashes(text, tokens, strings.embeddings, strings.features)
        self._compare(text, f"{name}: tokens, vectors or features", found, f"{name}/vector_hash")
        if tokens.states is not None:
            found = state_hashes(text, tokens)
            self._compare(text, f"{name}/prefix", found, f"{name}/prefix_hash")

    def _compare(
        self, text: list[str], what: str, found: Int64[np.ndarray, " S"], stored: str
    ) -> None:
        """Raise CorruptCacheError where hashes are not those in the array `stored`."""
        check_strings(self.path, what, text, found, self._arrays.read(stored))

    def _check_rows(
        self, string_id: Int32[np.ndarray, "N C"], string_hash: Int64[np.ndarray, "N C"], start: int
    ) -> None:
        for column, spec in enumerate(self.layout.strings):
            if spec.name not in self._hashes:
                self._hashes[spec.name] = self._arrays.read(f"strings/{spec.name}/text_hash")
            check_rows(
                self.path,
                spec.name,
                self._hashes[spec.name],
                string_id[:, column],
                string_hash[:, column],
                start,
            )

    def _check_codes(self, block: RowBlock, start: int) -> None:
        layout = self.layout
        columns = [
            *zip(layout.categories, block.category.T, strict=True),
            *zip(layout.facets, block.facets.T, strict=True),
            (Vocabulary("group", layout.groups), block.group),
            (Vocabulary("stratum", layout.strata), block.stratum),
        ]
        for (column, values), codes in columns:
            check_codes(self.path, column, len(values), codes, start)

    def _read_rows(
        self, spec: RowArray, width: int | None, start: int, stop: int
    ) -> Shaped[np.ndarray, "N ..."]:
        """Return N rows of a row array of `width` columns, or of one dimension if it is None."""
        if width == 0 or start == stop:
            columns = () if width is None else (width,)
            return np.empty((stop - start, *columns), dtype=spec.dtype)
        return self._arrays.read_rows(f"rows/{spec.name}", start, stop)


def open_cache(path: str | Path) -> Cache:
    """Return the complete cache at `path`.

    Raises MissingCacheError where there is none, CorruptCacheError where a file is missing or cut,
    StaleCacheError for another format version.
    """
    folder = Path(path)
    attributes = manifest.read_root(folder)
    check_root(folder, attributes)
    manifest.check_presence(folder, attributes["files"])
    return Cache(folder, attributes)
