"""Optimizer steps that never change their shape, so that a GPU can replay one as a CUDA graph.

Taken one by one from Python, a step of Stage 1 is more than a thousand launches, and an H100 waits
for most of them. Here a step asks nothing of the host: every string that trains is encoded in every
step (one that the rows lack gets a zero gradient), rows are read through an index of fixed length,
steps that are a row short are filled with rows of weight 0, and clipping, learning rates, step
count and the refusal of gradients that are not finite stay on the device (`plain`). So one step is
captured, and all others are replays of it. Each is seeded by its number, as every step of this
project is: replays draw new dropout masks, and a resumed run draws the same ones.

The host looks every CHECK_STEPS steps whether a gradient was not finite. From the first such step
on no update changes anything, so the error comes late but names that step, and the weights are
those before it.

Without a graph the same steps can be taken one by one, on any device: the tests do.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from embedcache.errors import ConfigError, NonFiniteLossError, RunError
from embedcache.kernels.seeds import seed_draws, seeds_drawn_at_once
from embedcache.live.features import bare
from embedcache.live.shared import SharedColumn, live_encoders
from embedcache.live.sources import CachedVectors, VectorSource
from embedcache.live.step import LiveEncoder
from embedcache.saving import num_cells_of, presence
from fusionnet.config.train import TrainConfig
from fusionnet.rows.plan import StepPlan
from fusionnet.rows.resident import ResidentRows, RowSource
from fusionnet.rows.tensors import FILLING, RowTable
from fusionnet.train.plain import PlainEngine
from fusionnet.train.protocols import Witness
from fusionnet.train.schedule import Schedule
from fusionnet.train.step import blame, descend, encode_strings, step_seed, trainable
from fusionnet.train.tally import Tally
from fusionnet.train.world import World

CHECK_STEPS = 32  # steps between two looks at the flag, each of which drains the device's queue
LEAST_SHARE = 0.5  # of the tokens that a static step encodes, to be in a step's rows
_SEEDS = 128  # of dropout masks, drawn together; Stage 1's step takes 30
_WARM_UPS = 2  # steps before the capture: kernels are chosen and compiled in the first


def why_not_static(
    train: TrainConfig, world: World, rows: RowSource, sources: Sequence[VectorSource]
) -> str | None:
    """Return what forbids static steps to a run, or None."""
    reason = why_deepspeed(train, world)
    if reason is not None:
        return reason
    if not isinstance(rows, ResidentRows):
        return "rows are streamed (train.rows)"
    known = CachedVectors | LiveEncoder | SharedColumn
    if not all(isinstance(bare(each), known) for each in sources):
        return "this encoding mode looks at the strings of each micro-batch"
    for live, string_id in live_encoders(sources, rows.table.string_id):
        reason = live.why_not_fixed(string_id.unique().cpu())
        if reason is not None:
            return reason
        share = share_of_tokens(string_id, live.lengths, train.batch_rows)
        if share < LEAST_SHARE:
            return (
                f"the rows of a step have {share:.0%} of the tokens of all strings, and a graph"
                " would encode all of them"
            )
    return None


def why_deepspeed(train: TrainConfig, world: World) -> str | None:
    """Return what of a run only DeepSpeed's engine does, or None where torch's own does it too."""
    if world.size > 1:
        return f"{world.size} ranks average gradients through DeepSpeed"
    if train.precision == "fp16":
        return "precision fp16 is DeepSpeed's, whose loss scale asks the host"
    if train.zero_stage not in (None, 0) or train.offload != "none" or train.deepspeed_config:
        return "zero_stage, offload or deepspeed_config ask for DeepSpeed's optimizer"
    return None


def share_of_tokens(
    string_id: Int[Tensor, "N C"], lengths: Int[Tensor, " S"], batch_rows: int
) -> float:
    """Return the share of all rows' strings' tokens that a step of so many rows is to have.

    Cells are drawn as if one by one (see `embedcache.saving.presence`).
    """
    num_rows, num_columns = string_id.shape
    num_cells = num_cells_of(string_id, len(lengths))
    present = presence(num_cells, string_id.numel(), min(batch_rows, num_rows) * num_columns)
    tokens = lengths * (num_cells > 0)
    return float((present * tokens).sum() / tokens.sum())


def why_no_graph(
    train: TrainConfig, world: World, rows: RowSource, sources: Sequence[VectorSource]
) -> str | None:
    """Return why a run's steps are not replayed as a CUDA graph, or None where they are.

    Raises ConfigError where `train.cuda_graph` is on and something forbids it.
    """
    if train.cuda_graph is False:
        return "train.cuda_graph is off"
    reason: str | None = f"there are no CUDA graphs on a {world.device.type.upper()}"
    if world.device.type == "cuda":
        reason = why_not_static(train, world, rows, sources)
    if train.cuda_graph is True and reason is not None:
        raise ConfigError(f"train.cuda_graph is on, but {reason}; set it to auto or off")
    return reason


class StaticSteps:
    """The steps of a run on one device, replayed from a graph where `captured`."""

    def __init__(
        self,
        engine: PlainEngine,
        sources: Sequence[VectorSource],
        table: RowTable,
        plan: StepPlan,
        schedule: Schedule,
        tally: Tally,
        captured: bool,
    ) -> None:
        """`table` are all train rows; that nothing forbids static steps is the caller's to know."""
        self._engine, self._sources, self._table, self._tally = engine, sources, table, tally
        self.witness: Witness | None = None
        self._plan, self._schedule, self._captured = plan, schedule, captured
        device = table.weight.device
        num_rows = max(plan.step_sizes)
        self._index = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._is_row = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._losses = torch.zeros(1 + table.targets.shape[1], device=device)
        self._micro_batches = plan.micro_batches(num_rows, rank=0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.num_replays = 0
        self._last = 0  # number of the last step taken, over the whole run
        self._num_taken = 0
        with trainable(engine).autocast():
            for column, source in enumerate(map(bare, sources)):
                if isinstance(source, LiveEncoder | SharedColumn):
                    source.fix_strings(_strings(table, column))

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Float[Tensor, " losses"]]:
        """Take an epoch's steps from step `first` on, and yield each one's losses."""
        plan = self._plan
        index, is_row = self._indices(epoch)
        for number in range(first, plan.steps_per_epoch):
            self._index.copy_(index[number])
            self._is_row.copy_(is_row[number])
            self._last = epoch * plan.steps_per_epoch + number
            if self.witness is not None and self._last in self.witness.due:
                self.witness.look(self._last, self._table.take(index[number][is_row[number]]))
            self._engine.set_learning_rates(self._schedule.rates(self._last))
            if self._captured and self._graph is None:
                self._graph = self._capture()
            seed_draws(step_seed(plan.seed, self._last, 0), self._engine.world.device)
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
                self.num_replays += 1
            self._num_taken += 1
            if self._num_taken % CHECK_STEPS == 0:
                self.settle()
            yield self._losses
        self.settle()

    def take_once(self, step: int, rows: RowTable) -> None:
        """Take a step of these rows as `of_epoch` does, uncounted and without a graph."""
        seed_draws(step_seed(self._plan.seed, step, 0), self._engine.world.device)
        num_updates = self._engine.num_updates.clone()
        self._read(rows, self._plan.micro_batches(rows.num_rows, rank=0), None)
        self._engine.num_updates.copy_(num_updates)
        if self._engine.overflowed():
            raise NonFiniteLossError(blame(self._engine, self._sources, rows, step))

    def settle(self) -> None:
        """Raise NonFiniteLossError if one of the steps taken met a gradient that is not finite."""
        if not self._engine.overflowed():
            return
        num_skipped = self._num_taken - int(self._engine.num_updates)
        step = self._last - num_skipped + 1
        epoch, number = divmod(step, self._plan.steps_per_epoch)
        rows = self._table.take(next(self._plan.steps(epoch, number)).to(self._index.device))
        raise NonFiniteLossError(blame(self._engine, self._sources, rows, step))

    def _step(self) -> None:
        """Take one step on the rows of the index; nothing in it asks the host."""
        rows = self._table.take(self._index)
        rows = replace(
            rows,
            weight=torch.where(self._is_row, rows.weight, 0.0),
            row=torch.where(self._is_row, rows.row, FILLING),
        )
        self._losses.copy_(self._read(rows, self._micro_batches, self._tally))

    def _read(
        self, rows: RowTable, micro_batches: Sequence[slice], tally: Tally | None
    ) -> Float[Tensor, " losses"]:
        """Read the rows, update, and return the losses; nothing in it asks the host."""
        with (
            trainable(self._engine).cast_weights(),
            seeds_drawn_at_once(_SEEDS, self._index.device),
        ):
            encode_strings(self._engine, self._sources, rows, len(micro_batches))
            return descend(self._engine, self._sources, rows, micro_batches, tally)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Return the graph of one step; no weight changes.

        Raises RunError where a step cannot be captured.
        """
        self._engine.hold_updates(True)
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        # a weight's gradient node that anything keeps alive lies on another stream, where nothing
        # may be captured
        gc.collect()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._step()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=side):
                self._step()
        except RuntimeError as error:
            raise RunError(
                "a training step could not be captured as a CUDA graph; train without it:"
                f" train.cuda_graph=off. {error.__context__ or error}"
            ) from error
        self._engine.hold_updates(False)
        self._tally.begin()  # only an epoch's first step is captured
        return graph

    def _indices(self, epoch: int) -> tuple[Int[Tensor, "steps R"], Bool[Tensor, "steps R"]]:
        """Return the rows of each step of an epoch, filled to one length, and which are rows."""
        width, device = len(self._index), self._index.device
        steps = list(self._plan.steps(epoch))
        index = torch.zeros(len(steps), width, dtype=torch.int64)
        is_row = torch.zeros(len(steps), width, dtype=torch.bool)
        for number, positions in enumerate(steps):
            index[number, : len(positions)] = positions
            is_row[number, : len(positions)] = True
        return index.to(device), is_row.to(device)


def _strings(table: RowTable, column: int) -> Int[Tensor, " U"]:
    """Return the distinct strings of the rows, on the CPU."""
    return table.string_id[:, column].unique().cpu()
