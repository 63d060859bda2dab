"""Where the time of two processes on one machine goes, in seconds per epoch of the tutorial's MNIST: distmlp under
torchrun, and beside it two processes that do nothing but a step's matrix products, nothing but send one another a
gradient over TCP, or the two in turn. No exchange by TCP can be faster than that.

    python benchmarks/two_processes.py
"""

import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import products
from harness import Contestant, Numbers, Work, Worker
from ours import CONFIGS


def turns(work: Work) -> Contestant:
    """Contestant: this process and another, in step. work: batch_size (of each), steps, computes, sends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        multiprocessing.get_context("spawn").Process(target=_other, args=(address, work), daemon=True).start()
        connection, _ = server.accept()
    yield from _epochs(connection, work)


def _other(address: tuple[str, int], work: Work) -> None:
    for _ in _epochs(socket.create_connection(address), work):
        pass


def _epochs(connection: socket.socket, work: Work) -> Iterator[Numbers]:
    import jax

    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    values, weights = jax.device_put(products.arrays(work["batch_size"]))
    shapes, compiled = {matrix.shape for matrix in weights}, jax.jit(products.products)
    exchange = _exchange(connection, sum(matrix.nbytes for matrix in weights))

    def gradients() -> list[np.ndarray]:
        results = jax.block_until_ready(compiled(values, weights))
        return [np.asarray(result) for result in results if result.shape in shapes]

    newest, ready = gradients(), False
    while True:
        _meet(connection)
        start = time.perf_counter()
        for _ in range(work["steps"]):
            if work["computes"]:
                newest = gradients()
            if work["sends"]:
                exchange(newest)
        _meet(connection)
        yield {"seconds": time.perf_counter() - start} if ready else {}
        ready = True


def _meet(connection: socket.socket) -> None:
    connection.sendall(b"m")
    if not connection.recv(1):
        raise SystemExit  # the other has ended


def _exchange(connection: socket.socket, size: int) -> Any:
    """A function that sends arrays of `size` bytes and receives as many, at the same time."""
    outgoing: queue.SimpleQueue[list[np.ndarray]] = queue.SimpleQueue()
    sent: queue.SimpleQueue[None] = queue.SimpleQueue()
    incoming = memoryview(bytearray(size))

    def send() -> None:
        while True:
            for array in outgoing.get():
                connection.sendall(memoryview(array).cast("B"))
            sent.put(None)

    def exchange(arrays: list[np.ndarray]) -> None:
        outgoing.put(arrays)
        received = 0
        while received < size:
            received += connection.recv_into(incoming[received:])
        sent.get()

    threading.Thread(target=send, daemon=True).start()
    return exchange


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7)
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}", "--noeval_train"]
    work = {"batch_size": 64, "steps": 20 if args.quick else 469}
    workers = [
        Worker("distmlp, two processes", "ours:two_processes", {"flags": flags, "epochs": 2 if args.quick else 4}),
        *(Worker(name, "two_processes:turns", work | {"computes": computes, "sends": sends})
          for name, computes, sends in (("products and exchange in turn", True, True),
                                        ("products alone, in both processes at once", True, False),
                                        ("exchange alone", False, True))),
    ]
    results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [[name, harness.spread([row["seconds"] for row in measured]),
             harness.spread(harness.ratios(results, name, workers[0].name))] for name, measured in results.items()]
    table = harness.table(["", "seconds per epoch", "times the first row"], rows)
    harness.report(args, "Two processes", [table], results)


if __name__ == "__main__":
    main()
