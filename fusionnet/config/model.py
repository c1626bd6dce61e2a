"""Form and widths of the fusion network."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Layers, Share, Width


class NumericEmbedding(Config):
    """What ple and periodic make of each numeric feature."""

    width: Width = Field(default=16, description="numbers that each feature becomes")
    bins: Annotated[int, Field(ge=1, le=256)] = Field(
        default=48,
        description=(
            "ple: bins of a feature, each with the same share of the train rows; fewer where it has"
            " few values"
        ),
    )
    frequencies: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=32, description="periodic: frequencies of a feature, each a sine and a cosine"
    )
    sigma: Annotated[float, Field(ge=1e-6, le=1e3)] = Field(
        default=0.1,
        description=(
            "periodic: spread of the frequencies at first, in periods per spread of a feature; the"
            " key to tune: larger ones learn finer wiggles"
        ),
    )
    lite: bool = Field(
        default=True, description="periodic: one matrix for all features, off: one for each"
    )


class ModelSection(Config):
    """Form and widths of the fusion network (specification, section 4); what is unset fits the
    train rows, in the specification's proportions.
    """

    fusion: Literal["joint", "modality", "mlp"] = Field(
        default="joint",
        description=(
            "joint: a transformer over one token of all parts, as specified; modality: over [CLS]"
            " and a token per string column, group of numeric features"
            " (data.numeric.feature_group) and category column; mlp: a residual MLP with as many"
            " parameters as joint"
        ),
    )
    standardize_vectors: bool = Field(
        default=True,
        description=(
            "string vectors enter standardised by the mean and spread of the train strings' cached"
            " vectors; off: as they are"
        ),
    )
    adapter_hidden: Width | None = Field(
        default=None,
        description="hidden width of the adapter of a string's vector; unset: 3/4 of fusion_width",
    )
    adapter_width: Width | None = Field(
        default=None,
        description=(
            "width of what the adapter makes of a string's vector; unset: half of fusion_width"
        ),
    )
    numeric: Literal["linear", "ple", "periodic"] = Field(
        default="linear",
        description=(
            "how numeric features enter: linear: as they are, standardised; ple: each by a function"
            " that is linear between quantiles of the train rows, which learns jumps; beyond the"
            " train rows it is linear; periodic: by sines and cosines of learnt frequencies"
            " (Gorishniy et al. 2022)"
        ),
    )
    numeric_embedding: NumericEmbedding = Field(
        default=NumericEmbedding(),
        description="what ple and periodic make of each numeric feature",
    )
    numeric_hidden: Width | None = Field(
        default=None,
        description=(
            "hidden width of the encoder of numeric features; unset: an eighth of fusion_width, at"
            " least 32"
        ),
    )
    numeric_width: Width | None = Field(
        default=None,
        description=(
            "width of what it makes of the numeric features; unset: a quarter of fusion_width, at"
            " least 32"
        ),
    )
    category_width: Width = Field(
        default=16, description="width of the embedding of each category column"
    )
    fusion_width: Width | None = Field(
        default=None,
        description=(
            "width of the tokens that are fused, and of the fused state; unset: 128, 256 from"
            " 5,000 train rows on, 512 from 200,000"
        ),
    )
    num_layers: Layers | None = Field(
        default=None, description="layers of the fusion; unset: 2, 4 from 200,000 train rows on"
    )
    members: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description=(
            "networks of an ensemble that share encoder, adapters and all large matrices (TabM,"
            " Gorishniy et al. 2025): each has signs, dropout masks and heads of its own and is"
            " trained by its own loss; predictions are means"
        ),
    )
    member_layers: Layers | None = Field(
        default=None,
        description=(
            "layers of the fusion, the last ones, that each member computes for itself; what is"
            " before them is computed once for all. Unset: half of num_layers, rounded up"
        ),
    )
    num_heads: Width | None = Field(
        default=None, description="attention heads; they divide fusion_width; unset: 8, or fewer"
    )
    feedforward: Width | None = Field(
        default=None, description="hidden width inside each layer; unset: 4 times fusion_width"
    )
    dropout: Share = Field(
        default=0.1, description="share of activations dropped, outside of the heads"
    )
    linear_skip: bool = Field(
        default=False,
        description=(
            "a linear function of the numeric features is added to each task's output (wide and"
            " deep, Cheng et al. 2016): beyond the features that it was trained on the network"
            " levels off, a linear function goes on; for groups such as patients, of which new ones"
            " lie outside of the known"
        ),
    )
    feature_noise: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict,
        description=(
            "by data.numeric.feature_group: standard deviation of Gaussian noise that training adds"
            " to the standardised features of each row (Bishop 1995: it smooths the model along"
            " them); for features of which there are few distinct values, as a patient's"
        ),
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelSection":
        width, heads = self.fusion_width, self.num_heads
        if width is not None and heads is not None and width % heads:
            raise ValueError(f"num_heads must divide fusion_width, found {heads} and {width}")
        own, layers = self.member_layers, self.num_layers
        if self.members > 1 and own is not None and layers is not None and own > layers:
            raise ValueError(
                f"member_layers are some of num_layers, found {own} of {layers}; lower it"
            )
        if self.fusion == "modality" and self.num_layers == 0:
            raise ValueError(
                "fusion 'modality' needs num_layers of at least 1: without attention [CLS] knows"
                " nothing of its row"
            )
        return self


class ModelConfig(ModelSection):
    """A network whose widths are all known; by default those of the specification."""

    adapter_hidden: Width = 384
    adapter_width: Width = 256
    numeric_hidden: Width = 64
    numeric_width: Width = 128
    fusion_width: Width = 512
    num_layers: Layers = 4
    num_heads: Width = 8
    feedforward: Width = 2048

    @property
    def num_own_layers(self) -> int:
        """How many of the last layers each member computes for itself."""
        half = -(-self.num_layers // 2)
        return half if self.member_layers is None else self.member_layers
