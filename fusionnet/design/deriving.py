"""The space of designs of a run, and its patients, from the rows of a table.

The table is read, checked and spelled as for a prediction: what varies within a group may be
chosen, what does not is the patient's. Only aggregates are held, never the rows.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from embedcache.config.columns import indicator_of
from embedcache.errors import ConfigError, DesignError
from embedcache.table.exclude import without_excluded
from embedcache.table.invalid import REASON
from embedcache.table.read import read_features
from embedcache.values import twice
from fusionnet.design.bounds import bounds_of
from fusionnet.design.columns import RunColumns
from fusionnet.design.onehot import one_hot_sets
from fusionnet.design.space import FormulationSpace
from fusionnet.trained.frames import features_only, unreadable
from fusionnet.trained.run import TrainedRun
from fusionnet.trained.sources import source_of

ROW = "row"  # names the contexts of a run without groups: their rows in the table


def read_rows(run: TrainedRun, table: Any = None) -> pl.LazyFrame:
    """Return the rows of a table: `string:NAME`, `numeric:COLUMN`, `category:COLUMN` and `group`.

    `table` is a frame or a path; unset: the files of the run's config. Strings are prepared,
    missing numbers null. Raises TableError with all violations, DesignError where there is no
    table.
    """
    if table is not None:
        return _rows_of(run, table, "--table")
    lacking = [file for file in run.data.files if not Path(file).exists()]
    if lacking:
        raise DesignError(
            f"{lacking[0]}, the table that {run.folder} was trained on, is not there (its config"
            " names it relative to where training was started): say where one lies with --table"
        )
    return pl.concat([_rows_of(run, file, "data.path") for file in run.data.files])


def from_rows(run: TrainedRun, rows: pl.LazyFrame) -> FormulationSpace:
    """Return what may be chosen for a patient, by the run's `design`; `rows` are of `read_rows`.

    Raises ConfigError where `design` names what there is not, DesignError where there is nothing to
    choose, or a column is neither chosen nor constant within patients.
    """
    _check_config(run)
    numbers = [column.column for column in run.data.numeric]
    categories = [column for column, _ in run.layout.categories]
    names = [*(f"numeric:{name}" for name in numbers), *(f"category:{name}" for name in categories)]
    varying = {name.partition(":")[2] for name in _varying(run, rows, names)}
    choices = _choices(run, rows, [name for name in numbers if name in varying])
    in_choices = {name for each in choices for name in each}
    variables = run.design.variables
    if variables is None:
        variables = tuple(name for name in numbers if name in varying - in_choices)
    fixed = [name for name in numbers if name not in {*variables, *in_choices}]
    _refuse_loose(run, [name for name in fixed if name in varying])
    parts = [
        *(f"string:{column.name}" for column in run.data.strings),
        *(f"category:{name}" for name in categories if name in varying),
    ]
    found = bounds_of(run, rows, parts, variables)
    if not variables and not choices and len(found.low) < 2:
        raise DesignError(
            f"nothing can be chosen from {run.folder}: there is one material, and no numeric column"
            f" varies within {run.data.group or 'a row (there is no data.group)'}; name columns in"
            " design.variables of the run's config"
        )
    values = {part: tuple(found.materials[part].to_list()) for part in parts}
    return FormulationSpace(
        columns=run_columns(run),
        texts={column.name: values[f"string:{column.name}"] for column in run.data.strings},
        categories={name: values[f"category:{name}"] for name in categories if name in varying},
        variables=variables,
        low=found.low,
        high=found.high,
        logarithmic=found.logarithmic,
        whole=found.whole,
        choices=choices,
        fixed=(*fixed, *(name for name in categories if name not in varying)),
        group=run.data.group,
        num_left_out=found.num_left_out,
    )


def patients(space: FormulationSpace, rows: pl.LazyFrame) -> pl.DataFrame:
    """Return the contexts, one row per patient in the order of their names, with what is fixed.

    Without groups each row of the table is one, and the column `row` says which. Raises DesignError
    where a fixed column has several values in one patient.
    """
    features = space.columns.features
    given = [
        pl.col(f"{'numeric' if name in features else 'category'}:{name}").alias(name)
        for name in space.fixed
        if name != space.group
    ]
    if space.group is None:
        return rows.select(given).with_row_index(ROW).collect(engine="streaming")
    found = (
        rows.group_by(pl.col("group").alias(space.group))
        .agg(*(column.first() for column in given), *(_num_values(column) for column in given))
        .sort(space.group)
        .collect(engine="streaming")
    )
    for name in space.fixed:
        several = found.filter(pl.col(f"num:{name}") > 1) if name != space.group else found.head(0)
        if several.height:
            raise DesignError(
                f"'{name}' has {several[f'num:{name}'][0]:,} values in {space.group}"
                f" {several[space.group][0]!r:.80}, and one in each where the space comes from;"
                " give it one value, or name it in design.variables"
            )
    return found.select(pl.exclude("^num:.*$"))


def run_columns(run: TrainedRun) -> RunColumns:
    """Return how the run reads its rows."""
    data = run.data
    may_lack = [column for column in data.numeric if column.if_null is not None]
    return RunColumns(
        strings={column.name: column.column for column in data.strings},
        features=tuple(column.column for column in data.features),
        vocabularies={column: tuple(values) for column, values in run.layout.categories},
        others={each.column: each.other for each in data.categories if each.other is not None},
        fillings={
            each.column: None if isinstance(each.if_null, str) else each.if_null
            for each in may_lack
        },
        indicators={
            indicator_of(each).column: each.column for each in may_lack if each.fill == "indicator"
        },
    )


def _rows_of(run: TrainedRun, table: Any, named: str) -> pl.LazyFrame:
    """Return the rows of one table that break no rule."""
    data = features_only(run, run.data.on_invalid).model_copy(update={"group": run.data.group})
    source, _ = without_excluded(source_of(run, table, named), data, ())
    found = read_features(source, data, run.scaling.reach(), partial(unreadable, run))
    rows = found.frame
    if REASON in found.columns:
        rows = rows.filter(pl.col(REASON).is_null()).drop(REASON)
    for name, strings in found.strings.items():
        prepared = [strings.text[k] for k in strings.id_of_spelling.tolist()]
        column = pl.col(f"string:{name}")
        rows = rows.with_columns(column.replace_strict(list(strings.spellings), prepared))
    known = dict(run.layout.categories)
    return rows.with_columns(
        *(
            pl.when(pl.col(f"category:{name}").is_in(known[name]))
            .then(pl.col(f"category:{name}"))
            .otherwise(pl.lit(other))
            .alias(f"category:{name}")
            for name, other in found.others.items()
        ),
        pl.col("^numeric:.*$").fill_nan(None),
    )


def _check_config(run: TrainedRun) -> None:
    """Raise ConfigError for names that are no columns, or columns that are read twice."""
    try:
        run.design.check_names(run.data)
    except ValueError as error:
        raise ConfigError(f"{run.folder / run.name}_config.yaml: {error}") from None
    data = run.data
    named = [each.column for each in data.strings]
    named += [each.column for each in data.numeric] + [each.column for each in data.categories]
    if found := twice(named):
        raise ConfigError(
            f"{run.folder} reads column '{found[0]}' twice, as two kinds of feature or by two"
            " encoders, so that one value cannot be chosen for it; give the table a copy of it, and"
            " train again"
        )


def _varying(run: TrainedRun, rows: pl.LazyFrame, names: Sequence[str]) -> set[str]:
    """Return the columns that have several values in any group; none where there are no groups."""
    if run.data.group is None:
        return set()
    by_group = rows.group_by("group").agg(_num_values(pl.col(name)) for name in names)
    most = by_group.select(pl.col("^num:.*$").max()).collect(engine="streaming")
    return {name for name in names if (most[f"num:{name}"][0] or 0) > 1}


def _num_values(column: pl.Expr) -> pl.Expr:
    """Return the number of a column's distinct values, a missing one among them."""
    return column.n_unique().name.prefix("num:")


