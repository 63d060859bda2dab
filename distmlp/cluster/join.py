"""Joining the other processes, with this one's part of the host's GPUs."""

import os
import signal
import socket
import sys
import threading
import time

import jax

from distmlp import machine
from distmlp.cluster.launcher import Place
from distmlp.config import Config
from distmlp.errors import InputError, one_line


def local_gpus(place: Place, config: Config) -> list[int] | None:
    """This process's equal part of the host's GPUs; all that it sees where the launcher has dealt them already.

    Raises:
      InputError: the GPUs cannot be shared equally.
    """
    env = os.environ
    if "cpu" in (config.platform, env.get("JAX_PLATFORMS")):
        return None
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([name for name in visible.split(",") if name and name != "-1"])
    else:
        count = machine.nvidia_cards()
    per_task = {"SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"} & env.keys()
    if not count or per_task or (count < place.local_size and "TORCHELASTIC_RUN_ID" not in env):
        return list(range(count)) or None
    if count % place.local_size:
        raise InputError(f"{place.local_size} processes on {socket.gethostname()} cannot share its {count} GPUs "
                         "equally: start as many as divide them, or set CUDA_VISIBLE_DEVICES for each")
    part = count // place.local_size
    return list(range(place.local_rank * part, (place.local_rank + 1) * part))


def join(place: Place, config: Config) -> None:
    """Starts jax.distributed. jax would end a process by a signal where this raises or says why.

    Raises:
      InputError: the port is taken, or the coordinator cannot be reached.
    """
    deadline = time.monotonic() + config.startup_seconds
    if place.process == 0:
        _check_port(place.coordinator)
    else:
        _check_reachable(place, deadline, config.startup_seconds)
    timer = threading.Timer(deadline - time.monotonic(), _give_up, (place, config.startup_seconds))
    timer.daemon = True
    timer.start()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local_device_ids=local_gpus(place, config),
            cluster_detection_method="deactivate",  # else jax would take one GPU per process
            initialization_timeout=int(config.startup_seconds) + 60,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
        )
    except RuntimeError as error:
        raise InputError(f"{place} could not join the others at {place.coordinator} "
                         f"({one_line(error, 200)})") from None
    finally:
        timer.cancel()
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # jax has taken it; Signals asks it to stop all (group.request_stop)


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT as a pair."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def _check_port(address: str) -> None:
    port = split_address(address)[1]
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for last in [False] * 25 + [True]:  # 5 s: before a restart the last process 0 may still be on its way out
            try:
                return probe.bind(("", port))
            except OSError as error:
                if last:
                    raise InputError(f"the coordinator's port {port} cannot be used ({error.strerror}): "
                                     "give another port in --coordinator_address, or to the launcher") from None
            time.sleep(0.2)


def _check_reachable(place: Place, deadline: float, seconds: float) -> None:
    while True:
        try:
            socket.create_connection(split_address(place.coordinator), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(f"{place} cannot reach the coordinator at {place.coordinator} ({error}): is process "
                                 f"0 running, and the port open? Waited --startup_seconds={seconds:g}") from None
            time.sleep(0.2)


def _give_up(place: Place, seconds: float) -> None:
    print(f"distmlp: error: {place} is at {place.coordinator}, but not all the others came: is each of them running, "
          f"with this address? Waited --startup_seconds={seconds:g}", file=sys.stderr, flush=True)
    os._exit(2)
