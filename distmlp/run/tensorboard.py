"""A run's numbers for TensorBoard."""

import socket
import time
from pathlib import Path
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, text

from distmlp.config import Config, as_text


class EventFile:
    """A file of events, written at once: it raises OSError.

    tensorboardX's SummaryWriter writes in a thread, which one error of the disk ends; training then hangs in its queue.
    """

    def __init__(self, folder: Path, purge_step: int, config: Config) -> None:
        """Creates the file; TensorBoard will show nothing that is in older ones from `purge_step` on.

        It shows all of the run's settings as a text, and those that decide its result as hyperparameters.
        """
        folder.mkdir(exist_ok=True)
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        deciding = {name: value if isinstance(value, (bool, int, float)) else as_text(value)
                    for name, value in config.settings("experiment", "length").items()}
        rows = "\n".join(f"| {name} | {as_text(value)} |" for name, value in config.settings().items())
        metrics = dict.fromkeys(("train_loss", "test_loss", "test_accuracy"), 0.0)
        for summary in (*hparams(deciding, metrics), text("settings", f"| setting | value |\n| --- | --- |\n{rows}")):
            self._write(step=purge_step - 1, summary=summary)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))
        self._file.flush()

    def _write(self, **fields: Any) -> None:
        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        self._file.close()
