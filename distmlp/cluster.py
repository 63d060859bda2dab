"""Several processes: who they are, from the launcher's environment, and how they agree."""

import itertools
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from distmlp.config import Config, InputError, differences


class _Place(NamedTuple):
    """One process among all, and among those on its host; fields are None where jax finds them out."""

    coordinator: str | None
    processes: int | None
    process: int | None
    local_rank: int
    local_size: int


def start(config: Config) -> None:
    """Joins the other processes, if the flags or the launcher's environment say that there are any.

    Flags first, then torchrun's variables, then Slurm, Open MPI and whatever else jax detects; else one process.

    Raises:
      InputError: half a configuration, a port that is taken, a coordinator that cannot be reached.
    """
    place = _find_place(config)
    if place is None or jax.distributed.is_initialized():
        return
    if not config.workdir:
        raise InputError("--workdir must be given with several processes: a folder that all of them see")
    if place.coordinator is not None:
        _check_coordinator(place.coordinator, place.process == 0, config.startup_seconds)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=_local_gpus(place),
        initialization_timeout=int(config.startup_seconds),
        heartbeat_timeout_seconds=config.heartbeat_seconds,
    )


def _find_place(config: Config) -> _Place | None:
    env = os.environ
    if config.coordinator_address:
        # Without a launcher nothing says how processes share a host; each is taken to be alone on its own.
        return _Place(config.coordinator_address, config.num_processes, config.process_id, 0, 1)
    torchrun = {name: env.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if "TORCHELASTIC_RUN_ID" in env or all(torchrun.values()):
        missing = [name for name, value in torchrun.items() if not value]
        if missing:
            raise InputError(f"{', '.join(missing)} of torchrun's variables is not set: start with torchrun, or give "
                             "--coordinator_address, --num_processes and --process_id")
        # MASTER_PORT itself is torchrun's own store's.
        address = f"{env['MASTER_ADDR']}:{int(env['MASTER_PORT']) + 1}"
        local = int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", 1))
        return _Place(address, int(env["WORLD_SIZE"]), int(env["RANK"]), *local)
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in env:
            raise InputError("OMPI_COMM_WORLD_SIZE is set but Open MPI's other variables are not: start with mpirun, "
                             "or give --coordinator_address, --num_processes and --process_id")
        local = int(env["OMPI_COMM_WORLD_LOCAL_RANK"]), int(env["OMPI_COMM_WORLD_LOCAL_SIZE"])
        return _Place(None, None, None, *local)
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # 2(x3),1: two tasks on each of three nodes, one on the fourth
        tasks = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"])
                 for _ in range(int(times or 1))]
        return _Place(None, None, None, int(env["SLURM_LOCALID"]), tasks[int(env["SLURM_NODEID"])])
    if ("KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env) or "TPU_WORKER_HOSTNAMES" in env:
        return _Place(None, None, None, 0, 1)
    return None


def _local_gpus(place: _Place) -> list[int] | None:
    """This process's equal part of the host's GPUs; all that it sees where the launcher has dealt them already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = Path("/proc/driver/nvidia/gpus")
    count = len(visible.split(",")) if visible else len(list(gpus.iterdir())) if gpus.exists() else 0
    if count < place.local_size:
        return list(range(count)) or None
    if count % place.local_size:
        raise InputError(f"{place.local_size} processes on {socket.gethostname()} cannot share its {count} GPUs "
                         "equally: start as many as divide them, or set CUDA_VISIBLE_DEVICES for each")
    part = count // place.local_size
    return list(range(place.local_rank * part, (place.local_rank + 1) * part))


def _check_coordinator(address: str, is_coordinator: bool, seconds: float) -> None:
    """jax ends a process by a signal where the port is taken or nobody answers; this gives a line instead."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + seconds
    if is_coordinator:
        with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise InputError(f"the coordinator's port {port} cannot be used ({error.strerror}): "
                                 "give another port in --coordinator_address, or to the launcher") from None
        return
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(f"the coordinator at {address} cannot be reached ({error}): is process 0 running, "
                                 f"and the port open? Waited --startup_seconds={seconds:g}") from None
            time.sleep(0.2)


def several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def this_process() -> str:
    """How messages name this process."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def agree(facts: dict[str, Any]) -> None:
    """Raises InputError in every process unless all of them hold the same facts (JSON values)."""
    if jax.process_count() == 1:
        return
    mine = json.dumps(facts, sort_keys=True).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(mine))))
    padded = np.frombuffer(mine[:size].ljust(size), np.uint8)
    theirs = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))
    changed = differences(theirs, json.loads(mine))
    odd = [int(i) for i in np.flatnonzero(gather(bool(changed)))]
    if changed:
        raise InputError(f"process {jax.process_index()} differs from process 0 ({'; '.join(changed)}): "
                         "start all with the same flags, data and packages")
    if odd:
        raise InputError(f"process {odd[0]} differs from process 0: start all with the same flags, data and packages")


def hosts() -> list[str]:
    """The names of the hosts, in the order of their first processes; a collective."""
    name = socket.gethostname()
    if jax.process_count() == 1:
        return [name]
    padded = np.frombuffer(name.encode()[:64].ljust(64), np.uint8)
    names = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return list(dict.fromkeys(bytes(row).decode(errors="replace").strip() for row in names))


def gather(value: bool | int) -> np.ndarray:
    """The value in each process, [processes]; a collective."""
    if jax.process_count() == 1:
        return np.array([value])
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(np.int32(value)))


def decide(value: bool) -> bool:
    """Process 0's value, in every process; a collective."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


_stop_points = itertools.count(1)


def stop_point() -> bool:
    """Whether SIGTERM came to any process and this is where all of them stop; all must call it as often."""
    return multihost_utils.reached_preemption_sync_point(next(_stop_points))


def leave(code: int) -> NoReturn:
    """Ends the process. With several, without waiting for the others, who would wait for this one in turn."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and code:
        os._exit(code)
    sys.exit(code)
