"""What becomes of the other processes: every process keeps a connection to process 0, which tells all when one ends.

jax's coordination service notices too, but later, in a C++ stack trace, and meanwhile some processes hang in a
collective and others report a broken connection. Here a death is known at once, as the end of its connection, a
silence after --heartbeat_seconds, and all processes end together with one line that says which one it was, and why.
"""

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from distmlp.cluster.hub import BEAT, ERROR, FAULT, Hub, Link
from distmlp.cluster.launcher import Place

_LEAVING = 60.0  # seconds for which process 0 waits for the others at the end


class Peers:
    """A process's side of it.

    Args:
      place: this process.
      silence: seconds after which a process that sends nothing is given up.
      publish, look_up: hand a text from process 0 to all the others.
    """

    def __init__(
        self, place: Place, host: str, silence: float, publish: Callable[[str], None], look_up: Callable[[], str]
    ) -> None:
        self._place, self._silence, self._details, self._left = place, silence, "", False
        if place.process == 0:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=place.processes)
            token = os.urandom(8).hex()
            self._hub: Hub | None = Hub(listener, token, place, silence, self._announce)
            self._hub.start()
            publish(f"{listener.getsockname()[1]} {token}")
        else:
            self._hub = None
        port, token = look_up().split()
        self._link = Link(socket.create_connection((host, int(port)), timeout=silence))
        self._link.socket.settimeout(None)
        self._link.send(["hello", token, place.process, socket.gethostname()])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._link.socket, selectors.EVENT_READ)
        last_pass = time.monotonic()
        while not self._left:
            messages = self._link.receive() if selector.select(BEAT) else []
            now = time.monotonic()
            if now - last_pass > 3 * BEAT:  # this process was stopped itself
                self._link.heard = now
            last_pass = now
            if messages is None and not self._left:
                self._end(1, "died: it was killed, or crashed (see its own output)")
            elif now - self._link.heard > self._silence:
                self._end(1, f"was silent for {self._silence:g} s (--heartbeat_seconds): stopped, or cut off")
            for message in messages or []:
                if message[0] == "verdict":
                    _, code, text, culprits = message
                    if self._hub is None:  # process 0's hub itself announces it, and ends when the others are gone
                        self._announce(text, culprits)
                        os._exit(code)
            self._link.beat(now)

    def _announce(self, text: str, culprits: list[int]) -> None:
        if self._place.process in culprits:
            sys.stderr.write(self._details)
        if self._place.local_rank == 0:  # one line on each host
            _say(text)

    def _end(self, code: int, what: str) -> None:
        _say(f"process 0 of {self._place.processes} {what}; {self._place} stops")
        os._exit(code)

    def fail(self, code: int, text: str, details: str = "") -> None:
        """Ends all processes with this code, and with `text` on each host, unless another process has worse news.

        Args:
          code: exit code of all processes.
          text: one line; it is named after this process unless all fail with the same.
          details: printed by this process only, and only if it is to blame; makes `text` a fault.
        """
        self._details = details
        self._link.send(["failed", FAULT if details else ERROR, code, text])
        time.sleep(2 * self._silence)  # the verdict ends the process
        sys.stderr.write(details)
        _say(f"{self._place}: {text}")
        os._exit(code)

    def leave(self) -> None:
        """This process's end is no failure; process 0 waits for the others, who would not survive it."""
        self._left = True
        self._link.send(["bye"])
        if self._hub is not None:
            self._hub.all_left.wait(_LEAVING)


def _say(text: str) -> None:
    sys.stderr.write(f"distmlp: error: {text}\n")
    sys.stderr.flush()
