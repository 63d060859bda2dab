"""train(config): the only control flow. Advance, settle the losses, log what is due, save what is due."""

import dataclasses
import signal
import sys
import time
from collections import deque
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import banner, cluster, datasets, feed, metrics, model, optim
from distmlp.checkpoint import Checkpoints, Meta
from distmlp.config import Config, InputError, resolve_paths
from distmlp.digest import DivergedError, StateDigest, params_sha256
from distmlp.evaluate import Evaluator
from distmlp.loader import NumpyLoader
from distmlp.mesh import Layout, make_layout, prepare_backend
from distmlp.scaling import input_scaling
from distmlp.signals import Interrupted, Signals, Watchdog
from distmlp.step import State, make_train_step
from distmlp.workdir import Workdir, refuse_differences

_SECONDS_POINT = 16  # with several processes, dispatches between two questions whether the time to save has come


class Result(NamedTuple):
    """What `train` returns: the parameters on the devices, and the lines of metrics.jsonl."""

    params: model.Params
    history: list[metrics.Line]


@dataclasses.dataclass
class Totals:
    """Sums that the log needs; checkpoints carry them, so that a resumed run logs the same numbers."""

    loss: float = 0.0  # summed over the examples since the last line
    examples: int = 0  # since the last line
    epoch_examples: int = 0
    epoch_seconds: float = 0.0
    total_seconds: float = 0.0


def train(config: Config, train_set: Any = None, test_set: Any = None) -> Result:
    """Trains as `config` says, or goes on with the run that config.workdir holds; the same as the command line.

    Args:
      config: the run.
      train_set, test_set: data to use instead of config.dataset: map-style Datasets of (image, label).

    Raises:
      InputError: something given is wrong; nothing was changed.
      DivergedError: a value became NaN or infinite, or the devices no longer agree.
      CheckpointError: a checkpoint could not be written.
      Interrupted: SIGTERM or SIGINT came, and the state was saved.
    """
    started = time.monotonic()
    config.validate()
    config = resolve_paths(config)
    prepare_backend(config)
    cluster.start(config)
    flags = {f"--{name}": value for name, value in config.settings().items() if name != "process_id"}
    cluster.agree(flags | banner.versions())
    data = datasets.load(config, train_set, test_set)
    if config.batch_size > len(data.train):
        raise InputError(f"--batch_size={config.batch_size} is more than the {len(data.train)} training examples: "
                         f"give at most {len(data.train)}")
    layout = make_layout(config)
    with closing(Workdir(config)) as workdir, jax.default_matmul_precision(config.matmul_precision):
        workdir.check_same_run(config)
        with Trainer(config, data, layout, workdir, started) as trainer:
            return trainer.run()


