"""Two hosts, as network namespaces with a link between them: python -m tests.drills.two_hosts

One process in each trains to the same bits as one process alone. Then the link is cut for longer than
--heartbeat_seconds: both must end with a clear error; when it is back, a restart must go on to the right bits. Needs
root and the command `ip`; it removes what it makes.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import groups, runs

HEARTBEAT = 5
FLAGS = (*runs.DIGITS, "--checkpoint_every_steps=10", "--data_placement=host")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces; each finds this machine's name at its own address, where Gloo binds."""

    def __init__(self) -> None:
        mark = f"{random.SystemRandom().randrange(16**6):06x}"
        self.names, self.links = [f"host{i}-{mark}" for i in (0, 1)], [f"v{i}{mark}" for i in (0, 1)]
        self.addresses = ["10.213.0.1", "10.213.0.2"]
        self.made: list[Path] = []

    def __enter__(self) -> "Hosts":
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("netns", "add", name)
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            self.made.append(folder)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
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
        return [
            groups.Process(
                ["ip", "netns", "exec", name, sys.executable, "-m", "launch.train", *flags, f"--workdir={workdir}",
                 f"--coordinator_address={self.addresses[0]}:29400", "--num_processes=2", f"--process_id={i}",
                 f"--heartbeat_seconds={HEARTBEAT}"],
                workdir.parent, runs.environment(2),
            )
            for i, name in enumerate(self.names)
        ]  # fmt: skip


def train(hosts: Hosts, workdir: Path, flags: list[str], reference: Path) -> None:
    """Trains to the end in both, and compares with one process."""
    sha256 = runs.finish(reference, flags)
    group = hosts.start(workdir, flags)
    codes = [process.wait(300) for process in group]
    if codes != [0, 0]:
        raise runs.DrillError("\n".join(process.output for process in group)[-6000:])
    if runs.sha256(workdir) != sha256 or runs.lines(workdir) != runs.lines(reference):
        raise runs.DrillError("other parameters or metrics than in one process")


def main() -> int:
    if os.geteuid() or not shutil.which("ip"):
        print("two_hosts drill SKIPPED: it needs root and the command ip (iproute2)")
        return runs.SKIPPED
    with tempfile.TemporaryDirectory() as name, Hosts() as hosts:
        folder = Path(name)
        try:
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
                if len(told) != 1 or len(process.errors) > 1 or {0, 143} & {*codes}:
                    raise runs.DrillError(f"not one clear error:\n{process.output[-4000:]}")
            hosts.link("up")
            steps = max(runs.committed(folder / "cut")) + 20
            train(hosts, folder / "cut", [*FLAGS, f"--max_steps={steps}"], folder / "reference1")
            print(f"link back: a restart went on to step {steps}, the same bits and metrics as one process")
        except runs.DrillError as error:
            print(f"two_hosts drill FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
