"""Who is blamed when several processes end: three processes that do nothing but watch one another."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from drills import runs

from distmlp.cluster.hub import BEAT, Link

WATCH = """
    import os, pathlib, signal, sys, time
    from distmlp.cluster.launcher import Place
    from distmlp.cluster.peers import Peers

    process, address = int(sys.argv[1]), pathlib.Path(sys.argv[2])

    def publish(text):
        address.with_suffix(".tmp").write_text(text)
        address.with_suffix(".tmp").rename(address)

    def look_up():
        while not address.exists():
            time.sleep(0.01)
        return address.read_text()

    peers = Peers(Place("127.0.0.1:1", 3, process, process, 3), "127.0.0.1", 3, publish, look_up)
    (address.parent / f"here{process}").touch()
    while len(list(address.parent.glob("here*"))) < 3:
        time.sleep(0.01)
    time.sleep(0.3)  # until process 0 has heard who they are
"""


def end(tmp_path: Path, *actions: str) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of three processes that then do this; else they go on for 30 s."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WATCH) + action + "\ntime.sleep(30)", str(i), tmp_path / "address"],
            stderr=subprocess.PIPE, text=True, env=runs.environment(1),
        )
        for i, action in enumerate(actions)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


LEAVE = "peers.leave(); os._exit(0)"
HOST = os.uname().nodename


@pytest.mark.parametrize(("actions", "codes", "says"), [
    ((LEAVE, "time.sleep(1); " + LEAVE, LEAVE), [0, 0, 0], ""),
    (("", "peers.fail(3, 'no')", ""), [3, 3, 3], f"process 1 of 3 on {HOST}: no"),
    # All say the same: it is said once.
    (("peers.fail(2, 'no')",) * 3, [2, 2, 2], "no"),
    # A broken connection is the consequence, though it may be known first.
    (("peers.fail(1, 'broken', 'Traceback\\n')", "time.sleep(0.2); os._exit(9)", ""), [1, 9, 1],
     f"process 1 of 3 on {HOST} died: it was killed, or crashed (see its own output)"),
    # The first to go does not hide what happens to those who stay.
    ((" ", LEAVE, "time.sleep(1); os._exit(9)"), [1, 0, 9],
     f"process 2 of 3 on {HOST} died: it was killed, or crashed (see its own output)"),
    (("", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGKILL)"), [1, -9, -9],
     f"processes 1, 2 of 3 on {HOST} died: it was killed, or crashed (see its own output)"),
])  # fmt: skip
def test_all_end_with_the_code_and_the_words_of_the_one_to_blame(
    actions: tuple[str, ...], codes: list[int], says: str, tmp_path: Path
) -> None:
    found, errors = end(tmp_path, *actions)
    assert found == codes, errors
    assert errors == [f"distmlp: error: {says}\n" if says else "", "", ""]  # of one host, one process speaks


def test_a_fault_shows_its_traceback_where_it_happened(tmp_path: Path) -> None:
    codes, errors = end(tmp_path, "", "peers.fail(1, 'oops', 'Traceback of it\\n')", "")
    assert codes == [1, 1, 1]
    assert errors == [f"distmlp: error: process 1 of 3 on {HOST}: oops\n", "Traceback of it\n", ""]


def test_without_process_0_each_speaks_for_itself(tmp_path: Path) -> None:
    codes, errors = end(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", "", "")
    assert codes == [-9, 1, 1]
    assert [error.count("distmlp: error: process 0 of 3 died: ") for error in errors] == [0, 1, 1]


def test_a_beat_is_not_answered_by_another_without_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here, there = socket.create_connection(server.getsockname()), server.accept()[0]
    with here, there:
        link = Link(here)
        for moment in range(100):
            link.beat(moment * BEAT / 100)
        here.shutdown(socket.SHUT_WR)
        there.settimeout(10)
        with there.makefile("rb") as received:
            assert len(received.readlines()) == 2  # at once, and half a BEAT later
