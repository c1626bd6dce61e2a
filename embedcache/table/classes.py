"""The classes that the labels of one file name, in the order of their codes."""

from collections.abc import Mapping, Set

import polars as pl

from embedcache.config.targets import MOST_CLASSES, TargetColumn
from embedcache.table.counting import count_values
from embedcache.table.repeatunit import NUMBER
from embedcache.table.vocabulary import Vocabularies, followed_by


def with_classes(
    target: TargetColumn,
    frame: pl.LazyFrame,
    columns: Set[str],
    before: Vocabularies,
    violations: list[str],
) -> TargetColumn:
    """Return a target with the names of its classes; what is wrong with them joins the violations.

    Those of the files before come first: a code stands for one class. `frame` has the canonical
    `columns`. A target without codes is returned as it is.
    """
    name, known = f"target:{target.name}", before.classes.get(target.name, ())
    if not target.has_codes or (name not in columns and not known):
        return target
    found = count_values(frame, name).rows_by_value if name in columns else {}
    what = f"target column '{target.column}'"
    if target.classes is not None:
        classes = target.classes
    elif target.kind == "ordinal":
        classes = _in_order(what, known, found, violations)
    else:
        classes = followed_by(known, found)
    if found and len(known) < 2 and len(found) < 2:
        violations.append(f"{what}: all labels belong to one class, {next(iter(found))!r}")
    if len(classes) > MOST_CLASSES:
        violations.append(
            f"{what}: {len(classes):,} classes, at most {MOST_CLASSES:,} can be told apart; is it a"
            " number, of kind: regression, or a name that is no label?"
        )
    return target.model_copy(update={"classes": classes or None})


def _in_order(
    what: str, known: tuple[str, ...], found: Mapping[str, int], violations: list[str]
) -> tuple[str, ...]:
    """Return the classes of an ordinal target in the order of their numbers."""
    words = [value for value in found if not NUMBER.fullmatch(value)]
    if words:
        violations.append(
            f"{what}: ordinal, but {words[0]!r:.80} is no number: name all classes in their order"
            " in the task's `classes`"
        )
        return known
    classes = sorted({*known, *found}, key=float)
    if known and classes[: len(known)] != list(known):
        violations.append(
            f"{what}: a class comes before others that have their codes from the files before; name"
            " all classes in their order in the task's `classes`, and build with --overwrite"
        )
    return tuple(classes)
