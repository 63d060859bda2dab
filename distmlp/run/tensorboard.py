"""A run's numbers for TensorBoard."""

import re
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hyperparameters
from tensorboard.plugins.text import summary_v2 as texts
from tensorboard.summary.writer.record_writer import RecordWriter

from distmlp.config import as_text
from distmlp.progress import Line

_METRICS = ("train_loss", "test_loss", "test_accuracy")  # beside the settings of runs that are compared


class EventFile(RecordWriter):  # type: ignore[misc]
    """A file of events; each is written before the method returns, which raises an OSError of the disk.

    TensorBoard's own EventFileWriter writes in a thread, which one such error ends.
    """

    def __init__(self, folder: Path, purge_step: int, settings: dict[str, Any], deciding: dict[str, Any]) -> None:
        """Creates the file; TensorBoard then shows nothing from older files of step `purge_step` or later.

        It shows all `settings` of the run as a text, and those `deciding` its result as hyperparameters.
        """
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{_later(folder):017.6f}.{socket.gethostname()}"
        super().__init__((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        deciding = {name: value if isinstance(value, (bool, int, float)) else _text(value)
                    for name, value in deciding.items()}
        rows = "\n".join(f"| {name} | {_text(value)} |" for name, value in settings.items())
        for summary in (
            hyperparameters.hparams_config_pb(map(hyperparameters.HParam, deciding),
                                              map(hyperparameters.Metric, _METRICS)),
            hyperparameters.hparams_pb(deciding),
            texts.text_pb("settings", f"| setting | value |\n| --- | --- |\n{rows}"),
        ):  # fmt: skip
            self._write(step=purge_step - 1, summary=summary)

    def scalars(self, line: Line) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in line.items()
                   if type(value) in (int, float) and name not in ("step", "epoch")]  # fmt: skip
        self._write(step=line["step"], summary=Summary(value=scalars))
        self.flush()

    def _write(self, **fields: Any) -> None:
        self.write(Event(wall_time=time.time(), **fields).SerializeToString())


def _text(value: Any) -> str:
    """A setting as Unicode can have it, which not every file's name is."""
    return as_text(value).encode(errors="backslashreplace").decode()


def _later(folder: Path) -> float:
    """The time, or one after those in the names of a folder's files: TensorBoard reads these in the order of their
    names, and the clock may have been set back since."""
    found = (re.match(r"events\.out\.tfevents\.(\d+(\.\d+)?)\.", path.name) for path in folder.iterdir())
    return max([time.time(), *(float(match[1]) + 1e-3 for match in found if match)])