class Trainer:
    """One run in its workdir."""

    def __init__(
        self, config: Config, data: datasets.Data, layout: Layout, workdir: Workdir, started: float
    ) -> None:
        self.config, self.data, self.layout, self.workdir = config, data, layout, workdir
        self.started = started
        self.loader = NumpyLoader(
            data.train, config.batch_size, layout.num_shards, layout.local_shards, config.shuffle, config.seed,
            config.num_workers,
        )
        self.per_epoch = self.loader.steps_per_epoch
        self.total_steps = config.total_steps(self.per_epoch)
        self.sizes = [data.num_features, *config.hidden_sizes, data.num_classes]
        self.optimizer = optim.make(config, self.total_steps)
        self.metrics = metrics.Metrics(workdir.metrics, quiet=not cluster.is_first())
        self.digest = StateDigest(layout)
        self.evaluator = Evaluator(config, layout)
        train_step = make_train_step(config, layout, data.num_classes, self.optimizer)
        where, why = feed.choose_placement(config, data.train, layout)
        self.placement = f"{where} ({why})"
        self.feed: feed.Feed = (
            feed.DeviceFeed(layout, self.loader, train_step, data.train, config.steps_per_dispatch)
            if where == "device" and isinstance(data.train, datasets.ArrayDataset)
            else feed.HostFeed(layout, self.loader, train_step, self.total_steps)
        )
        self.checkpoints = Checkpoints(workdir.path, self.digest, config.keep_checkpoints, self._best_step)
        self.several = jax.process_count() > 1
        self.signals, self.watchdog = Signals(self.several), Watchdog(config.stall_seconds)
        self.state, self.step, self.totals = self._initial_state(), 0, Totals()
        self.saved_step, self.saved_at, self.dispatches = 0, time.monotonic(), 0
        self.clock = time.monotonic()
        # --profile_steps=A:B counts from 1: the profiler runs from step A - 1 completed to step B completed
        self.profile_steps = [max(int(n) - 1 + i, 0) for i, n in enumerate(config.profile_steps.split(":")) if n]
        self.pending: deque[tuple[int, jax.Array, list[int]]] = deque()
        self.last_loss: float | None = None
        self._exit = ExitStack()

    def __enter__(self) -> "Trainer":
        self._exit.callback(self.metrics.close)
        self._exit.callback(self.checkpoints.close)
        self._exit.enter_context(self.signals)
        self._exit.enter_context(self.watchdog)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.several and isinstance(exception[1], Exception):
            self._exit.pop_all()  # closing checkpoints would wait for processes that may be gone
        self._exit.__exit__(*exception)

    def run(self) -> Result:
        self._restore()
        if cluster.decide(self.metrics.finished_at == self.step == self.total_steps):
            self.metrics.say(f"{self.workdir.path} holds this run finished, at step {self.step}: nothing to do")
            return Result(self.state.params, self.metrics.history)
        self.workdir.write_run_flags(self.config)
        self.metrics.start(self.step)
        self.metrics.say(
            banner.text(self.config, self.data, self.layout, self.sizes, self.placement, self.workdir.path)
        )
        if self.step:
            self.metrics.say(f"resuming after step {self.step} of {self.total_steps}")
        self.feed.compile(self.state)
        self.digest.check(self.state, self.step)  # compiles it, too
        self.watchdog.beat()
        self._train()
        return self._finish()

    def _train(self) -> None:
        if self.step and self._log_due():
            if cluster.decide(self.metrics.logged(self.step)):
                self._reset_totals()  # the run was killed after this line, going on from a stop before it
            else:
                self._log()  # the run was stopped between this step and its line
        self.clock = time.monotonic()
        while self.step < self.total_steps:
            self._stop_if_signalled()
            self._profile()
            with jax.transfer_guard("disallow"):
                self.state, losses, counts = self.feed.advance(self.state, self.step, self._next_due())
            losses.copy_to_host_async()
            self.pending.append((self.step, losses, counts))
            self.step += len(counts)
            self._settle(self.feed.in_flight)
            self.dispatches += 1
            self._show_progress()
            if self._log_due():
                self._settle_all()
                self._log()
                self.clock = time.monotonic()
            if self._save_due():
                self._settle_all()
                self._save()
            elif self._every(self.config.check_replicas_every):
                self.digest.check(self.state, self.step)

    def _settle(self, in_flight: int) -> None:
        """Reads the losses of all dispatches but the newest `in_flight`."""
        while len(self.pending) > in_flight:
            first, losses, counts = self.pending.popleft()
            for i, (loss, count) in enumerate(zip(np.atleast_1d(np.asarray(losses)), counts, strict=False)):
                if not np.isfinite(loss):
                    raise DivergedError(f"the loss or a gradient is not finite at step {first + i + 1}: try a lower "
                                        f"--learning_rate or --clip_norm; {self._last_checkpoint()}")
                self.last_loss = float(loss)
                self.totals.loss += self.last_loss * count
                self.totals.examples += count
                self.totals.epoch_examples += count
            self.watchdog.beat()

    def _settle_all(self) -> None:
        """Waits for the devices, and adds the time since the last such moment to the epoch's."""
        self._settle(0)
        now = time.monotonic()
        self.totals.epoch_seconds += now - self.clock
        self.clock = now

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def _next_due(self) -> int:
        """The next step after which something may be due."""
        config = self.config
        intervals = (self.per_epoch, config.eval_every_steps, config.checkpoint_every_steps,
                     config.check_replicas_every)
        profile = [n for n in self.profile_steps if n > self.step]
        return min(self.total_steps, *(self.step - self.step % n + n for n in intervals if n), *profile)

    def _evaluate_due(self) -> bool:
        epoch_end = self._every(self.per_epoch) and self.config.eval_every_epochs > 0
        return (
            self.step == self.total_steps
            or self._every(self.config.eval_every_steps)
            or (epoch_end and self.step // self.per_epoch % self.config.eval_every_epochs == 0)
        )

    def _log_due(self) -> bool:
        return self._every(self.per_epoch) or self._evaluate_due()

    def _save_due(self) -> bool:
        steps, seconds = self.config.checkpoint_every_steps, self.config.checkpoint_every_seconds
        return (
            self.step == self.total_steps
            or self._every(steps)
            or (seconds > 0 and self._seconds_passed(seconds))
            or (not steps and not seconds and self._evaluate_due())
        )

    def _profile(self) -> None:
        """Starts the profiler before the first and stops it after the last of --profile_steps."""
        if self.profile_steps and self.step == self.profile_steps[0]:
            self._settle(0)
            jax.profiler.start_trace(str(self.workdir.path / "profile"))
            self._exit.callback(self._stop_profile)
        elif self.profile_steps and self.step == self.profile_steps[1]:
            self._settle(0)
            self._stop_profile()

    def _stop_profile(self) -> None:
        if self.profile_steps:
            jax.profiler.stop_trace()
            self.profile_steps = []

    def _seconds_passed(self, seconds: float) -> bool:
        """Whether so much time has passed since the last save, by the first process's clock."""
        if self.several and self.dispatches % _SECONDS_POINT:
            return False
        return cluster.decide(time.monotonic() - self.saved_at >= seconds)

    def _log(self) -> None:
        """Evaluates if that is due, and writes the line of this step."""
        totals, epoch_end = self.totals, self._every(self.per_epoch)
        line: metrics.Line = {"step": self.step, "epoch": self.step // self.per_epoch}
        if totals.examples:
            line["train_loss"] = totals.loss / totals.examples
        self.metrics.close_bar()
        if self._evaluate_due():
            line |= self._evaluate()
        if epoch_end and totals.epoch_seconds:
            line["seconds"] = totals.epoch_seconds
            line["examples_per_second"] = totals.epoch_examples / totals.epoch_seconds
        self.metrics.log(line)
        self.metrics.say(metrics.describe(line))
        self._reset_totals()

    def _reset_totals(self) -> None:
        """Begins new sums, after a line."""
        self.totals.loss, self.totals.examples = 0.0, 0
        if self._every(self.per_epoch):
            self.totals.epoch_examples, self.totals.epoch_seconds = 0, 0.0

    def _evaluate(self) -> metrics.Line:
        line: metrics.Line = {}
        if self.config.eval_train:
            line["train_accuracy"] = self.evaluator(self.state, self.data.train, self._poll).accuracy
        test = self.evaluator(self.state, self.data.test, self._poll)
        return line | {
            "test_loss": test.loss, "test_accuracy": test.accuracy,
            "test_correct": test.correct, "test_count": test.total,
        }

    def _poll(self) -> None:
        self.watchdog.beat()
        self.clock = time.monotonic()  # an evaluation is no training time
        self._stop_if_signalled()

    def _save(self) -> None:
        now = time.monotonic()
        self.totals.total_seconds += now - self.started
        self.started = now
        meta: Meta = {
            "settings": self.config.settings(),
            "num_shards": self.layout.num_shards,
            "data": self.data_fingerprint,
            "totals": dataclasses.asdict(self.totals),
            "versions": banner.versions(),
        }
        self.checkpoints.save(self.step, self.state, meta)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.watchdog.beat()

    def _stop_if_signalled(self) -> None:
        """Saves and raises if a signal came; the state is always that of a step boundary."""
        signum = self.signals.received
        if self.several:
            signum = signal.SIGTERM if cluster.stop_point() else None
        if signum is None:
            return
        self._settle_all()
        self.metrics.close_bar()
        if self.step > self.saved_step:
            self._save()
        self.checkpoints.wait()
        raise Interrupted(
            signum,
            f"stopped after step {self.step} of {self.total_steps}; {self._last_checkpoint()}; the same command "
            f"with --workdir={self.workdir.path} goes on from there",
        )

    def _last_checkpoint(self) -> str:
        steps = self.checkpoints.steps()
        return f"the newest checkpoint is of step {steps[0]}" if steps else "there is no checkpoint yet"

    def _best_step(self, steps: Any) -> int | None:
        scored = {line["step"]: line["test_accuracy"] for line in self.metrics.history if "test_accuracy" in line}
        return max((s for s in steps if s in scored), key=lambda s: (scored[s], s), default=None)

    def _initial_state(self) -> State:
        params = model.init_network_params(self.sizes, jax.random.key(self.config.seed))
        scaling = tuple(map(jnp.asarray, input_scaling(self.config, self.data)))
        state = State(params, self.optimizer.init(params), jnp.int32(0), scaling)
        return self.layout.replicate(jax.tree.map(np.asarray, state))  # type: ignore[no-any-return]

    def _restore(self) -> None:
        self.data_fingerprint = self.data.fingerprint()
        cluster.agree({f"the digest of --dataset={self.config.dataset}": self.data_fingerprint})
        restored = self.checkpoints.newest_intact(self.state, self._check_meta)
        if restored is None:
            return
        state, meta, moved = restored
        for line in moved if cluster.is_first() else []:
            print(f"distmlp: {line}", file=sys.stderr)
        # Orbax's arrays may not be donatable: the step's own copies are.
        self.state = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)
        self.step = self.saved_step = meta["step"]
        self.totals = Totals(**meta["totals"])

    def _check_meta(self, meta: Meta) -> None:
        refuse_differences(self.workdir.path, meta["settings"], self.config)
        if meta["data"] != self.data_fingerprint:
            raise InputError(f"the data of --dataset={self.config.dataset} are not those that the run in "
                             f"--workdir={self.workdir.path} began with: bring them back, or give another --workdir")
        if self.config.reduction == "invariant" and meta["num_shards"] != self.layout.num_shards:
            raise InputError(f"--num_shards was {meta['num_shards']}, is {self.layout.num_shards}: "
                             f"give --num_shards={meta['num_shards']}")
        if meta["step"] > self.total_steps:
            raise InputError(f"--workdir={self.workdir.path} is at step {meta['step']}, beyond the "
                             f"{self.total_steps} steps asked for: raise --num_epochs or --max_steps")

    def _show_progress(self) -> None:
        epoch, step = divmod(self.step - 1, self.per_epoch)
        position = min((step + 1) * self.config.batch_size, len(self.data.train))
        self.metrics.bar(epoch + 1, position, len(self.data.train), self.last_loss)

    def _finish(self) -> Result:
        self.checkpoints.wait()
        sha256 = params_sha256(self.state.params)
        total = self.totals.total_seconds + time.monotonic() - self.started
        self.metrics.log({
            "step": self.step, "epoch": self.step // self.per_epoch, "final": True,
            "params_sha256": sha256, "total_seconds": total,
        })
        final, best = self.metrics.history[-2], self.metrics.best()
        self.metrics.say(
            f"final test accuracy {100 * final['test_accuracy']:.2f} % ({final['test_correct']} of "
            f"{final['test_count']}), best {100 * best['test_accuracy']:.2f} % at step {best['step']}\n"
            f"parameters {sha256}\nworkdir {self.workdir.path}"
            if best else f"parameters {sha256}\nworkdir {self.workdir.path}"
        )
        return Result(self.state.params, self.metrics.history)
