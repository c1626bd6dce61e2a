"""Configuration: every key says what it means."""

import pytest

from embedcache import config
from embedcache.schema import Config

CLASSES = [found for found in vars(config).values() if isinstance(found, type)]
MODELS = [found for found in CLASSES if issubclass(found, Config) and found is not Config]


@pytest.mark.parametrize("model", MODELS)
def test_every_key_is_described(model: type[Config]) -> None:
    fields = model.model_fields.items()
    assert fields
    assert not [name for name, field in fields if not field.description]
