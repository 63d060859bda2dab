"""Which of how many processes this one is, by flags or the launcher's environment; finding and joining the others."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv

from distmlp import machine
from distmlp.config import Config
from distmlp.errors import InputError, JoinError, one_line

_JOB_NAMES = {"COORDINATOR_PORT", "NUM_PROCESSES", "PROCESS_ID"}
_EXPLICITLY = "give --coordinator_address, --num_processes and --process_id"


class Place(NamedTuple):
    """One process among all, and among those on its host."""

    coordinator: str  # HOST:PORT, where process 0 listens
    processes: int
    process: int
    local_rank: int = 0  # where nothing says how processes share a host, each is taken to be alone on its own
    local_size: int = 1

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} on {socket.gethostname()}"


def find_place(config: Config) -> Place | None:
    """This process's place by the flags, else by torchrun, Kubeflow or what jax detects (Slurm, TPU, ...); None: alone.
    InputError: the environment speaks of several processes but does not say how to find them.
    """
    env = os.environ
    if config.coordinator_address:
        return Place(config.coordinator_address, config.num_processes, config.process_id)
    torchrun = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if not torchrun:
        # Where torchrun's agent keeps its own store at MASTER_PORT, the next port is jax's.
        port = _number("MASTER_PORT") + (env.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
        local = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
        place = Place(f"{env['MASTER_ADDR']}:{port}", _number("WORLD_SIZE"), _number("RANK"), *local)
    elif "TORCHELASTIC_RUN_ID" in env:
        raise InputError(f"{', '.join(torchrun)} of torchrun's variables is not set: start with torchrun, "
                         f"or {_EXPLICITLY}")
    elif "COORDINATOR_ADDRESS" in env and _JOB_NAMES & env.keys():  # of Kubeflow's JAXJob, and configs/kubernetes.yaml
        address = f"{env['COORDINATOR_ADDRESS']}:{_number('COORDINATOR_PORT')}"
        place = Place(address, _number("NUM_PROCESSES"), _number("PROCESS_ID"))
    elif (size := _number("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        rank, address = _number("OMPI_COMM_WORLD_RANK"), env.get("JAX_COORDINATOR_ADDRESS", "")
        local = _number("OMPI_COMM_WORLD_LOCAL_RANK"), _number("OMPI_COMM_WORLD_LOCAL_SIZE")
        if not address and "OMPI_MCA_orte_hnp_uri" not in env:  # Open MPI 5 no longer says where mpirun runs
            raise InputError("this Open MPI does not say where process 0 is: add "
                             "-x JAX_COORDINATOR_ADDRESS=HOST:PORT to mpirun's arguments, with process 0's host")
        place = Place(address, size, rank, *local) if address else _as_jax_says("Open MPI", config, *local)
    elif _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        # 2(x3),1: two tasks on each of three nodes, one on the fourth
        tasks = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
                 for _ in range(int(times or 1))]
        node = _number("SLURM_NODEID")
        place = _as_jax_says("Slurm", config, _number("SLURM_LOCALID"), tasks[node] if node < len(tasks) else 1)
    elif "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        place = _as_jax_says("Kubernetes (jax needs the package kubernetes)", config)
    elif "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        place = _as_jax_says("the TPU pod", config)
    else:
        _refuse_leftovers()
        return None
    if not 0 <= place.process < place.processes:
        raise InputError(f"the launcher says process {place.process} of {place.processes}, which cannot be: "
                         f"mend its variables, or {_EXPLICITLY}")
    return place if place.processes > 1 else None


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, default)
    try:
        return int(text)  # type: ignore[arg-type] # None is answered below
    except (TypeError, ValueError):
        state = "is not set" if text is None else f"is {text!r}, not a number"
        raise InputError(f"{name} {state}, though the launcher's other variables speak of several processes: "
                         f"mend it, or {_EXPLICITLY}") from None


def _as_jax_says(name: str, config: Config, local_rank: int = 0, local_size: int = 1) -> Place:
    """What jax detects in the environment of `name`."""
    reason = ", jax does not recognize it"
    try:
        address, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(config.startup_seconds))
        if address is not None and processes is not None and process is not None:
            return Place(address, processes, process, local_rank, local_size)
    except Exception as error:  # from variables that are missing to web services that do not answer
        reason = f" ({type(error).__name__}: {one_line(error)})"
    raise InputError(f"{name} is only half configured{reason}: mend it, or {_EXPLICITLY}")


def _refuse_leftovers() -> None:
    """Raises InputError for signs of a launcher whose processes would each train alone."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS"):
        if _number(name, 1) > 1:
            remedy = "start with srun" if name == "SLURM_NTASKS" else "start with torchrun, srun or Open MPI's mpirun"
            raise InputError(f"{name}={os.environ[name]} speaks of several processes, but the variables to find them "
                             f"by are not set: {remedy}, or {_EXPLICITLY}, or unset {name} to train in one process")
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        raise InputError(f"JAX_COORDINATOR_ADDRESS is set, but which process this is is not: {_EXPLICITLY}")


