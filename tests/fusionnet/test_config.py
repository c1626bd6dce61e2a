"""Every key that a user can set says what it means."""

import pytest

from embedcache import config as phase_1
from fusionnet import config as phase_2

MODELS = [
    model
    for module in (phase_1, phase_2)
    for model in vars(module).values()
    if isinstance(model, type)
    and issubclass(model, phase_1.Config)
    and model.__module__ == module.__name__
    and model.model_fields
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_description(model: type[phase_1.Config]) -> None:
    silent = [name for name, field in model.model_fields.items() if not field.description]
    assert not silent


def test_a_mapping_is_laid_over_another_key_by_key() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}
    over = {"a": {"c": 3}, "d": [2, 3], "e": 4, "g": {"h": 5}}
    assert phase_2.merged(base, over) == {
        "a": {"b": 1, "c": 3},
        "d": [2, 3],
        "e": 4,
        "g": {"h": 5},
    }
    assert base == {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}
