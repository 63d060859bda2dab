"""A run's numbers for TensorBoard."""

import socket
import time
from pathlib import Path
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """A file of events, written at once: it raises OSError.

    tensorboardX's SummaryWriter writes in a thread, which one error of the disk ends; training then hangs in its queue.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Creates the file; TensorBoard will show nothing that is in older ones from `purge_step` on."""
        folder.mkdir(exist_ok=True)
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))
        self._file.flush()

    def _write(self, **fields: Any) -> None:
        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        self._file.close()
