"""Which of how many processes this one is: from the flags, or from the launcher's environment."""

import os
import re
import socket
from typing import NamedTuple

from jax._src.clusters import ClusterEnv

from distmlp.config import Config
from distmlp.errors import InputError, one_line

_JOB_NAMES = {"COORDINATOR_PORT", "NUM_PROCESSES", "PROCESS_ID"}
_EXPLICITLY = "give --coordinator_address, --num_processes and --process_id"


class Place(NamedTuple):
    """One process among all, and among those on its host."""

    coordinator: str  # HOST:PORT, where process 0 listens
    processes: int
    process: int
    local_rank: int
    local_size: int

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} on {socket.gethostname()}"


def find_place(config: Config) -> Place | None:
    """The flags' word, else torchrun's, Kubeflow's, or what jax detects: Open MPI, Slurm, TPU; None: one process.

    Raises:
      InputError: the environment speaks of several processes but does not say how to find them.
    """
    env = os.environ
    if config.coordinator_address:
        # Without a launcher nothing says how processes share a host; each is taken to be alone on its own.
        return Place(config.coordinator_address, config.num_processes, config.process_id, 0, 1)
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
        place = Place(address, _number("NUM_PROCESSES"), _number("PROCESS_ID"), 0, 1)
    elif _number("OMPI_COMM_WORLD_SIZE", 1) > 1:
        place = _open_mpi(_number("OMPI_COMM_WORLD_LOCAL_RANK"), _number("OMPI_COMM_WORLD_LOCAL_SIZE"))
    elif _number("SLURM_STEP_NUM_TASKS", 1) > 1:
        # 2(x3),1: two tasks on each of three nodes, one on the fourth
        tasks = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
                 for _ in range(int(times or 1))]
        node = _number("SLURM_NODEID")
        place = _as_jax_says("Slurm", config, _number("SLURM_LOCALID"), tasks[node] if node < len(tasks) else 1)
    elif "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        place = _as_jax_says("Kubernetes (jax needs the package kubernetes)", config, 0, 1)
    elif "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        place = _as_jax_says("the TPU pod", config, 0, 1)
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


def _open_mpi(local_rank: int, local_size: int) -> Place:
    env = os.environ
    rank, size = _number("OMPI_COMM_WORLD_RANK"), _number("OMPI_COMM_WORLD_SIZE")
    if address := env.get("JAX_COORDINATOR_ADDRESS"):
        return Place(address, size, rank, local_rank, local_size)
    if "OMPI_MCA_orte_hnp_uri" not in env:  # Open MPI 5 no longer says where mpirun runs
        raise InputError("this Open MPI does not say where process 0 is: add "
                         "-x JAX_COORDINATOR_ADDRESS=HOST:PORT to mpirun's arguments, with process 0's host")
    return _as_jax_says("Open MPI", None, local_rank, local_size)


def _as_jax_says(name: str, config: Config | None, local_rank: int, local_size: int) -> Place:
    """Whatever jax detects in the environment of `name`."""
    seconds = int(config.startup_seconds) if config else None
    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            given, None, None, None, None, seconds
        )
    except Exception as error:  # from variables that are missing to web services that do not answer
        raise InputError(f"{name} is only half configured ({type(error).__name__}: {one_line(error)}): "
                         f"mend it, or {_EXPLICITLY}") from None
    if address is None or processes is None or process is None:
        raise InputError(f"{name} is only half configured, jax does not recognize it: mend it, or {_EXPLICITLY}")
    return Place(address, processes, process, local_rank, local_size)


def _refuse_leftovers() -> None:
    """Raises InputError for signs of a launcher whose processes would each train alone."""
    env = os.environ
    for name in ("WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS"):
        if _number(name, 1) > 1:
            remedy = "start with srun" if name == "SLURM_NTASKS" else "start with torchrun, srun or Open MPI's mpirun"
            raise InputError(f"{name}={env[name]} speaks of several processes, but the variables to find them by are "
                             f"not set: {remedy}, or {_EXPLICITLY}, or unset {name} to train in one process")
    if "JAX_COORDINATOR_ADDRESS" in env:
        raise InputError(f"JAX_COORDINATOR_ADDRESS is set, but which process this is is not: {_EXPLICITLY}")
