"""The configuration of phase 2: tasks, model, loss, optimisation, run and reward.

`embedcache.config` holds phase 1 and the base that refuses unknown keys; `fusionnet.experiment`
composes both.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedcache.config import TargetColumn
from embedcache.schema import Config
from embedcache.values import (
    Amount,
    Count,
    FilePath,
    FolderToWrite,
    Layers,
    Seed,
    Share,
    Spread,
    Weight,
    Width,
)

LossName = Literal["smooth_l1", "mse", "bce", "focal"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
_LOSSES_OF: dict[str, tuple[LossName, ...]] = {
    "regression": ("smooth_l1", "mse"),
    "binary": ("focal", "bce"),
}
REGRESSION_METRICS = ("mae", "rmse", "r2")
BINARY_METRICS = ("accuracy", "auroc", "f1", "recall", "precision")
METRICS = {"regression": REGRESSION_METRICS, "binary": BINARY_METRICS}
Rate = Annotated[float, Field(ge=1e-12, le=10)]  # of learning
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average


class Task(TargetColumn):
    """One target column, its loss and its head."""

    loss: LossName | None = Field(
        default=None, description="unset: smooth_l1 for regression, focal for binary"
    )
    weight: Weight = Field(
        default=1.0,
        description=(
            "factor on the whole of the task's term (the specification's 0.3 for auxiliary tasks)"
        ),
    )
    head: tuple[Width, ...] = Field(
        default=(128,), min_length=1, max_length=32, description="hidden widths"
    )
    head_dropout: Share = Field(default=0.1, description="after the head's first hidden layer")
    beta: Spread = Field(
        default=1.0,
        description="smooth_l1: where the quadratic part ends, in the target's unit",
    )
    gamma: float = Field(default=2.0, ge=0, le=100, description="focal: exponent of 1 - p_t")
    pos_weight: Annotated[float, Field(ge=1e-6, le=1e6)] | Literal["auto"] = Field(
        default="auto",
        description="class weight of positives; auto: negatives / positives of the train rows",
    )
    reduction: Literal["row", "batch"] = Field(
        default="row",
        description="focal: per row (Lin et al. 2017), or from the micro-batch's mean as specified",
    )
    goals: dict[str, float] = Field(
        default_factory=dict,
        description="metric: value to reach, shown as pass or fail by evaluate_model",
    )

    @model_validator(mode="after")
    def _loss_fits_the_kind(self) -> "Task":
        if self.loss is not None and self.loss not in _LOSSES_OF[self.kind]:
            raise ValueError(
                f"task '{self.name}' is {self.kind}, which takes the losses"
                f" {' or '.join(_LOSSES_OF[self.kind])}, not {self.loss}"
            )
        return self

    @model_validator(mode="after")
    def _goals_are_metrics(self) -> "Task":
        known = METRICS[self.kind]
        unknown = [metric for metric in self.goals if metric not in known]
        if unknown:
            raise ValueError(
                f"goals of task '{self.name}' names {', '.join(f'{name:.80}' for name in unknown)};"
                f" the metrics of a {self.kind} task are {', '.join(known)}"
            )
        return self

    @property
    def loss_name(self) -> LossName:
        """The loss, with the default of the task's kind filled in."""
        return self.loss or _LOSSES_OF[self.kind][0]


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


class LossConfig(Config):
    """How the tasks' losses are weighed against each other."""

    uncertainty: Literal["specification", "kendall", "none"] = Field(
        default="specification",
        description=(
            "specification: exp(-s) L + s; kendall: the same with 1/2 where Kendall et al. (2018)"
            " has it; none: L"
        ),
    )


class OptimConfig(Config):
    """AdamW, one learning rate per parameter group, warm-up and cosine."""

    lr: Rate = Field(
        default=1e-3, description="peak rate of the fresh weights (adapter, fusion, heads)"
    )
    lr_encoder: Rate = Field(
        default=2e-5, description="peak rate of the LoRA weights, as specified"
    )
    lr_log_variance: Rate = Field(default=1e-2, description="peak rate of the loss's log-variances")
    weight_decay: float = Field(default=0.01, ge=0, le=100, description="AdamW's, decoupled")
    betas: tuple[Decay, Decay] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the first and second moment"
    )
    eps: float = Field(
        default=1e-8, ge=1e-16, le=1, description="AdamW's, added to the denominator"
    )
    clip: float = Field(default=1.0, ge=1e-8, le=1e12, description="global gradient norm")
    warmup_epochs: float = Field(
        default=2.0, ge=0, le=1e6, description="epochs in which rates rise linearly to their peak"
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, description="optimizer steps; wins over warmup_epochs"
    )
    total_steps: Count | None = Field(
        default=None, description="optimizer steps of the cosine; unset: all steps of the run"
    )
    final_lr_fraction: float = Field(
        default=0.0, ge=0, le=1, description="share of the peak rate where the cosine ends"
    )


