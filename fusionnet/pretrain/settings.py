"""What decides a pre-training: the same settings, corpus and encoder give the same weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.config.encoder import EncoderSize
from embedcache.schema import Config
from embedcache.values import Count, Seed, Share
from fusionnet.config.train import OptimConfig, Rate
from fusionnet.pretrain.objectives import Objective

LEARNING_RATE = 1e-3
_TICKS = 10_000  # parts of a training's length in which rates change


class Settings(Config):
    """Objective, length, batches and rates."""

    objective: Objective = Field(default="both", description="masked tokens, ranks, or both")
    size: EncoderSize | None = Field(default=None, description="of fresh weights")
    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="time of training; the rate ends when it is over"
    )
    epochs: Count | None = Field(default=None, description="passes over the corpus")
    seed: Seed = Field(default=0, description="of weights, order, masks and what is held out")
    lr: Rate = Field(default=LEARNING_RATE, description="peak learning rate")
    batch_tokens: Count = Field(default=1024, description="tokens of an optimizer step, about")
    warmup: Share = Field(default=0.05, description="share of the training in which the rate rises")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of products")

    @model_validator(mode="after")
    def _has_one_length(self) -> "Settings":
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError("give either minutes or epochs")
        return self

    @property
    def optim(self) -> OptimConfig:
        """AdamW's settings; a second moment of 0.98 as RoBERTa has (Liu et al. 2019)."""
        return OptimConfig(
            lr=self.lr,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            warmup_steps=round(self.warmup * _TICKS),
            total_steps=_TICKS,
        )

    def tick(self, progress: float) -> int:
        """Return the step of the schedule at a share of the training's length, from 0 to 1."""
        return min(_TICKS - 1, int(_TICKS * progress))
