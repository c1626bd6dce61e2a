"""Whether gradient boosting is blended with the network, and how large its trees may grow."""

from typing import Annotated

from pydantic import Field

from embedcache.schema import Config
from embedcache.values import Count

Leaves = Annotated[int, Field(ge=2, le=4096)]


class BlendConfig(Config):
    """Gradient boosting on the same features, blended with the network after it is trained.

    Trees learn from train rows alone. How much each of the two counts is chosen on validation rows,
    target by target, so that a blend is worse than the better of the two by chance alone.
    """

    boosting: bool = Field(
        default=False,
        description=(
            "fit boosted trees to the train rows after the training, and predict with both; the"
            " weights, 0 or more with sum 1, are those of the least error on validation rows"
        ),
    )
    parts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=5,
        description=(
            "boosted models per target and kind of trees, each on all parts of the train rows but"
            " one, which says when trees no longer help; groups (and left-out strings) stay"
            " together. What predicts is a model on all of them, with as many trees. Two kinds are"
            " grown, with the best thresholds and with random ones, and where strings are left out"
            " others that read of those strings one set of features alone, or none; kinds are"
            " weighed by what they predict of parts left out. 1: one model on all train rows, and"
            " validation rows say when to stop"
        ),
    )
    most_trees: Count = Field(default=3000, description="of one model, for each class")
    shrinkage: Annotated[float, Field(ge=1e-6, le=1)] = Field(
        default=0.05, description="share of each tree that is added"
    )
    leaves: Annotated[tuple[Leaves, ...], Field(min_length=1)] = Field(
        default=(31, 127),
        description=(
            "most leaves of a tree. Of several sizes the one of the least error on the first part"
            " is taken, for each kind of trees (of one model: on validation rows)"
        ),
    )
    least_rows: Count = Field(default=10, description="rows that a leaf has at least")
