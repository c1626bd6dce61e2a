"""When a run writes a checkpoint inside an epoch."""

from fusionnet.train.loop import checkpoint_due


def test_checkpoints_are_due_inside_epochs_alone() -> None:
    def due(every: int | None, steps_per_epoch: int) -> list[int]:
        return [step for step in range(12) if checkpoint_due(step, every, steps_per_epoch)]

    assert due(2, 6) == [1, 3, 7, 9]  # steps 5 and 11 end an epoch, which has its own
    assert due(4, 6) == [3, 7]
    assert due(1, 1) == []
    assert due(None, 6) == []