def _choices(
    run: TrainedRun, rows: pl.LazyFrame, varying: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Return the sets of columns of which exactly one is 1; raise ConfigError if a named one is
    none.
    """
    named = run.design.choices
    if named is None:
        names = [name for name in varying if name not in (run.design.variables or ())]
    else:
        names = [name for each in named for name in each]
    if not names:
        return ()
    columns = [pl.col(f"numeric:{name}") for name in names]
    fit = rows.select(((each == 0) | (each == 1)).fill_null(False).all() for each in columns)
    is_binary = fit.collect(engine="streaming").row(0)
    patterns = (
        rows.select(each for each, fits in zip(columns, is_binary, strict=True) if fits)
        .unique()
        .collect(engine="streaming")
    )
    binary = [name for name, fits in zip(names, is_binary, strict=True) if fits]
    ones = patterns.to_numpy().astype(bool).reshape(patterns.height, len(binary))
    if named is None and not binary:
        return ()
    if named is None:
        return tuple(tuple(binary[c] for c in each) for each in one_hot_sets(ones))
    for each in named:
        own = [binary.index(name) for name in each if name in binary]
        if len(own) < len(each) or not (ones[:, own].sum(1) == 1).all():
            raise ConfigError(
                f"{run.folder / run.name}_config.yaml: design.choices names {', '.join(each)}, of"
                " which exactly one is to be 1, and the others 0, in each row of the table: they"
                " are not"
            )
    return named


def _refuse_loose(run: TrainedRun, names: Sequence[str]) -> None:
    """Raise DesignError for columns that vary within a patient, and are not to be chosen."""
    if names:
        raise DesignError(
            f"{', '.join(names):.400} {'varies' if len(names) == 1 else 'vary'} within a"
            f" {run.data.group}, so nobody gives a value, and design of"
            f" {run.folder / run.name}_config.yaml names"
            f" {'it' if len(names) == 1 else 'them'} neither in variables nor in choices; to hold"
            " one at a value x, name it in variables, and set bounds: {column: [x, x]}"
        )
