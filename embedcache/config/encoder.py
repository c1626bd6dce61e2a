"""Which encoder reads the strings, and what of it is trained."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from embedcache.schema import Config, also_called
from embedcache.values import FilePath, Layers, Share

EncodingMode = Literal["naive", "per_microbatch", "per_step", "prefix", "frozen", "none"]
Sharding = Literal["replicate", "shard"]  # all strings on every rank, or each rank its share
# of a stand-in: the published architecture; one that an hour can pre-train; for tests
EncoderSize = Literal["polybert", "small", "tiny"]
WheelName = Literal["rxnmapper", "rxnfp"]  # packages that hold an encoder
ENCODER_SIZES: tuple[EncoderSize, ...] = get_args(EncoderSize)
WHEEL_NAMES: tuple[WheelName, ...] = get_args(WheelName)
ENCODING_MODES: tuple[EncodingMode, ...] = get_args(EncodingMode)


class LoraConfig(Config):
    """Low-rank adapters on the attention projections (Hu et al. 2021), through PEFT."""

    r: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="rank of each adapter",
        json_schema_extra=also_called("rank"),
    )
    alpha: float = Field(
        default=32.0, ge=1e-6, le=1e6, description="an adapter's output is scaled by alpha / r"
    )
    dropout: Share = Field(
        default=0.1, description="share of an adapter's inputs dropped in training"
    )
    target_modules: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "names of the linear layers that get an adapter; unset: the projections of the"
            " architecture's attention to queries, keys and values"
        ),
    )
    use_dora: bool = Field(
        default=False,
        description=(
            "weight-decomposed adapters (Liu et al. 2024): a magnitude per output beside the"
            " low-rank direction"
        ),
    )
    use_rslora: bool = Field(
        default=False,
        description="scale by alpha / sqrt(r) (Kalajdzievski 2023) instead of alpha / r",
    )
    first_layer: Layers = Field(
        default=0,
        description=(
            "adapt this layer and those above it; with encoder.mode prefix, what enters it is"
            " cached"
        ),
    )


class EncoderConfig(Config):
    """Which encoder reads the strings, how they become vectors, and how often it runs."""

    source: FilePath = Field(
        default="kuelumbus/polyBERT",
        description="a Hugging Face hub id or a local model folder",
        json_schema_extra=also_called("model", "model_name", "path"),
    )
    revision: str | None = Field(default=None, description="pinned revision of a hub id")
    tokenizer: Literal["polybert", "any"] = Field(
        default="polybert",
        description="polybert: refuse a tokenizer that does not give the published ids",
    )
    pooling: Literal["mean", "cls"] = Field(
        default="mean",
        description="a string's vector: the mean over its tokens, or that of its first token",
    )
    mode: EncodingMode = Field(
        default="per_step",
        description=(
            "how often training encodes: naive: each row; per_microbatch and per_step: each"
            " distinct string of a micro-batch or of an optimizer step; prefix: as per_step, from"
            " cached hidden states; frozen: never, by cached vectors; none: there is no language"
            " model, and every string column has `features`"
        ),
    )
    encode_sharding: Sharding = Field(
        default="replicate",
        description=(
            "per_step and prefix on several ranks: every rank encodes all strings of a step, or"
            " each its share"
        ),
    )
    memory_budget_gib: float | None = Field(
        default=None,
        ge=1e-9,
        le=1e6,
        description=(
            "activations of a step's strings; more are encoded twice. Unset: 4 on a CPU, half of a"
            " GPU's free memory"
        ),
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="what of the encoder is trained")

    @model_validator(mode="after")
    def _prefix_has_layers(self) -> "EncoderConfig":
        if self.mode == "prefix" and self.lora.first_layer == 0:
            raise ValueError(
                "mode prefix caches what enters the first adapted layer: set"
                " encoder.lora.first_layer to 1 or more, or use mode per_step"
            )
        return self

    @property
    def reads(self) -> bool:
        """Whether there is an encoder at all."""
        return self.mode != "none"

    @property
    def prefix_layer(self) -> int | None:
        """The layer whose incoming hidden states are cached, None where none are."""
        return self.lora.first_layer if self.mode == "prefix" else None

    @property
    def memory_budget_bytes(self) -> int | None:
        """The memory budget in bytes, None where it is left to the machine."""
        return None if self.memory_budget_gib is None else int(self.memory_budget_gib * 2**30)
