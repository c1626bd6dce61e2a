"""What training asks of an engine and of the steps of an epoch, whichever they are.

An engine runs one model's backward passes and updates: DeepSpeed's (`engine`), for any ranks, or
torch's own (`plain`), for one. `Steps` take the optimizer steps of an epoch: one by one from Python
(`step`), or as replays of a captured graph (`static`).
"""

from collections.abc import Collection, Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from fusionnet.rows.tensors import RowTable
from fusionnet.train.world import World


@runtime_checkable
class StepEngine(Protocol):
    """A model that is being trained: forward, backward, update, and its state by name."""

    world: World
    model: nn.Module

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the model's forward."""

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro-batch's share of the step's loss; shares add up."""

    def step(self) -> None:
        """Count one micro-batch; after the last one of a step, clip and update."""

    def overflowed(self) -> bool:
        """Return whether the last update was skipped because a gradient was not finite."""

    @property
    def tolerates_overflow(self) -> bool:
        """Whether a step that overflows is no error."""

    def gradient_norm(self) -> float:
        """Return the global gradient norm of the last update, before clipping."""

    def set_learning_rates(self, rates: dict[str, float]) -> None:
        """Set the learning rate of each parameter group, by group name."""

    def state(self) -> dict[str, Any]:
        """Return fp32 parameters, Adam moments and step by parameter name (collective)."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of any engine (collective)."""


class Witness(Protocol):
    """Who looks at some steps of a run before they are taken."""

    due: Collection[int]  # the steps, counted over the whole run from 0

    def look(self, step: int, rows: RowTable) -> None:
        """See a due step's rows, those of all ranks (collective)."""


@runtime_checkable
class Steps(Protocol):
    """The optimizer steps of a run."""

    num_replays: int  # of a captured graph, so far
    witness: Witness | None

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Float[Tensor, " losses"]]:
        """Take an epoch's steps (numbered from 0) from step `first` on.

        Each is yielded as this rank's summand of the total and each task's mean loss; the tensor is
        that of the next step too. Raises NonFiniteLossError where a gradient is not finite, at the
        latest at the epoch's end.
        """

    def take_once(self, step: int, rows: RowTable) -> None:
        """Take a step of these rows as `of_epoch` takes it, without its place in the run.

        Rows are not counted, a graph is not replayed, and rates stay as they are.
        """

    def settle(self) -> None:
        """Raise NonFiniteLossError if one of the steps taken met a gradient that is not finite."""
