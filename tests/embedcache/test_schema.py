"""What configs have in common beside their models."""

from embedcache.schema import merged


def test_a_mapping_is_laid_over_another_key_by_key() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}
    over = {"a": {"c": 3}, "d": [2, 3], "e": 4, "g": {"h": 5}}
    assert merged(base, over) == {
        "a": {"b": 1, "c": 3},
        "d": [2, 3],
        "e": 4,
        "g": {"h": 5},
    }
    assert base == {"a": {"b": 1, "c": 2}, "d": [1], "e": {"f": 1}}
