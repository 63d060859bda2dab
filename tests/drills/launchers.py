"""The same bits under real Open MPI and real Slurm as in one process: python -m tests.drills.launchers

Needs root, and Debian's packages openmpi-bin, slurm-wlm and munge: it starts a Slurm of its own on this machine, with
two processes under srun, and configs/slurm.sbatch, whose time runs out, so that it queues itself again and goes on;
which is then cancelled (SIGTERM), and submitted again.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import groups, runs

FLAGS = (*runs.DIGITS, "--num_epochs=4", "--expect_devices=6")
SLURM_CONF = """\
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP OverSubscribe=YES
"""


def environment() -> dict[str, str]:
    """Three emulated devices a process; `python` is this one, as after activating its environment."""
    env = runs.environment(3)
    return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


def output_of(command: list[str], env: dict[str, str], timeout: float = 300) -> str:
    done = subprocess.run(
        command, env=env, cwd=runs.REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise runs.DrillError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}"
                              f"{done.stderr[-4000:]}")  # fmt: skip
    return done.stdout


def check(name: str, workdir: Path, sha256: str, lines: list[dict[str, object]]) -> None:
    if runs.sha256(workdir) != sha256 or runs.lines(workdir) != lines:
        raise runs.DrillError(f"{name}: other parameters or metrics than in one process")
    print(f"{name}: the same bits and metrics", flush=True)


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of this machine alone; yields the environment in which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, conf = socket.gethostname().split(".")[0], folder / "slurm.conf"
    ports = [groups.free_port(), groups.free_port()]
    conf.write_text(SLURM_CONF.format(host=host, ports=ports, folder=folder, cpus=os.cpu_count()))
    env = environment() | {"SLURM_CONF": str(conf)}
    daemons = []
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        daemons.append(subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--force", "--foreground"]))
        time.sleep(1)
    with (folder / "daemons.log").open("w") as log:
        daemons += [subprocess.Popen([shutil.which(name) or f"/usr/sbin/{name}", *flags], env=env, stdout=log,
                                     stderr=log) for name, flags in (("slurmctld", ["-D", "-c"]), ("slurmd", ["-D"]))]
        try:
            deadline = time.monotonic() + 60
            while "idle" not in subprocess.run(["sinfo", "-h"], env=env, capture_output=True, text=True,
                                               check=False).stdout:  # fmt: skip
                if time.monotonic() > deadline:
                    raise runs.DrillError(f"Slurm does not start:\n{(folder / 'daemons.log').read_text()[-4000:]}")
                time.sleep(0.5)
            yield env
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


def batch(folder: Path, env: dict[str, str], sha256: str, lines: list[dict[str, object]]) -> None:
    """configs/slurm.sbatch on one node without GPUs: its time over, cancelled while it trains, and submitted again."""
    workdir, log = folder / "batch", folder / "batch.out"
    submit = ["sbatch", "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1",
              "--time=3", f"--output={log}", "configs/slurm.sbatch", *FLAGS, f"--workdir={workdir}"]  # fmt: skip
    (job,) = re.findall(r"\d+", output_of([*submit, "--num_epochs=100000", "--checkpoint_every_steps=50"], env))
    deadline = time.monotonic() + 600
    while not (found := re.findall(r"^resuming after step (\d+) of", log.read_text() if log.exists() else "", re.M)):
        if time.monotonic() > deadline:
            raise runs.DrillError(f"the batch job was not queued again:\n{log.read_text()[-4000:]}")
        time.sleep(0.2)
    if f"distmlp: stopped after step {found[0]} " not in log.read_text():
        raise runs.DrillError(f"went on after step {found[0]}, but said:\n{log.read_text()[-4000:]}")
    if "Restarts=1" not in output_of(["scontrol", "show", "job", job], env):
        raise runs.DrillError(f"not queued again: {output_of(['scontrol', 'show', 'job', job], env)}")
    print(f"configs/slurm.sbatch, its time over: saved after step {found[0]}, queued again, and resumed", flush=True)
    while max(runs.committed(workdir)) < int(found[0]) + 100:
        time.sleep(0.2)
    output_of(["scancel", job], env)
    while log.read_text().count("distmlp: stopped after step ") < 2:
        if time.monotonic() > deadline + 60:
            raise runs.DrillError(f"the cancelled job did not save:\n{log.read_text()[-4000:]}")
        time.sleep(0.2)
    while output_of(["squeue", "-h", "-j", job, "-t", "all", "-o", "%T"], env).strip() not in ("CANCELLED", ""):
        time.sleep(0.2)
    steps = max(runs.committed(workdir))
    if f"distmlp: stopped after step {steps} " not in log.read_text():
        raise runs.DrillError(f"saved {runs.committed(workdir)}, but said:\n{log.read_text()[-4000:]}")
    print(f"configs/slurm.sbatch, cancelled: stopped and saved after step {steps}", flush=True)
    length = f"--max_steps={steps + 30}"
    output_of([*submit[:1], "--wait", *submit[1:], length, "--checkpoint_every_steps=50"], env)
    reference = folder / "longer"
    runs.finish(reference, [*runs.DIGITS, length, "--checkpoint_every_steps=50"])
    check("configs/slurm.sbatch, submitted again", workdir, runs.sha256(reference), runs.lines(reference))


def main() -> int:
    missing = [name for name in ("mpirun", "srun", "munge") if not shutil.which(name)]
    if os.geteuid() or missing:
        print(f"launchers drill SKIPPED: {'needs root' if os.geteuid() else 'not installed: ' + ', '.join(missing)}")
        return runs.SKIPPED
    with tempfile.TemporaryDirectory() as name:
        folder, train = Path(name), [sys.executable, "-m", "launch.train", *FLAGS]
        try:
            sha256 = runs.finish(folder / "one", FLAGS[:-1])
            lines = runs.lines(folder / "one")
            mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
            output_of([*mpirun, *train, f"--workdir={folder / 'mpirun'}"], environment())
            check("mpirun -n 2", folder / "mpirun", sha256, lines)
            with slurm(folder) as env:
                output_of(["srun", "-n", "2", *train, f"--workdir={folder / 'srun'}"], env)
                check("srun -n 2", folder / "srun", sha256, lines)
                batch(folder, env, sha256, lines)
        except runs.DrillError as error:
            print(f"launchers drill FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
