"""How it is trained, and where the run is written."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from embedcache.schema import Config, also_called
from embedcache.values import Count, FilePath, FolderToWrite, Seed
from fusionnet.config.tasks import Task

TrackerName = Literal["tensorboard", "csv", "wandb", "mlflow"]
# of the log: the weighted loss of all tasks, and the mean of the logarithms of theirs
VAL_LOSS, VAL_ERROR = "val_loss", "val_error"
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
Rate = Annotated[float, Field(ge=1e-12, le=10)]  # of learning
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average


def monitor_names(tasks: Iterable[Task]) -> list[str]:
    """Return what `train.monitor` may be where these tasks are trained."""
    return [
        VAL_LOSS,
        VAL_ERROR,
        *(f"{task.name}_{metric}" for task in tasks for metric in task.metrics),
    ]


class OptimConfig(Config):
    """AdamW, one learning rate per parameter group, warm-up and cosine."""

    lr: Rate = Field(
        default=1e-3,
        description="peak rate of the fresh weights (adapter, fusion, heads)",
        json_schema_extra=also_called("learning_rate"),
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


class EarlyStopping(Config):
    """When a training ends before its last epoch."""

    patience: Count | None = Field(
        default=None,
        description=(
            "the training ends after so many epochs without a better value of train.monitor; as"
            " many as train.epochs: never; unset: a third of the epochs, 10 or more"
        ),
    )
    min_delta: float = Field(
        default=0.0,
        ge=0,
        le=1e12,
        description="what a value must be better by to count as better, in the metric's own unit",
    )


class TrainSection(Config):
    """Epochs, batches, precision, processes, and where the rows are kept."""

    epochs: Epochs | None = Field(
        default=None,
        description=(
            "passes over the train rows; unset: as many as give some 1,000 optimizer steps, from 15"
            " to 60"
        ),
        json_schema_extra=also_called("num_epochs", "max_epochs", "n_epochs"),
    )
    batch_rows: Count | None = Field(
        default=None,
        description=(
            "rows per optimizer step, all ranks together; unset: a power of two from 16 to 8,192"
            " that gives some 32 steps per epoch"
        ),
        json_schema_extra=also_called("batch_size"),
    )
    monitor: str = Field(
        default=VAL_LOSS,
        description=(
            "what decides which epoch is the best, and when there is no better one: val_loss;"
            " val_error, the mean over tasks of the logarithm of their losses on validation rows,"
            " which does not rise because the learned weights of the loss trust the train rows more"
            " and more; or a metric of a task on validation rows, named as in the log:"
            " <task>_<metric>, such as tg_r2; whether more or less is better follows from it"
        ),
    )
    early_stopping: EarlyStopping = Field(
        default=EarlyStopping(), description="when the training ends before its last epoch"
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
    baselines: bool = Field(
        default=True,
        description=(
            "when all is trained, show what means and boosting reach on the validation rows, where"
            " the table has up to 1,000,000 rows"
        ),
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=("tensorboard",),
        description=(
            "where the epochs' numbers go beside training_log.json, all of them in the run folder:"
            " csv: training_log.csv; wandb and mlflow (extras of these names) offline, unless"
            " WANDB_MODE or MLFLOW_TRACKING_URI says otherwise"
        ),
    )
    seed: Seed = Field(
        default=0, description="of initial weights, order of rows, dropout and noise"
    )
    cpu_threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="threads per rank on a CPU; unset: cores / ranks"
    )

    @model_validator(mode="after")
    def _deepspeed_can_do_it(self) -> "TrainSection":
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


class TrainConfig(TrainSection):
    """A training of which epochs and batches are known; by default those of the specification."""

    epochs: Epochs = 15
    batch_rows: Count = 8192

    @property
    def patience(self) -> int:
        """How many epochs may pass without a better one; all of them where it is unset."""
        return self.early_stopping.patience or self.epochs


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
