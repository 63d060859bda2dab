"""train(config): the only control flow. Advance, settle the losses, log what is due, save what is due."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from distmlp import model
from distmlp.cluster import ending, group, rank
from distmlp.config import FROM_PYTHON, Config, resolve_paths
from distmlp.data import datasets, given
from distmlp.data.scaling import input_scaling
from distmlp.errors import DivergedError, InputError, Interrupted
from distmlp.parallel import backend, program
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.mesh import Layout, make_layout
from distmlp.parallel.step import State, initial_state
from distmlp.run import banner, metrics
from distmlp.run.cadence import Cadence
from distmlp.run.checkpoint import Checkpoints
from distmlp.run.damage import quiet
from distmlp.run.ledger import Ledger
from distmlp.run.measures import Measures
from distmlp.run.profile import Profile
from distmlp.run.recovery import Recovery
from distmlp.run.signals import Signals, Watchdog
from distmlp.run.totals import Losses, Totals
from distmlp.run.workdir import Workdir

_SECONDS_POINT = 16  # with several processes, dispatches between two questions whether the time to save has come


class Result(NamedTuple):
    """What `train` returns: the parameters on the devices, and the lines of metrics.jsonl."""

    params: model.Params
    history: list[metrics.Line]


def train(config: Config, train_set: Any = None, test_set: Any = None, validation_set: Any = None) -> Result:
    """Trains as `config` says, or goes on with the run that config.workdir holds; the same as the command line.

    Args:
      config: the run.
      train_set: data to use instead of config.dataset: a pair of arrays (x, y), also tensors or frames; or a map-style
        Dataset of pairs or dicts.
      test_set: the same.
      validation_set: the same.

    While it runs, SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 ask it to stop; the handlers that were there are put
    back. Before JAX's backend starts, it may set PJRT_NPROC in the environment, for good (backend.prepared). With
    several processes it joins jax.distributed, and an uncaught exception ends the program without waiting for others.

    Raises:
      InputError: something given is wrong; nothing was changed.
      DivergedError: a value became NaN or infinite, or the devices no longer agree.
      WriteError: a checkpoint or another file could not be written.
      ProcessEnded: another one of several processes ended.
      Interrupted: a signal came, and the state was saved; a KeyboardInterrupt.
      KeyboardInterrupt: SIGINT came twice.
    """
    started = time.monotonic()
    config.validate()
    if train_set is not None:
        config = replace(config, dataset=FROM_PYTHON + given.title(train_set))
    with backend.prepared(config), ending.together():
        return _train(config, started, train_set, test_set, validation_set)


def _train(config: Config, started: float, *given_sets: Any) -> Result:
    group.start(config)
    backend.check_platform(config)
    shared = config.settings("experiment", "length", "conduct")
    group.agree({f"--{name}": value for name, value in shared.items()} | banner.versions())
    config = resolve_paths(config)
    data = datasets.load(config, *given_sets)
    if config.patience and data.validation is None:
        raise InputError(f"--patience={config.patience} goes by a validation set: give --validation_fraction=0.1, or "
                         "x_val and y_val beside the training set")
    # Before the backend starts, which waits for all: here they learn of one that has no data.
    group.agree({"the shape of the data": [len(data.train), len(data.test), data.num_features, data.num_classes]})
    layout = make_layout(config)
    parts = program.build(config, data, layout, _agreed_placement(config, data, layout))
    with quiet(), closing(Workdir(config)) as workdir, Trainer(config, data, parts, workdir, started) as trainer:
        return trainer.run()


def _agreed_placement(config: Config, data: datasets.Data, layout: Layout) -> tuple[str, str]:
    """Each process looks at its own machine's memory: where one has no room, all send batches."""
    choices = group.exchange(program.choose_placement(config, data.train, layout))
    where, why = next((choice for choice in choices if choice[0] == "host"), choices[0])
    return where, why


