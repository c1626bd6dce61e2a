"""What may be called while a run trains, and how it ends a training early.

A callback is any object with some of the methods of `Callback`. Those that a caller gives are
called by rank 0 alone, between two epochs; what they decide holds on every rank.
"""

from collections.abc import Sequence
from typing import Any

from embedcache.errors import ConfigError

Record = dict[str, Any]
_METHODS = ("on_train_begin", "on_epoch_end", "on_train_end")


class StopTraining(Exception):
    """Raised in `on_epoch_end`: the training ends after this epoch; the text says why."""


class Callback:
    """What a callback may have; an object need not be one of these, nor have all methods."""

    def on_train_begin(self) -> None:
        """Be called before the first epoch, in a resumed run before the first one that is left."""

    def on_epoch_end(self, record: Record) -> bool | None:
        """See an epoch's record, as training_log.json has it; its checkpoint is written next.

        True, or a raised `StopTraining`, ends the training after this epoch: its checkpoints and
        exports are made as at every end.
        """

    def on_train_end(self) -> None:
        """Be called when all is trained; not where the training fails."""


class Callbacks:
    """The callbacks that a caller gave."""

    def __init__(self, callbacks: Sequence[object]) -> None:
        """Raise ConfigError for an object that has none of a callback's methods."""
        for callback in callbacks:
            if isinstance(callback, type):
                name = callback.__name__
                raise ConfigError(f"callback {name} is a class; give an object: {name}()")
            if not any(callable(getattr(callback, name, None)) for name in _METHODS):
                raise ConfigError(
                    f"callback {callback!r:.200} has none of the methods {', '.join(_METHODS)}"
                )
        self._callbacks = tuple(callbacks)

    def begin(self) -> None:
        """Say that training begins."""
        self._call("on_train_begin")

    def end(self) -> None:
        """Say that all is trained."""
        self._call("on_train_end")

    def epoch_ended(self, record: Record) -> str | None:
        """Show an epoch's record to every callback; return why the training is to end, or None."""
        reasons = []
        for callback in self._callbacks:
            name = type(callback).__name__
            try:
                if getattr(callback, "on_epoch_end", _nothing)(dict(record)):
                    reasons.append(f"callback {name} ended it")
            except StopTraining as stop:
                reasons.append(str(stop) or f"callback {name} ended it")
        return "; ".join(reasons) or None

    def _call(self, method: str) -> None:
        for callback in self._callbacks:
            getattr(callback, method, _nothing)()


NO_CALLBACKS = Callbacks(())


def _nothing(*_: Any) -> None:
    """Stand for a method that a callback leaves out."""
