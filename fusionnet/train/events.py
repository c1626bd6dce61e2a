"""TensorBoard's events of a run: one file for each time that the run was started or resumed.

TensorBoard's own writer names its files by the clock, the host and the process: a name that cannot
be listed before the file is there, and an order that a clock set back turns round. Here they are
numbered. Each file begins by taking back what earlier files say of its epochs, which a kill may
have left half written.
"""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FOLDER = "tensorboard"


def next_file(folder: Path) -> str:
    """Return the path, inside a run's folder, of its next file of events."""
    numbers = (file.name.rpartition(".")[2] for file in folder.glob(f"{FOLDER}/*tfevents*"))
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return f"{FOLDER}/events.out.tfevents.{last + 1:010d}"


def append_events(file: Path, record: dict[str, Any]) -> None:
    """Add the numbers of an epoch's record to a file, beginning it if it is not there."""
    file.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in _events(record, begins=not file.exists()):
        writer.write(event.SerializeToString())
    with file.open("ab") as stream:
        stream.write(content.getvalue())


def _events(record: dict[str, Any], begins: bool) -> Iterator[Event]:
    """Yield the events of one epoch; `begins` a file whose epochs start with this one."""
    now, epoch = time.time(), record["epoch"]
    if begins:
        yield Event(wall_time=now, file_version="brain.Event:2")
        yield Event(wall_time=now, step=epoch, session_log=SessionLog(status=SessionLog.START))
    values = [
        Summary.Value(tag=key, simple_value=value)
        for key, value in record.items()
        if isinstance(value, int | float) and key != "epoch"
    ]
    yield Event(wall_time=now, step=epoch, summary=Summary(value=values))
