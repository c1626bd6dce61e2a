"""Where a fit keeps its table, cache, config and run: a named folder, or a temporary one."""

import shutil
import tempfile
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.errors import OutputError, TableError
from embedcache.files import atomic_write
from embedcache.values import expanded_path
from fusionnet.trained.frames import is_pandas, polars_series

TABLE, CONFIG = "table.parquet", "config.yaml"


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

    def table_of(self, frame: Any) -> Path:
        """Return a file with the frame's rows: the file itself where a path is given.

        Raises TableError for what is no frame, and for one that has two columns of a name.
        """
        if isinstance(frame, str | Path):
            try:
                return Path(expanded_path(str(frame)))
            except ValueError as error:
                raise TableError(f"the path {str(frame)[:200]!r} {error}") from None
        table = self.path / TABLE
        with atomic_write(table) as partial:
            as_polars(frame).write_parquet(partial)
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
