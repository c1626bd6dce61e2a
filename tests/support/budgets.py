"""How many examples a property is tried on: the profile's number, divided by what one costs.

`pytest --hypothesis-profile=thorough` tries ten times as many.
"""

from typing import Any

from hypothesis import settings

settings.register_profile("ci", max_examples=100, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("ci")


def examples(cost: int, **others: Any) -> settings:
    """Return settings with a share of the profile's examples; 1 costs milliseconds, 25 seconds."""
    return settings(max_examples=max(1, settings.default.max_examples // cost), **others)
