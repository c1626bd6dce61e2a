"""Form and widths of the fusion network."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.schema import Config
from embedcache.values import Layers, Share, Width


class ModelConfig(Config):
    """Form and widths of the fusion network (specification, section 4)."""

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
    adapter_hidden: Width = Field(
        default=384, description="hidden width of the adapter of a string's vector"
    )
    adapter_width: Width = Field(
        default=256, description="width of what the adapter makes of a string's vector"
    )
    numeric_hidden: Width = Field(
        default=64, description="hidden width of the encoder of numeric features"
    )
    numeric_width: Width = Field(
        default=128, description="width of what it makes of the numeric features"
    )
    category_width: Width = Field(
        default=16, description="width of the embedding of each category column"
    )
    fusion_width: Width = Field(
        default=512, description="width of the tokens that are fused, and of the fused state"
    )
    num_layers: Layers = Field(default=4, description="layers of the fusion")
    num_heads: Width = Field(default=8, description="attention heads; they divide fusion_width")
    feedforward: Width = Field(default=2048, description="hidden width inside each layer")
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
    def _sizes_fit(self) -> "ModelConfig":
        if self.fusion_width % self.num_heads:
            raise ValueError(
                f"num_heads must divide fusion_width, found {self.num_heads} and"
                f" {self.fusion_width}"
            )
        if self.fusion == "modality" and self.num_layers == 0:
            raise ValueError(
                "fusion 'modality' needs num_layers of at least 1: without attention [CLS] knows"
                " nothing of its row"
            )
        return self
