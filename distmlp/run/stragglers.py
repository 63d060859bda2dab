"""Which of several processes holds up the others: what a step takes each of them by itself, while none waits.

In a step all wait for the slowest, so that all steps take equally long, and by them nobody can be told from another.
Each process therefore times what it does alone (OwnSeconds): it loads and sends the examples of its shards, and at each
line, when the devices are idle anyway, they compute the gradients of some steps once more, without the exchange. That
is given a hundredth of the steps' time; then they tell one another three numbers. It changes nothing of the state.

Measured with two processes, the tutorial's network, batches of 128 and a line a second, on cores that were busy with
other work: 1.2 % of the steps' time to compute again, and 6 to 11 ms a line, the median, to tell one another. Together
it is 1.9 % of the processor time. The first line takes 0.2 s more, for the exchange to be compiled.
"""

import math
import socket
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from distmlp.cluster.group import Group
from distmlp.parallel.own_time import OwnSeconds, OwnTime
from distmlp.parallel.specs import State
from distmlp.progress import Line

_LAG = 1.3  # times the median
_SHARE = 0.01  # of the steps' time, to measure


class Stragglers:
    """What lines say of the processes of a group; `warn` says it to people."""

    def __init__(self, own_time: OwnTime, group: Group, warn: Callable[[str], None]) -> None:
        """A collective."""
        self._own_time, self._group, self._warn = own_time, group, warn
        self._hosts: list[str] = group.exchange(socket.gethostname())
        self._trained, self._named, self._said = 0.0, -1, -1

    def add(self, line: Line, state: State, trained: float) -> None:
        """Adds to a line what a step took each process by itself since the last line that says so, and which is slow:
        as soon as all have measured it. A collective; the devices are to be idle. `trained`: seconds of steps so far.
        """
        own = self._own_time.seconds(state, _SHARE * (trained - self._trained))
        self._trained = trained
        everyone = self._group.gather(np.array(own, np.float32).view(np.int32)).view(np.float32)
        found = [OwnSeconds(*map(float, each)) for each in everyone]
        if self._own_time.computes and any(math.isnan(own.compute) for own in found):
            return
        self._own_time.forget()
        line["process_seconds"] = {
            part: [float(f"{value:.3g}") for value in values]
            for part, values in zip(OwnSeconds._fields, zip(*found, strict=True), strict=True)
            if not any(map(math.isnan, values))
        }
        slow = slowest(found) if self._own_time.computes else None
        if slow is not None:
            process, times = slow
            line["slowest"] = {"process": process, "host": self._hosts[process], "times_median": round(times, 2)}
        self._tell(slow, found)

    def _tell(self, slow: tuple[int, float] | None, found: Sequence[OwnSeconds]) -> None:
        """Says it once, when a process is the slow one in two lines, one after the other."""
        before, self._named = self._named, -1 if slow is None else slow[0]
        if slow is None or before != self._named or self._said == self._named:
            return
        process, times = slow
        self._said = process
        parts = ", ".join(f"{1000 * seconds:.3g} ms to {part}"
                          for part, seconds in zip(OwnSeconds._fields, found[process], strict=True)
                          if not math.isnan(seconds))  # fmt: skip
        self._warn(f"process {process} of {len(found)} on {self._hosts[process]} is slow: by itself a step takes it "
                   f"{times:.1f} times as long as the median, {parts}")


def slowest(found: Sequence[OwnSeconds]) -> tuple[int, float] | None:
    """The process that takes longest by itself, and how many times as long as the median (of an even number, the lower
    one of the middle); None if that is less than 1.3."""
    totals = [math.fsum(seconds for seconds in each if not math.isnan(seconds)) for each in found]
    longest, median = max(totals), statistics.median_low(totals)
    return (totals.index(longest), longest / median) if median and longest >= _LAG * median else None
