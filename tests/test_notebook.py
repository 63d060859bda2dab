"""Training in a notebook's kernel, a real one: cells are run, stopped and run again."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import process_env
from drills import runs
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

SETTINGS = "dataset='digits', hidden_sizes=(16,), input_scaling='unit', learning_rate=0.1"


class Kernel:
    """A kernel, and what it sends back for a cell."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, cell: str, stop_at: str = "") -> tuple[str, list[str], str]:
        """The text that a cell printed, the kinds of what it displayed, and its error; stopped as by the stop button.

        Args:
          cell: Python.
          stop_at: once the cell has printed this, the kernel is interrupted.
        """
        printed, shown, stopped = "", [], threading.Event()

        def receive(message: dict[str, Any]) -> None:
            nonlocal printed
            content = message["content"]
            printed += content.get("text", "")
            shown.extend(content.get("data", ()))
            if stop_at and stop_at in printed and not stopped.is_set():
                stopped.set()
                self.manager.interrupt_kernel()

        reply = self.client.execute_interactive(cell, timeout=120, output_hook=receive)["content"]
        return printed, shown, "" if reply["status"] == "ok" else f"{reply['ename']}: {reply['evalue']}"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel in the test's folder that sees four devices, and is told nothing else."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), env=process_env(devices=4) | {"IPYTHONDIR": str(tmp_path / "ipython")})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_cell_is_stopped_and_the_kernel_goes_on(kernel: Kernel, tmp_path: Path) -> None:
    printed, shown, error = kernel.run(
        "from distmlp import Config, train\n"
        f"def run(**more): return train(Config(**dict(dict({SETTINGS}), **more)))\n"
        "ended = run(num_epochs=3, num_devices=1, workdir='one')"
    )
    assert error == ""
    assert "final test accuracy" in printed
    assert "epoch 1:" not in printed  # the bar is the notebook's own
    assert "application/vnd.jupyter.widget-view+json" in shown

    _, _, error = kernel.run("run(num_epochs=1_000_000, workdir='stopped')", stop_at="epoch   2")
    step = runs.committed(tmp_path / "stopped")[-1]
    assert error.startswith(f"Interrupted: stopped after step {step} of ")
    assert step >= 24

    printed, _, error = kernel.run("run(num_epochs=3, workdir='four', num_devices=4)\nprint(len(ended.history))")
    assert error == ""
    assert ("4 x cpu: shard_map" in printed, printed.endswith("\n4\n")) == (True, True)
    printed, _, error = kernel.run(f"run(max_steps={step + 5}, workdir='stopped')")
    assert (f"resuming after step {step} of {step + 5}" in printed, error) == (True, "")

    _, _, error = kernel.run("run(num_epochs=1, workdir='invariant', reduction='invariant')")
    assert error == ""

    # A Result is shown as a table and two curves.
    _, shown, error = kernel.run("ended")
    assert ("text/html" in shown, error) == (True, "")
    printed, _, error = kernel.run("print(ended._repr_html_())")
    assert (printed.count("<svg"), printed.count("<polyline"), error) == (2, 3, "")
    assert re.search(r"test accuracy</th><td>\d+\.\d\d%</td>", printed)

    # Four devices are what this kernel has; the next line is the whole of what it says.
    printed, _, error = kernel.run("run(workdir='eight', num_devices=8)")
    assert error.startswith("InputError: --num_devices=8, but there are 4 cpu devices")
    assert printed == ""
    assert not os.path.exists(tmp_path / "eight")