class Trainer:
    """One run in its workdir."""

    def __init__(
        self, config: Config, data: datasets.Data, parts: program.Program, workdir: Workdir, started: float
    ) -> None:
        self.config, self.data, self.parts, self.workdir, self.started = config, data, parts, workdir, started
        self.feed, self.step = parts.feed, 0
        self.cadence = Cadence(config, parts.loader.order.steps_per_epoch)
        self.metrics = metrics.Metrics(workdir.path / "metrics.jsonl", quiet=not rank.is_first())
        self.measures = Measures(config, data, parts.evaluator, self._poll)
        self.ledger = Ledger(workdir.path, config.ledger, len(data.train), self.cadence.per_epoch)
        self.feed.fetched = self.ledger.fetched
        self.checkpoints = Checkpoints(workdir.path, parts.digest, config.keep_checkpoints)
        self.recovery = Recovery(config, data, parts.layout.num_shards, self.checkpoints)
        self.signals, self.watchdog = Signals(group.request_stop), Watchdog(config.stall_seconds)
        # Compiling takes a thread's time, but little of Python's: what comes before the first step goes on beside it.
        self.compiler = ThreadPoolExecutor(1)
        self.compiled = self.compiler.submit(self._compile)
        self.several, self.dispatches, self.begun = rank.several(), 0, False
        self.open = ExitStack()

    def __enter__(self) -> "Trainer":
        self.open.enter_context(self.signals)
        self.open.callback(self.metrics.close)
        self.open.callback(self.compiler.shutdown)
        self.open.callback(self.parts.loader.close)
        self.open.callback(self.parts.evaluator.close)
        self.profile = self.open.enter_context(Profile(self.cadence.profile, self.workdir.path / "profile"))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self.begun:
            self.workdir.note(end=self.step, reason=f"{type(error).__name__}: {error}" if error else "")
            if error and rank.is_first():
                metrics.append_log(self.workdir.path, f"distmlp: {error}")
        with self.open:
            agreed = error is None or isinstance(error, Interrupted)
            if agreed or not self.several:  # else the others may be gone, or busy
                self.checkpoints.close()

    def run(self) -> Result:
        restored = self.recovery.restore(self.parts.state, self.cadence.total_steps)
        self.state, self.step, self.totals = restored or (self._initial_state(), 0, Totals())
        self.losses = Losses(self.totals, self.ledger.loss)
        self.metrics.history = group.decide(self.metrics.history)  # what depends on it is then the same everywhere
        if self.metrics.finished_at == self.step and self._at_end():
            self.metrics.say(f"{self.workdir.path} holds this run finished, at step {self.step}: nothing to do")
            return Result(self.state.params, self.metrics.history)
        self._begin()
        try:
            with self.watchdog:
                self._train()
                return self._finish()
        except DivergedError as error:
            raise type(error)(f"{error}; {self.recovery.last_checkpoint()}") from None

    def _initial_state(self) -> State:
        scaling = group.computed_by_first(lambda: input_scaling(self.config, self.data), self.parts.state.scaling)
        return initial_state(self.parts.layout, self.parts.sizes, self.config.seed, self.parts.optimizer, scaling)

    def _compile(self) -> None:
        with backend.pinned(self.config):  # a thread's own
            self.feed.compile(self.parts.state)

    def _begin(self) -> None:
        """Opens the run's files at this step, says what will be trained, and waits until all is compiled."""
        self.workdir.write_run_flags(self.config)
        self.metrics.start(self.step, self.cadence.evaluation(self.step), self.config)
        self.ledger.start(self.step)
        self.metrics.say(banner.text(self.config, self.data, self.parts, self.workdir.path))
        devices = self.parts.layout.devices
        self.workdir.note(start=self.step, hosts=group.hosts(), processes=jax.process_count(),
                          devices=f"{len(devices)} x {devices[0].device_kind}")
        self.begun = True
        if self.step:
            self.metrics.say(f"resuming after step {self.step} of {self.cadence.total_steps}")
        if 0 < self.config.schedule_steps < self.cadence.total_steps:
            metrics.warn(f"the learning rate is 0 from step {self.config.schedule_steps} on, where --schedule_steps "
                         f"ends; this run has {self.cadence.total_steps} steps", self.workdir.path)
        self.metrics.say(metrics.header(self.data.validation is not None))
        self.compiled.result()
        group.barrier()
        self.parts.digest.check(self.state, self.step)  # compiles it, too

    def _train(self) -> None:
        if self.metrics.logged(self.step):
            self.totals.reset(self.cadence.epoch_end(self.step))  # a checkpoint has the sums from before its line
        elif self.step and self.cadence.line(self.step):
            self._log()
        self.losses.start_clock()
        while not self._at_end():
            self._stop_if_signalled()
            self.profile.at(self.step, self.losses)
            with jax.transfer_guard("disallow"):
                self.state, losses, counts = self.feed.advance(self.state, self.step, self.cadence.next(self.step))
            self.losses.add(self.step, losses, counts)
            self.step += len(counts)
            self.losses.settle(self.feed.in_flight)
            self.watchdog.beat()
            self.dispatches += 1
            self._show_progress()
            if self.cadence.comparison(self.step):
                self.ledger.digests(self.step, self.parts.digest.check(self.state, self.step))
            if self._save_due():  # before the evaluation, which may fail
                self.losses.settle_all()
                self._save()
            if self.cadence.line(self.step):
                self.losses.settle_all()
                self._log()
                self.losses.start_clock()

    def _at_end(self) -> bool:
        """Whether the last step is done, or --patience is at its end: by metrics.jsonl, so that every start agrees."""
        patient = not self.config.patience or metrics.stale(self.metrics.history) < self.config.patience
        return self.step == self.cadence.total_steps or not patient

    def _stop_if_signalled(self) -> None:
        """Saves and raises if a signal came; the state is always that of a step boundary."""
        signum = group.stop_point(self.signals.received)
        if signum is None:
            return
        self.losses.settle_all()
        self.metrics.close_bar()
        if self.step > self.recovery.saved_step:
            self._save()
        self.checkpoints.wait()
        raise Interrupted(
            signum,
            f"stopped after step {self.step} of {self.cadence.total_steps}; {self.recovery.last_checkpoint()}; the "
            f"same command with --workdir={self.workdir.path} goes on from there",
        )

    def _show_progress(self) -> None:
        epoch, step = divmod(self.step - 1, self.cadence.per_epoch)
        position = min((step + 1) * self.config.batch_size, len(self.data.train))
        self.metrics.bar(epoch + 1, position, len(self.data.train), self.losses.last)

    def _save_due(self) -> bool:
        if self.cadence.save(self.step):
            return True
        asked = self.config.checkpoint_every_seconds > 0 and not (self.several and self.dispatches % _SECONDS_POINT)
        return asked and self.recovery.seconds_passed()

    def _save(self) -> None:
        self._add_seconds()
        self.ledger.flush()
        self.recovery.save(self.state, self.step, self.totals, metrics.best(self.metrics.history)["step"])
        self.watchdog.beat()

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.totals.total_seconds += now - self.started
        self.started = now

    def _log(self) -> None:
        """Evaluates if that is due, and writes the line of this step."""
        epoch_end = self.cadence.epoch_end(self.step)
        line = self._line() | self.totals.line(epoch_end or self.step == self.cadence.total_steps)
        self.metrics.close_bar()
        if self.cadence.evaluation(self.step):
            if self.several and not metrics.best(self.metrics.history)["step"]:
                self.checkpoints.wait()  # one that now finds an error in the test set could not wait with the others
            line |= self.measures.evaluated(self.state)
        self.metrics.log(line)
        self.metrics.say(metrics.describe(line))
        keep = metrics.best(self.metrics.history) is line or self._at_end()
        if keep and self.recovery.saved_step < self.step:
            self._save()
        self.totals.reset(epoch_end)

    def _line(self) -> metrics.Line:
        return {"step": self.step, "epoch": self.step // self.cadence.per_epoch}

    def _poll(self) -> None:
        self.watchdog.beat()
        self.losses.start_clock()  # an evaluation is no training time
        self._stop_if_signalled()

    def _finish(self) -> Result:
        self.checkpoints.wait()
        tested = {} if self.data.validation is None else self.measures.tested(self.state, self._best_state())
        sha256 = params_sha256(self.state.params)
        self._add_seconds()
        self.metrics.log(self._line() | {
            "final": True, "params_sha256": sha256, "total_seconds": self.totals.total_seconds, **tested,
        })
        self.metrics.say(metrics.summary(self.metrics.history, self.workdir.path))
        return Result(self.state.params, self.metrics.history)

    def _best_state(self) -> State | None:
        step = metrics.best(self.metrics.history)["step"]
        best: State | None = self.state if step == self.step else self.checkpoints.intact(step, self.parts.state)
        if best is None:
            metrics.warn(f"checkpoint {step}, the best, cannot be read: its test accuracy is left out",
                         self.workdir.path)
        return best
