"""Every key that a user can set says what it means."""

import pytest

from embedcache.config.cache import CacheConfig
from embedcache.schema import Config
from fusionnet.config.tasks import Task

HOMES = ("embedcache.config.", "fusionnet.config.")


def below(model: type[Config]) -> set[type[Config]]:
    """Return all models that are derived from one."""
    return {each for child in model.__subclasses__() for each in (child, *below(child))}


MODELS = sorted(
    (model for model in below(Config) if model.__module__.startswith(HOMES)),
    key=lambda model: model.__name__,
)


def test_there_is_something_to_check() -> None:
    assert {CacheConfig, Task} <= set(MODELS)


def is_described(model: type[Config], name: str) -> bool:
    """Return whether a key says what it means, where it is first defined."""
    homes = [each for each in model.__mro__ if name in getattr(each, "model_fields", {})]
    return bool(homes[-1].model_fields[name].description)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_description(model: type[Config]) -> None:
    assert model.model_fields
    silent = [name for name in model.model_fields if not is_described(model, name)]
    assert not silent
