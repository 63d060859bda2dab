"""Who a process is, from made-up environments of the launchers; which GPUs it takes; half configurations refused."""

import itertools
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from conftest import REPOSITORY

from distmlp import Config, InputError
from distmlp.cluster import place as places
from distmlp.cluster.place import Place, find_place, join, local_gpus, split_address

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
# As seen under srun of Slurm and mpirun of Open MPI 4.1.
SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-10],other", "SLURM_NTASKS": "7", "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2", "SLURM_LOCALID": "1",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.0.0.1,10.1.0.1:34911",
}  # fmt: skip
JAXJOB = {"COORDINATOR_ADDRESS": "job-0.job", "COORDINATOR_PORT": "61440", "NUM_PROCESSES": "3", "PROCESS_ID": "2"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without any launcher, to fill."""
    env = {"PATH": os.environ["PATH"]}
    monkeypatch.setattr(os, "environ", env)
    return env


@pytest.mark.parametrize(("env", "place"), [
    (TORCHRUN, Place("node1:29501", 8, 5, 1, 4)),
    # Kubernetes' PyTorchJob sets the same variables, but no agent listens at MASTER_PORT.
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7"}, Place("a:7", 2, 1, 0, 1)),
    (SLURM, Place("node07:61441", 7, 5, 1, 2)),
    (SLURM | {"SLURM_NODEID": "3", "SLURM_LOCALID": "0", "SLURM_PROCID": "6"}, Place("node07:61441", 7, 6, 0, 1)),
    (SLURM | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, Place("node07:61441", 7, 5, 1, 2)),  # as many scripts set
    (SLURM | {"JAX_COORDINATOR_ADDRESS": "b:2"}, Place("b:2", 7, 5, 1, 2)),
    (OPEN_MPI, Place("10.0.0.1:61442", 4, 3, 1, 2)),
    (OPEN_MPI | SLURM, Place("10.0.0.1:61442", 4, 3, 1, 2)),  # mpirun in a Slurm job
    (TORCHRUN | SLURM, Place("node1:29501", 8, 5, 1, 4)),  # torchrun in a Slurm job
    ({k: v for k, v in OPEN_MPI.items() if "orte" not in k} | {"JAX_COORDINATOR_ADDRESS": "c:3"},
     Place("c:3", 4, 3, 1, 2)),
    (JAXJOB, Place("job-0.job:61440", 3, 2, 0, 1)),
    (JAXJOB | {"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "2"}, Place("job-0.job:61440", 3, 2, 0, 1)),
    (JAXJOB | {"NUM_PROCESSES": "1", "PROCESS_ID": "0"}, None),
    ({"COORDINATOR_ADDRESS": "for something else"}, None),
    ({}, None),
    (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
    (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
    (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, None),
])  # fmt: skip
def test_the_place_that_a_launcher_gives(
    env: dict[str, str], place: Place | None, environ: dict[str, str]
) -> None:
    environ |= env
    assert find_place(Config()) == place


def test_flags_go_before_every_launcher(environ: dict[str, str]) -> None:
    environ |= TORCHRUN | SLURM | OPEN_MPI
    config = Config(coordinator_address="h:1", num_processes=3, process_id=2)
    assert find_place(config) == Place("h:1", 3, 2, 0, 1)


@pytest.mark.parametrize(("env", "part"), [
    ({**TORCHRUN, "MASTER_PORT": ""}, "MASTER_PORT of torchrun's variables is not set"),
    ({**TORCHRUN, "RANK": "first"}, "RANK is 'first', not a number"),
    ({**TORCHRUN, "RANK": "8"}, "process 8 of 8, which cannot be"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "start with torchrun, srun or Open MPI's mpirun, or give"),
    ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE=2 speaks of several processes"),  # MPICH's mpirun
    ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}, "are not set: start with srun, or give"),  # a batch script
    ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, "Slurm is only half configured"),
    ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
    ({k: v for k, v in OPEN_MPI.items() if "orte" not in k}, "-x JAX_COORDINATOR_ADDRESS=HOST:PORT"),  # Open MPI 5
    ({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "?"}, "Open MPI is only half configured"),
    ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS is set"),
    ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ({k: v for k, v in JAXJOB.items() if k != "PROCESS_ID"}, "PROCESS_ID is not set"),
    ({**JAXJOB, "COORDINATOR_PORT": "tcp"}, "COORDINATOR_PORT is 'tcp', not a number"),
    ({**JAXJOB, "PROCESS_ID": "3"}, "process 3 of 3, which cannot be"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Kubernetes environment detected")
def test_half_a_configuration_is_an_error_in_one_line(env: dict[str, str], part: str, environ: dict[str, str]) -> None:
    environ |= env
    with pytest.raises(InputError) as caught:
        find_place(Config())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def place(local_rank: int, local_size: int) -> Place:
    return Place("h:1", 8, local_rank, local_rank, local_size)


@pytest.mark.parametrize(("env", "local_rank", "local_size", "gpus"), [
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 1, 2, [4, 5, 6, 7]),
    ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 1, 2, [1]),
    ({"CUDA_VISIBLE_DEVICES": "2,3"}, 0, 1, [0, 1]),
    ({"CUDA_VISIBLE_DEVICES": "3"}, 3, 4, [0]),  # the launcher, or a script under it, has dealt them
    ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, 1, 2, [0, 1]),
    ({"CUDA_VISIBLE_DEVICES": ""}, 1, 2, None),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, 1, 2, None),
    ({"CUDA_VISIBLE_DEVICES": "0,1,2", "JAX_PLATFORMS": "cpu"}, 1, 2, None),
])  # fmt: skip
def test_processes_on_one_host_divide_its_gpus(
    env: dict[str, str], local_rank: int, local_size: int, gpus: list[int] | None, environ: dict[str, str]
) -> None:
    environ |= env
    assert local_gpus(place(local_rank, local_size), Config()) == gpus
    assert local_gpus(place(local_rank, local_size), Config(platform="cpu")) is None


@pytest.mark.parametrize("env", [
    {"CUDA_VISIBLE_DEVICES": "0,1,2"},
    {"CUDA_VISIBLE_DEVICES": "0", "TORCHELASTIC_RUN_ID": "x"},  # torchrun deals none: both would take this one
])  # fmt: skip
def test_gpus_that_cannot_be_divided_equally_are_refused(env: dict[str, str], environ: dict[str, str]) -> None:
    environ |= env
    with pytest.raises(InputError, match=r"2 processes on .* cannot share its \d GPUs equally") as refused:
        local_gpus(place(0, 2), Config())
    assert ("for each" in str(refused.value)) == ("TORCHELASTIC_RUN_ID" not in env)  # it would be refused again
    assert local_gpus(place(0, 2), Config(platform="cpu")) is None  # none is needed, so none is refused


def test_addresses_may_be_of_ipv6() -> None:
    assert split_address("[fe80::1]:80") == ("fe80::1", 80)
    assert split_address("host:80") == ("host", 80)


@pytest.mark.parametrize("address", ["node0:65536", "node0:70000", "node0:0", "node0:-1", "node0:", "node0", ":80"])
@pytest.mark.parametrize("process", [0, 1])
def test_an_address_without_a_port_that_can_be(address: str, process: int) -> None:
    with pytest.raises(InputError, match=f"^the coordinator's address {address} is not HOST:PORT, with a port from"):
        join(Place(address, 2, process), Config())


def test_a_port_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 2)
    monkeypatch.setattr("distmlp.cluster.place.time.monotonic", lambda: next(clock))  # it may be free in some seconds
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} cannot be used \(Address already in use\): give another"):
            join(Place(f"127.0.0.1:{port}", 2, 0), Config())


def test_joining_gives_the_signal_back_that_jax_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_check_port", lambda port: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **settings: signal.signal(signal.SIGTERM, print))
    before = signal.getsignal(signal.SIGTERM)
    join(Place("localhost:1", 2, 0), Config())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_that_joins_leaves_the_signals_to_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_check_port", lambda port: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **settings: None)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(join, Place("localhost:1", 2, 0), Config()).result()


def test_giving_up_is_said_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr("distmlp.cluster.place.os._exit", ends.append)
    places._give_up("not all came")
    assert (capsys.readouterr().err, ends) == ("distmlp: error: not all came\n", [2])


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (3, False), (138, True), (143, False)])
def test_the_batch_job_queues_again_when_its_time_is_up_only(code: int, again: bool, tmp_path: Path) -> None:
    """138: SIGUSR1, which Slurm is asked to send then. With made-up commands; drills/launchers.py has real ones."""
    for name, text in (("srun", f"exit {code}"), ("scontrol", 'echo "$@" > asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = REPOSITORY / "configs" / "slurm.sbatch"
    assert "#SBATCH --signal=USR1@60" in script.read_text()
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    assert subprocess.run(["bash", script], env=env, cwd=tmp_path, check=False).returncode == code
    assert (tmp_path / "asked").exists() == again
    assert not again or (tmp_path / "asked").read_text() == "requeue 7\n"
