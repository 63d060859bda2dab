"""train(config): steps are made, and what is due after them is logged, saved, or both."""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

from distmlp import training
from distmlp.account import Account
from distmlp.cluster.group import Group
from distmlp.config import FROM_PYTHON, Config, resolve_paths
from distmlp.data import datasets, given
from distmlp.errors import DivergedError, InputError, printable, remark
from distmlp.parallel import backend
from distmlp.parallel.layout import make_layouts
from distmlp.progress import Line, Progress, Reached
from distmlp.run.log import describe, header, versions
from distmlp.training import OnLine, Program, Result

if TYPE_CHECKING:  # imports Orbax: only where there is a folder, and while something compiles
    from distmlp.run.keeping import Keeping

__all__ = ["Result", "train"]


def train(
    config: Config, train_set: Any = None, test_set: Any = None, validation_set: Any = None,
    on_line: OnLine | None = None,
) -> Result:
    """Trains as `config` says, or goes on with the run that config.workdir holds; the same as the command line.

    Args:
      config: the run.
      train_set: data to use instead of config.dataset: arrays (x, y), also tensors or frames, or (x, y, weights), where
        weights [N] say how much each example counts in the loss; or a map-style Dataset of pairs or dicts.
      test_set: the same; evaluation ignores weights.
      validation_set: the same.
      on_line: is called in the first process with each line of metrics, a dict, once it is written. If it returns True,
        the run ends there, in all processes: the state is saved, no final line is written, and the same call goes on
        from there. An exception ends the run, too, once the state is saved. In a run with a folder it has to return
        within config.stall_seconds, as time in it counts as a stall.

    With config.workdir=None nothing is written, and signals do what they did before. Otherwise SIGTERM, SIGINT, SIGHUP,
    SIGUSR1 and SIGUSR2 ask it to stop while it runs; the handlers that were there are put back. Before JAX's backend
    starts, it may set PJRT_NPROC in the environment, for good (backend.prepared). With several processes it joins
    jax.distributed, and an uncaught exception ends the program without waiting for others.

    Raises:
      InputError: something given is wrong; nothing was changed.
      DivergedError: a value became NaN or infinite, or the devices no longer agree.
      WriteError: a checkpoint or another file could not be written.
      ProcessEnded: another one of several processes ended.
      Interrupted: a signal came, and the state was saved; a KeyboardInterrupt.
      KeyboardInterrupt: SIGINT came twice.
    """
    if train_set is not None:
        config = dataclasses.replace(config, dataset=FROM_PYTHON + given.title(train_set))
    return run(config, lambda config: datasets.load(config, train_set, test_set, validation_set), on_line)


def run(
    config: Config, load: Callable[[Config], datasets.Data], on_line: OnLine | None = None, silent: bool = False,
    began: float | None = None, group: Group | None = None,
) -> Result:
    """`train`, with the data that `load` reads for the config with its paths resolved; `silent`: it prints nothing.

    `began` is when the start began of which goodput tells, by time.monotonic; None: now. `group`: the processes that
    train, where it is not for the launcher to say.
    """
    started = time.monotonic()
    account = Account(began)
    config.validate()
    shared = config.settings("experiment", "length", "conduct")
    config = resolve_paths(config)
    if on_line is not None and not callable(on_line):
        raise InputError(f"on_line must be a function of a line, not {type(on_line).__name__}")
    with backend.prepared(config):
        group = group or Group.join(config)
        with group.together():
            if group.several and not config.workdir:
                raise InputError("--workdir must be given with several processes: a folder that all of them see")
            facts = {f"--{name}": value for name, value in shared.items()} | versions()
            group.agree(facts | {"on_line": "given" if on_line else "not given"})
            layouts = make_layouts(config)
            data = load(config)
            group.agree({"the shape of the data": data.sizes})
            # Where one process's machine has no room for the data set, all send batches.
            memory = min(group.exchange(layouts[0].device_memory))
            # Compiling takes a thread's time, but little of Python's: what comes before the first step goes on beside.
            with (
                closing(training.fitting(config, data, layouts, memory, group.lead)) as parts,
                ThreadPoolExecutor(1) as compiler,
            ):  # fmt: skip
                compiled = compiler.submit(parts.compile)
                if config.workdir is None:
                    compiled.result()
                    return _in_memory(config, data, parts, on_line)
                from distmlp.run.keeping import Keeping
                from distmlp.run.store import quiet

                with quiet(), Keeping(config, data, parts, group, account, silent) as kept:
                    return _in_folder(kept, compiled, started, account, on_line)


def _in_memory(config: Config, data: datasets.Data, parts: Program, on_line: OnLine | None) -> Result:
    """The run without a folder, and what it prints."""
    for text in (*data.remarks, *datasets.training_remarks(config, data)):
        remark(text)
    if text := data.description():
        print(printable(text))
    print(header(config, data.validation is not None))

    def show(line: Line) -> object:
        if not line.get("final"):
            print(describe(line))
        return on_line and on_line(line)

    return training.in_memory(parts, parts.initial_state(parts.scaling()), show)


def _in_folder(
    kept: "Keeping", compiled: "Future[None]", started: float, account: Account, on_line: OnLine | None
) -> Result:
    """The run of a folder: goes on from its newest checkpoint, and keeps lines and states there."""
    parts, group = kept.parts, kept.group
    with account.of("restore"):
        restored = kept.restored()
    if restored is None:
        scaling = group.computed_by_first(parts.scaling, parts.state.scaling)
        restored = parts.initial_state(scaling), Reached()
    state, reached = restored
    lines = group.decide(kept.log.found.values)  # what depends on the lines is the same in all processes
    progress = Progress(parts.cadence, reached, lines, started, kept.ledger.loss, account)
    if progress.finished:
        if damage := kept.log.found.damage:
            kept.log.warn(damage)
        kept.log.say(f"{kept.workdir.path} holds this run finished, at step {progress.step}: nothing to do")
        return Result(parts.held, state, progress.history)
    kept.begin(progress)
    with account.of("compile"):
        compiled.result()
        group.barrier()
        parts.digest.check(state, progress.step)  # compiles it, too
    account.to("other")

    def poll() -> None:
        kept.watchdog.beat()
        kept.stop_if_signalled(state, progress)

    try:
        with kept.watchdog:
            for moment in training.advance(parts, state, progress, poll):
                state = moment.state
                kept.watchdog.beat()
                if moment.steps is not None:
                    kept.record(moment.steps, moment.digests, progress)
                    if kept.save_is_due(moment.steps, progress):  # before the evaluation, which may fail
                        kept.save(state, progress)
                    kept.before_line(progress)
                elif moment.line is not None:
                    kept.compare_processes(moment.line, state, progress)
                    kept.log.line(moment.line)
                    if progress.at_best or progress.at_end:
                        kept.save(state, progress)
                    if on_line and kept.ends(on_line, state, progress):
                        return Result(parts.held, state, progress.history)
                else:
                    kept.stop_if_signalled(state, progress)
                    kept.profile(progress)
            kept.finish(state, progress, poll)
            if on_line:
                kept.ends(on_line, state, progress)
    except DivergedError as error:
        raise type(error)(f"{error}; {kept.left_after(error)}") from None
    return Result(parts.held, state, progress.history)
