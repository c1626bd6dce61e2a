"""What has come back of one optimizer step's gradient, noted by hooks.

The hook on V holds an `Arrival` and not V: a hook that refers to V would keep its graph alive for
ever.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from embedcache.errors import UnfinishedStepError


@dataclass
class Arrival:
    """The leaf V' that a step's micro-batches read, and which of their gradients have come."""

    leaf: Float[Tensor, "U E"]  # V'
    # micro-batches, where an engine runs the encoder's backward; None: `end_step` runs it
    announced: int | None
    arrived: list[bool] = field(default_factory=list)  # per micro-batch that was read
    complete: bool = False  # whether the whole gradient went into the encoder

    def watched(self, vectors: Float[Tensor, "U E"]) -> Float[Tensor, "U E"]:
        """Return the vectors for one more micro-batch, noting when their gradient comes back."""
        number = len(self.arrived)
        self.arrived.append(False)
        watched = vectors.view_as(vectors)

        def note(_: Tensor) -> None:
            self.arrived[number] = True

        if watched.requires_grad:
            watched.register_hook(note)
        return watched

    def whole(self, last: Float[Tensor, "U E"]) -> Float[Tensor, "U E"]:
        """Return the gradient of the whole step, as that of its last micro-batch passes V."""
        self.refuse_missing()
        self.complete = True
        return last if self.leaf.grad is None else last + self.leaf.grad

    def refuse_missing(self) -> None:
        """Raise if the vectors of a micro-batch were read and no gradient came back."""
        missing = [number for number, arrived in enumerate(self.arrived) if not arrived]
        if missing:
            raise UnfinishedStepError(
                f"micro-batch {missing[0] + 1} of {len(self.arrived)} was read, but backward was"
                " not called on its loss before the step ended: its gradient would be lost; read"
                " under torch.no_grad() what is only looked at"
            )


def refuse_unannounced(
    distinct: Int[Tensor, " U"], index: Int[Tensor, " B"], string_id: Int[Tensor, " B"]
) -> None:
    """Raise if a row's string was not announced; on a GPU without waiting for it."""
    found = (distinct[index] == string_id).all()
    if found.device.type != "cpu":
        torch._assert_async(found)
    elif not found:
        raise UnfinishedStepError(
            "read() met a string that begin_step() was not told of: announce all rows of the step"
        )
