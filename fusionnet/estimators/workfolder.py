"""Where a fit keeps its table, cache, config and run: a named folder, or a temporary one."""

import os
import shutil
import tempfile
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.errors import OutputError, RunError, TableError
from embedcache.files import atomic_write, file_digest, write_atomically
from embedcache.values import expanded_path
from fusionnet.trained.sources import is_pandas, polars_series

# names that nobody else gives, but for the config, which says in its first line whose it is
TABLE, CONFIG = "fitted_table.parquet", "config.yaml"
_HEAD = "# Written by FusionModel.fit: commands and later fits go on from here.\n"


class WorkFolder:
    """A folder; a temporary one is removed with this object, or when Python ends."""

    def __init__(self, named: str | Path | None) -> None:
        """Raise OutputError where the name cannot be a folder's."""
        self.is_temporary = named is None
        if named is None:
            self.path = Path(tempfile.mkdtemp(prefix="fusionnet-"))
            self._end = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
            return
        try:
            self.path = Path(expanded_path(str(named)))
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise OutputError(f"folder {str(named)[:200]!r} cannot be used: {error}") from None

    @property
    def config(self) -> Path:
        """The YAML file by which commands go on with what was fitted here."""
        return self.path / CONFIG

    @property
    def has_config(self) -> bool:
        """Whether an earlier fit is here; raises RunError where the config is somebody else's."""
        if not os.path.lexists(self.config):
            return False
        try:
            with self.config.open(encoding="utf-8") as stream:
                is_own = stream.readline() == _HEAD
        except (OSError, ValueError):
            is_own = False
        if not is_own:
            raise RunError(
                f"{self.config} was not written by a fit, so it is left alone: name another folder"
            )
        return True

    def write_config(self, text: str) -> None:
        """Write the config; `has_config` must have been asked before."""
        write_atomically(self.config, f"{_HEAD}{text}".encode())

    def table_of(self, frame: Any, resumes: bool = False) -> Path:
        """Return a file with the frame's rows: the file itself where a path is given.

        Raises TableError for what is no frame, for one that has two columns of a name, and where a
        fit that `resumes` is given other rows than those that are here.
        """
        if isinstance(frame, str | Path):
            try:
                return Path(expanded_path(str(frame)))
            except ValueError as error:
                raise TableError(f"the path {str(frame)[:200]!r} {error}") from None
        table = self.path / TABLE
        with atomic_write(table) as partial:
            as_polars(frame).write_parquet(partial)
            if resumes and table.is_file() and file_digest(partial) != file_digest(table):
                raise TableError(
                    f"the frame is not the one that {self.path} was fitted to, {TABLE}; resume with"
                    " that one, or replace the fit by overwrite=True"
                )
        return table


def as_polars(frame: Any) -> pl.DataFrame:
    """Return a polars or pandas frame, or a lazy one, as a polars frame with all its columns."""
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame
    if not is_pandas(frame):
        raise TableError(
            f"expected a polars or pandas frame, or a table's path, found {type(frame).__name__};"
            " arrays are fitted by FusionRegressor and FusionClassifier"
        )
    names = [str(name) for name in frame.columns]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise TableError(f"the frame has several columns '{twice[0]:.80}'; rename or drop them")
    return pl.DataFrame(
        [polars_series(name, frame.iloc[:, number]) for number, name in enumerate(names)]
    )