def join(place: Place, config: Config) -> None:
    """Starts jax.distributed, with checks of this file's own: jax's would end the process by a signal and say nothing.
    If others do not come in time, it says so and ends this process; all else that goes wrong is an InputError.
    """
    deadline, waited = time.monotonic() + config.startup_seconds, f"Waited --startup_seconds={config.startup_seconds:g}"
    address = split_address(place.coordinator)
    if place.process == 0:
        _check_port(address[1])
    elif error := _keep_trying(lambda: socket.create_connection(address, timeout=2).close(), deadline):
        raise JoinError(f"{place} cannot reach the coordinator at {place.coordinator} ({error}): is process 0 running, "
                        f"and the port open? {waited}")
    late = f"{place} is at {place.coordinator}, but not all the others came: is each of them running, with this address"
    timer = threading.Timer(deadline - time.monotonic(), _give_up, [f"{late}? {waited}"])
    timer.daemon = True
    timer.start()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process, local_device_ids=local_gpus(place, config),
            cluster_detection_method="deactivate",  # else jax would take one GPU per process
            initialization_timeout=int(config.startup_seconds) + 60, heartbeat_timeout_seconds=config.heartbeat_seconds,
        )  # fmt: skip
    except RuntimeError as error:
        raise JoinError(f"{place} could not join the others at {place.coordinator} ({one_line(error, 200)})") from None
    finally:
        timer.cancel()
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # jax has taken it; run/signals.py asks for a common stop instead


def local_gpus(place: Place, config: Config) -> list[int] | None:
    """This process's equal part of the host's GPUs, or all that it sees where the launcher has dealt them already."""
    env = os.environ
    if "cpu" in (config.platform, env.get("JAX_PLATFORMS")):
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES")
    named = [name for name in (visible or "").split(",") if name not in ("", "-1")]
    count = machine.nvidia_cards() if visible is None else len(named)
    per_task = {"SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"} & env.keys()
    if not count or per_task or (count < place.local_size and "TORCHELASTIC_RUN_ID" not in env):
        return list(range(count)) or None
    if count % place.local_size:
        deal = "" if "TORCHELASTIC_RUN_ID" in env else ", or set CUDA_VISIBLE_DEVICES for each"
        raise InputError(f"{place.local_size} processes on {socket.gethostname()} cannot share its {count} GPUs "
                         f"equally: start as many as divide them{deal}")
    part = count // place.local_size
    return list(range(place.local_rank * part, (place.local_rank + 1) * part))


def own_gpus(place: Place | None, config: Config) -> dict[str, str]:
    """JAX's settings by which this process, which does not join the others, takes its part of the host's GPUs."""
    gpus = None if place is None else local_gpus(place, config)
    return {} if gpus is None else {"jax_cuda_visible_devices": ",".join(map(str, gpus))}


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT as a pair; raises InputError for what is none."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 1 <= int(port) <= 65535):
        raise InputError(f"the coordinator's address {address} is not HOST:PORT, with a port from 1 to 65535: give "
                         "another in --coordinator_address, or to the launcher")
    return host.strip("[]"), int(port)


def _check_port(port: int) -> None:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + 5  # before a restart, the last process 0 may still be on its way out
        if error := _keep_trying(lambda: probe.bind(("", port)), deadline):
            raise InputError(f"the coordinator's port {port} cannot be used ({error.strerror}): "
                             "give another port in --coordinator_address, or to the launcher")


def _keep_trying(act: Callable[[], object], deadline: float) -> OSError | None:
    """Calls `act` until it succeeds; its last error once the deadline has passed."""
    while True:
        try:
            act()
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return error
        time.sleep(0.2)


def _give_up(text: str) -> None:
    print(f"distmlp: error: {text}", file=sys.stderr, flush=True)
    os._exit(2)