class TrainConfig(Config):
    """Epochs, batches, precision, processes, and where the rows are kept."""

    epochs: int = Field(default=15, ge=1, le=1_000_000, description="passes over the train rows")
    batch_rows: Count = Field(
        default=8192, description="rows per optimizer step, all ranks together"
    )
    micro_batch_rows: Count | None = Field(
        default=None, description="rows per forward pass and rank; unset: chosen by device"
    )
    eval_batch_rows: Count | None = Field(
        default=None,
        description=(
            "rows per forward pass in validation and evaluation; unset: 8,192 on a CPU, 65,536 on a"
            " GPU"
        ),
    )
    rows: Literal["auto", "resident", "streaming"] = Field(
        default="auto", description="auto: resident if the whole table fits into rows_memory_mib"
    )
    rows_memory_mib: Count = Field(default=4096, description="memory for rows, per rank")
    checkpoint_steps: Count | None = Field(
        default=None,
        description=(
            "optimizer steps between checkpoints inside an epoch; unset: one after each epoch"
        ),
    )
    compile: bool | Literal["auto"] = Field(
        default="auto",
        description=(
            "torch.compile of the network; auto: on GPUs for runs of 20,000 steps or more (shorter"
            " ones do not win back the compiling; slower on the CPUs measured)"
        ),
    )
    cuda_graph: bool | Literal["auto"] = Field(
        default="auto",
        description=(
            "replay each optimizer step from one captured CUDA graph, without DeepSpeed's"
            " optimizer; auto: where a GPU is alone and nothing forbids it; on: or refuse to train"
        ),
    )
    precision: PrecisionName = Field(
        default="fp32",
        description=(
            "auto: bf16 where every rank's device has instructions for it, else fp32 (CPUs without"
            " them emulate bf16 and are slower)"
        ),
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        default=None,
        description=(
            "0: gradients are averaged, nothing is partitioned; 1: Adam's moments are; 2: gradients"
            " too. Unset: 2, but 0 where a rank is alone"
        ),
    )
    offload: Literal["none", "cpu"] = Field(
        default="none", description="cpu: Adam's moments and the update on the host"
    )
    deepspeed_config: FilePath | None = Field(
        default=None,
        description="a DeepSpeed JSON file laid over the derived config; it may not contradict it",
    )
    prove: int = Field(
        default=1,
        ge=0,
        description=(
            "random optimizer steps whose gradients are recomputed row by row and compared with"
            " those used; a difference ends the training (not in fp16)"
        ),
    )
    seed: Seed = Field(
        default=0, description="of initial weights, order of rows, dropout and noise"
    )
    cpu_threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="threads per rank on a CPU; unset: cores / ranks"
    )

    @model_validator(mode="after")
    def _deepspeed_can_do_it(self) -> "TrainConfig":
        if self.zero_stage == 3:
            raise ValueError(
                "zero_stage 3 is not supported: it partitions the weights, so every forward pass"
                " becomes collective, while here ranks validate different numbers of rows and rank"
                " 0 alone writes vectors; and DeepSpeed 0.19 adds the last step's gradient to"
                " weights that get none in a step's first micro-batch, as LoRA's in mode per_step"
                " (measured: half of their motion is wrong). The weights of a whole Stage 1 are 150"
                " MB: use zero_stage 2"
            )
        if self.zero_stage == 0 and self.precision == "fp16":
            raise ValueError(
                "precision fp16 needs zero_stage 1 or 2: without ZeRO, DeepSpeed keeps its fp32"
                " weights where no checkpoint of ours can read them"
            )
        if self.zero_stage == 0 and self.offload == "cpu":
            raise ValueError(
                "offload cpu needs zero_stage 1 or 2, which give each rank its own part of Adam's"
                " moments to keep on the host"
            )
        return self

    def zero_stage_of(self, num_ranks: int) -> int:
        """Return the stage that so many ranks use.

        A single one has nothing to partition, and ZeRO would copy every micro-batch's gradients
        twice.
        """
        if self.zero_stage is not None:
            return self.zero_stage
        return 0 if num_ranks == 1 and self.precision != "fp16" and self.offload == "none" else 2


class RunConfig(Config):
    """Where a run is written."""

    dir: FolderToWrite = Field(default="runs/run", description="the run folder")
    name: str = Field(
        default="model",
        pattern=r"^[A-Za-z0-9_-]+$",
        max_length=64,
        description="first part of the checkpoints' names",
    )
    note: str = Field(
        default="",
        description=(
            "what a reader of the results must know, such as that the table is synthetic; heads"
            " every report"
        ),
    )


class RewardTerm(Config):
    """`weight` times a task's prediction (raw units; probability for a binary task)."""

    task: str = Field(description="name of the task")
    weight: Amount = Field(description="factor on its prediction")


class RewardPenalty(Config):
    """`penalty` is subtracted where a task's prediction is above or below a threshold."""

    task: str = Field(description="name of the task")
    above: Amount | None = Field(default=None, description="threshold; or give `below`")
    below: Amount | None = Field(default=None, description="threshold; or give `above`")
    penalty: float = Field(ge=0, le=1e30, description="subtracted beyond the threshold")
    width: Spread | None = Field(
        default=None,
        description=(
            "of the sigmoid that stands for the threshold where gradients are wanted; unset: none"
        ),
    )

    @model_validator(mode="after")
    def _one_side(self) -> "RewardPenalty":
        if (self.above is None) == (self.below is None):
            raise ValueError(f"a penalty on '{self.task}' needs either 'above' or 'below'")
        return self


class RewardConfig(Config):
    """What a later reinforcement-learning stage maximises (specification, section 10)."""

    terms: tuple[RewardTerm, ...] = Field(
        default=(), description="weighted predictions, summed over the list"
    )
    penalties: tuple[RewardPenalty, ...] = Field(
        default=(), description="subtracted where a prediction crosses a threshold"
    )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the reward reads, term by term."""
        return (*(term.task for term in self.terms), *(each.task for each in self.penalties))


def merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` laid over it, mapping by mapping."""
    result = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result
