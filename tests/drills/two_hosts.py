"""Two hosts, as network namespaces with a link between them: python -m tests.drills.two_hosts

One process in each trains to the same bits as one process alone. Then the link is cut for longer than
--heartbeat_seconds: both must end with a clear error; when it is back, a restart must go on to the right bits. With
--pods they play the two pods of configs/kubernetes.yaml: their host names and environment are the manifest's, one is
evicted (SIGTERM), and both, started again as the Job would, go on. Needs root and the command `ip`; it removes what it
makes.
"""

import argparse
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import groups, pods, runs

HEARTBEAT = 5
FLAGS = (*runs.DIGITS, "--checkpoint_every_steps=10", "--data_placement=host")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces; each finds its own name at its own address, where Gloo binds.

    Args:
      hostnames: theirs; by default both have this machine's.
    """

    def __init__(self, hostnames: Sequence[str] = ()) -> None:
        self.hostnames = hostnames
        mark = f"{random.SystemRandom().randrange(16**6):06x}"
        self.names, self.links = [f"host{i}-{mark}" for i in (0, 1)], [f"v{i}{mark}" for i in (0, 1)]
        self.addresses = ["10.213.0.1", "10.213.0.2"]
        self.made: list[Path] = []

    def __enter__(self) -> "Hosts":
        others = [f"{address} {name} {name}.{pods.service()}\n"
                  for name, address in zip(self.hostnames, self.addresses, strict=False)]
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("netns", "add", name)
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            self.made.append(folder)
            own = "".join(others) or f"{address} {socket.gethostname()}\n"
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{own}")
        ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth",
           "peer", "name", self.links[1], "netns", self.names[1])  # fmt: skip
        for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            for device in ("lo", link):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *exception: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        for folder in self.made:
            shutil.rmtree(folder)

    def link(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", self.links[1], state)

    def start(self, workdir: Path, flags: list[str]) -> list[groups.Process]:
        return [self._process(i, workdir, [*flags, f"--heartbeat_seconds={HEARTBEAT}"]) for i in (0, 1)]

    def _process(self, i: int, workdir: Path, flags: list[str]) -> groups.Process:
        command, env = ["ip", "netns", "exec", self.names[i]], runs.environment(2)
        if self.hostnames:
            command += ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.hostnames[i]]
            env |= pods.environment(i)
        else:
            flags = [*flags, f"--coordinator_address={self.addresses[0]}:29400", "--num_processes=2",
                     f"--process_id={i}"]  # fmt: skip
        command += [sys.executable, "-m", "launch.train", *flags, f"--workdir={workdir}"]
        return groups.Process(command, workdir.parent, env)


def train(hosts: Hosts, workdir: Path, flags: list[str], reference: Path) -> None:
    """Trains to the end in both, and compares with one process."""
    sha256 = runs.finish(reference, flags)
    group = hosts.start(workdir, flags)
    codes = [process.wait(300) for process in group]
    if codes != [0, 0]:
        raise runs.DrillError("\n".join(process.output for process in group)[-6000:])
    if runs.sha256(workdir) != sha256 or runs.lines(workdir) != runs.lines(reference):
        raise runs.DrillError("other parameters or metrics than in one process")


def play_hosts(folder: Path) -> None:
    """Straight, then with the link cut in between."""
    with Hosts() as hosts:
        train(hosts, folder / "straight", [*FLAGS, "--num_epochs=3"], folder / "reference0")
        print("two hosts: the same bits and metrics as one process", flush=True)
        group = hosts.start(folder / "cut", [*FLAGS, "--num_epochs=100000"])
        group[0].wait_for("epoch   4", 300)
        hosts.link("down")
        cut = time.monotonic()
        codes = [process.wait(120) for process in group]
        print(f"link cut: exit codes {codes} within {time.monotonic() - cut:.1f} s", flush=True)
        for process in group:
            told = re.findall(".*(?:another process ended|another task died).*", process.output)
            print(*told, sep="\n", flush=True)
            # A thread of jax's ends the process by itself, and may do so while ours has just said why.
            if not 1 <= len(told) <= 2 or len(process.errors) > 1 or {0, 143} & {*codes}:
                raise runs.DrillError(f"not one clear error:\n{process.output[-4000:]}")
        hosts.link("up")
        steps = max(runs.committed(folder / "cut")) + 20
        train(hosts, folder / "cut", [*FLAGS, f"--max_steps={steps}"], folder / "reference1")
        print(f"link back: a restart went on to step {steps}, the same bits and metrics as one process")


def play_pods(folder: Path) -> None:
    """Straight, then with an eviction in between."""
    with Hosts([pods.hostname(i) for i in (0, 1)]) as hosts:
        train(hosts, folder / "straight", [*FLAGS, "--num_epochs=3"], folder / "reference0")
        names = ", ".join(hosts.hostnames)
        if f"2 ({names})" not in " ".join((folder / "straight" / "log.txt").read_text().split()):
            raise runs.DrillError(f"the run's banner does not name the hosts {names}")
        print(f"two pods, {names}: the same bits and metrics as one process", flush=True)
        group = hosts.start(folder / "evicted", [*FLAGS, "--num_epochs=100000"])
        group[0].wait_for("epoch   4", 300)
        started = time.monotonic()
        group[1].popen.terminate()
        codes, seconds = [process.wait(120) for process in group], time.monotonic() - started
        if codes != [143, 143] or seconds > pods.grace():
            raise runs.DrillError(f"evicted: exit codes {codes} after {seconds:.1f} s:\n{group[1].output[-4000:]}")
        steps = max(runs.committed(folder / "evicted")) + 20
        train(hosts, folder / "evicted", [*FLAGS, f"--max_steps={steps}"], folder / "reference1")
        print(f"one evicted: both saved and ended within {seconds:.1f} s; started again, they went on to step {steps}, "
              "the same bits and metrics as one process")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", action="store_true", help="play configs/kubernetes.yaml")
    as_pods = parser.parse_args(argv).pods
    if os.geteuid() or not shutil.which("ip"):
        print("two_hosts drill SKIPPED: it needs root and the command ip (iproute2)")
        return runs.SKIPPED
    with tempfile.TemporaryDirectory() as name:
        try:
            (play_pods if as_pods else play_hosts)(Path(name))
        except runs.DrillError as error:
            print(f"two_hosts drill FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
