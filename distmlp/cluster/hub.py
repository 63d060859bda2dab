"""Process 0's side of peers.py: hears all processes and passes the verdict when one ends."""

import contextlib
import json
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from distmlp.cluster.launcher import Place

BEAT = 1.0  # seconds
GONE, ERROR, FAULT = range(3)  # kinds of bad news, the most telling first; a fault is often another's consequence
_GATHERING = (0.5, 0.5, 2.0)  # seconds for which the first news of a kind waits for better: the cause may come second


class Link:
    """One end of a connection; messages are JSON values, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.heard, self._beaten, self._rest = connection, time.monotonic(), -math.inf, b""
        self.process, self.host = -1, ""  # of the other end, once it has said so

    def send(self, message: Any) -> None:
        # Whoever is not reading, or gone, is found out elsewhere; the few bytes fit into the kernel's buffer.
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)

    def beat(self, now: float) -> None:
        """A sign of life, unless one was sent just now: answering each with one would keep both ends busy."""
        if now - self._beaten >= BEAT / 2:
            self._beaten = now
            self.send(["beat"])

    def receive(self) -> list[Any] | None:
        """The messages that are there; None if the other end is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Hub(threading.Thread):
    """Process 0's side: hears all processes, its own included, and passes the verdict."""

    def __init__(
        self, listener: socket.socket, token: str, place: Place, silence: float,
        announce: Callable[[str, list[int]], None],
    ) -> None:
        super().__init__(daemon=True)
        self._announce = announce
        self._token, self._place, self._silence = token, place, silence
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._listener = listener
        self._news: dict[int, tuple[int, int, str]] = {}  # process: kind, exit code, text
        self._hosts: dict[int, str] = {}
        self._left: set[int] = set()
        self.all_left = threading.Event()

    def run(self) -> None:
        first_news, last_pass = 0.0, time.monotonic()
        while True:
            for key, _ in self._selector.select(0.1 if self._news else BEAT):
                if key.data is None:
                    link = Link(self._listener.accept()[0])
                    self._selector.register(link.socket, selectors.EVENT_READ, link)
                else:
                    self._hear(key.data)
            now, links = time.monotonic(), self._links()
            for link in links:
                if now - last_pass > 3 * BEAT:  # this process was stopped itself
                    link.heard = now
                link.beat(now)
                if link.process >= 0 and now - link.heard > self._silence:
                    self._lost(link, f"was silent for {self._silence:g} s (--heartbeat_seconds): stopped, or cut off")
            last_pass = now
            if self._news:
                first_news = first_news or now
                if now - first_news >= _GATHERING[min(kind for kind, _, _ in self._news.values())]:
                    self._pass_verdict()

    def _links(self) -> list[Link]:
        return [key.data for key in list(self._selector.get_map().values()) if key.data is not None]

    def _hear(self, link: Link) -> None:
        try:
            messages = link.receive()
            for message in [] if messages is None else messages:
                if link.process < 0 and message[0] == "hello" and message[1] == self._token:
                    link.process, link.host = message[2:]
                    self._hosts[link.process] = link.host
                elif link.process < 0:
                    raise ValueError("a stranger")
                elif message[0] == "failed":
                    self._news.setdefault(link.process, (*message[1:],))
                elif message[0] == "bye":
                    self._left.add(link.process)
        except (ValueError, LookupError, TypeError):
            messages = None
        if messages is None:
            self._lost(link, "died: it was killed, or crashed (see its own output)")
        if len(self._left) == self._place.processes:
            self.all_left.set()

    def _lost(self, link: Link, text: str) -> None:
        self._selector.unregister(link.socket)
        link.socket.close()
        if link.process >= 0 and link.process not in self._left:
            self._news[link.process] = (GONE, 1, text)

    def _pass_verdict(self) -> None:
        kind = min(news[0] for news in self._news.values())
        first = min(process for process, news in self._news.items() if news[0] == kind)
        _, code, text = self._news[first]
        culprits = sorted(process for process, news in self._news.items() if news == self._news[first])
        if kind == GONE:
            text = f"{self._names(culprits)} {text}"
        elif len(culprits) < self._place.processes:
            text = f"{self._names(culprits)}: {text}"
        for link in self._links():
            link.send(["verdict", code, text, culprits])
        self._announce(text, culprits)
        deadline = time.monotonic() + 2  # when this process ends, jax ends the others by a signal
        while len(self._links()) > 1 and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.1):
                if key.data is not None and key.data.receive() is None:
                    self._selector.unregister(key.data.socket)
        os._exit(code)

    def _names(self, processes: list[int]) -> str:
        hosts = ", ".join(dict.fromkeys(self._hosts[process] for process in processes))
        numbers = ", ".join(map(str, processes))
        return f"process{'es' if len(processes) > 1 else ''} {numbers} of {self._place.processes} on {hosts}"
