"""What a run keeps in its folder, lines, ledger and checkpoints; how it stops when asked to, and how it goes on."""

import contextlib
import functools
import os
import time
from contextlib import ExitStack, closing
from typing import Any

import jax

from distmlp import machine
from distmlp.account import Account
from distmlp.cluster.group import Group
from distmlp.config import Config, differences, is_path
from distmlp.data.batches import Reading
from distmlp.data.datasets import Data, training_remarks
from distmlp.errors import AuditError, DivergedError, InputError, Interrupted, WriteError, listed
from distmlp.parallel.digest import array_names, params_sha256
from distmlp.parallel.feed import Steps
from distmlp.parallel.specs import State
from distmlp.progress import Line, Poll, Progress, Reached
from distmlp.run import goodput, swept
from distmlp.run.ledger import Ledger
from distmlp.run.log import Log, banner, header, summary
from distmlp.run.meta import Meta, check_form, meta_of, of_data, of_reached, origin, standing, totals, unknown
from distmlp.run.profile import Profile
from distmlp.run.sessions import Sessions, read_sessions
from distmlp.run.signals import Signals, Watchdog
from distmlp.run.store import Store, suited
from distmlp.run.stragglers import Stragglers
from distmlp.run.workdir import Workdir
from distmlp.training import OnLine, Program, ends


class Keeping:
    """Everything that a run writes, and the signals it heeds, within this context."""

    def __init__(
        self, config: Config, data: Data, parts: Program, group: Group, account: Account, silent: bool = False
    ) -> None:
        """`account`: of the start's time."""
        self.config, self.data, self.parts, self.cadence, self.group = config, data, parts, parts.cadence, group
        self._saved_step, self._saved_at = 0, time.monotonic()
        self._lines: dict[str, int] = {}  # that the files had when the checkpoint was saved that the run goes on from
        self._audited = 0  # the last step whose audit agreed in earlier starts
        self._begun: Progress | None = None
        self._reading = Reading(parts.loader)
        self.signals, self.watchdog = Signals(group.request_stop), self._new_watchdog()
        with ExitStack() as opened:
            self.workdir = opened.enter_context(closing(Workdir(config, group)))
            opened.enter_context(suited(self.workdir.locks, self.workdir.syncs_folders))
            path = self.workdir.path
            if swept.is_sweep(path):
                raise InputError(f"--workdir={path} holds a sweep: give another --workdir")
            self._sessions = opened.enter_context(Sessions(path, account, group.first))
            self.log = Log(path, group.first, silent)
            self._stragglers = Stragglers(parts.own_time, group, self.log.warn) if group.several else None
            self._profile = Profile(path / "profile", parts.cadence.profile, self.log.warn)
            self.ledger = Ledger(path, config.ledger, len(data.train), parts.cadence.per_epoch, group)
            self.store = Store(path, parts.digest, config.keep_checkpoints, group, parts.held)
            self._open = opened.pop_all()

    def _new_watchdog(self) -> Watchdog:
        signs = (self.parts.taken, machine.mebibytes_moved, lambda: self.store.synced)
        return Watchdog(self.config.stall_seconds, signs, self.group.pulse)

    def __enter__(self) -> "Keeping":
        self._open.enter_context(closing(self.log))
        self._open.enter_context(closing(self._profile))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with self._open:
            if self._begun is not None and error is not None:
                self.log.note(f"distmlp: {error}")
            agreed = error is None or isinstance(error, Interrupted)
            try:
                if agreed or not self.group.several:  # else the others may be gone, or busy
                    self.store.close()
            finally:
                if self._begun is not None:
                    reason = "" if error is None else f"{type(error).__name__}: {error}"
                    self._sessions.tell(end=self._begun.step, reason=reason)

    def restored(self) -> tuple[State, Reached] | None:
        """The state of the newest intact checkpoint, and how far it is; None without any.

        Raises:
          InputError: it is another run's, or of another form than the one trained here.
        """
        dataset = f"--dataset={self.config.dataset}"
        self.group.agree({f"the digest of {dataset}": self._fingerprint})
        self.group.go_in_step()
        with self._new_watchdog():
            found = self.store.newest_intact(self.parts.state, self._check_meta)
        if found is None:
            return None
        state, meta, notes = found
        if meta.get("data_modified", self.data.modified()) != self.data.modified():
            notes.append(f"the files of {dataset} were written again since the run began; the rows that are compared "
                         "are the same: if others are not, give another --workdir")
        if self.config.clip_norm and self.config.reduction == "invariant" and "state" not in meta:
            notes.append("--clip_norm adds up the gradient's norm in another order than version 0.2.0, which began the "
                         "run: the parameters may differ in their last bits from what that would have found")
        if text := unknown(meta):
            notes.append(text)
        saved, here = meta["versions"], origin()
        if self.parts.layout.accelerated:  # the processor's threads have no part in its sums
            saved, here = saved | {"PJRT_NPROC": ""}, here | {"PJRT_NPROC": ""}
        if changed := differences(saved, here):
            notes.append(f"{'; '.join(changed)}: the parameters may differ in their last bits from an unbroken run's")
            threads = saved.get("PJRT_NPROC", "")
            if threads.isdecimal() and threads != here["PJRT_NPROC"]:
                notes[-1] += f"; PJRT_NPROC={threads} in the environment gives XLA as many threads as it had"
        for note in notes:
            self.log.warn(note)
        self._saved_step, self._lines = meta["step"], meta.get("lines", {})
        self._audited = meta.get("audited", 0)
        return state, Reached(meta["step"], totals(meta), standing(meta))

    @functools.cached_property
    def _fingerprint(self) -> str:
        """The data's fingerprint, for which all of them are read once."""
        return self.data.fingerprint()

    def _meta(self, progress: Progress) -> Meta:
        """What a checkpoint says beside its arrays, with the sums from before this step's line."""
        counts = {"metrics": len(progress.history), "ledger": self.ledger.count}
        return ({"audited": self._agreed} if self._agreed else {}) | meta_of(
            self.config.settings(), self.parts.loader.order, self.parts.layout.state,
            of_data(self.data, self._fingerprint), of_reached(progress.totals, progress.standing, counts),
        )

    @property
    def _agreed(self) -> int:
        """The last step, of this start or an earlier one, whose audit agreed; 0: none."""
        return max(self._audited, self.parts.audit.agreed if self.parts.audit else 0)

    def _check_meta(self, meta: Meta) -> None:
        """Raises InputError if a checkpoint is another run's, of another form, or beyond this one's end."""
        workdir = f"--workdir={self.workdir.path}"
        experiment = self.config.experiment()
        saved = Config().settings() | meta.get("settings", experiment)
        paths = saved["dataset"], self.config.dataset
        if all(map(is_path, paths)) and (not any(self.data.modified()) or _same_file(*paths)):
            saved["dataset"] = self.config.dataset  # they may lie elsewhere now if the fingerprint covers all values
        changed = [f"--{text}" for text in differences({name: saved[name] for name in experiment}, experiment)]
        if changed:
            raise InputError(f"{workdir} holds another run ({'; '.join(changed)}): "
                             "give the same flags, or another --workdir")
        check_form(meta, array_names(self.parts.state), origin(), workdir)
        if meta["data"] != self._fingerprint:
            raise InputError(f"the data of --dataset={self.config.dataset} are not those that the run in {workdir} "
                             "began with: bring them back, or give another --workdir")
        saved_shards, num_shards = meta["num_shards"], self.parts.layout.num_shards
        if self.config.reduction == "invariant" and saved_shards != num_shards:
            raise InputError(f"--num_shards was {saved_shards}, is {num_shards}: give --num_shards={saved_shards}")
        order = self.parts.loader.order
        if meta.get("order", "held") != order.drawn:  # versions before say nothing, and held it
            raise InputError(f"the run in {workdir} was begun by distmlp {meta['versions'].get('distmlp', 'unknown')}, "
                             f"which draws another order of {order.size:,} examples: go on with that version, or give "
                             "another --workdir")
        if meta["step"] > self.cadence.total_steps:
            raise InputError(f"{workdir} is at step {meta['step']}, beyond the {self.cadence.total_steps} steps asked "
                             "for: raise --num_epochs or --max_steps")

    def begin(self, progress: Progress) -> None:
        """Opens the run's files at this step, and says what will be trained. Until here, a signal ends the process."""
        self._open.enter_context(self.signals)
        step, total, config = progress.step, self.cadence.total_steps, self.config
        self.data.info()  # may read examples: not amid those of an epoch
        self.workdir.write_run_flags(config)
        progress.drop_lines_to_come()
        self.log.start(step, progress.history, config, self._lines.get("metrics", 0))
        if text := self.ledger.start(step, self._lines.get("ledger", 0)):
            self.log.warn(text)
        for text in self.data.remarks:
            self.log.warn(text)
        if text := self.data.description():
            self.log.say(text)
        self.log.say(banner(config, self.data, self.parts, self.workdir.path, self.group))
        devices = self.parts.layout.devices
        self._sessions.begin(progress.kept_seconds, start=step, hosts=self.group.hosts(),
                             processes=jax.process_count(), devices=f"{len(devices)} x {devices[0].device_kind}")
        self._begun = progress
        for remark in () if step else training_remarks(config, self.data):
            self.log.warn(remark)
        if step:
            self.log.say(f"resuming after step {step} of {total}")
        if 0 < config.schedule_steps < total:
            self.log.warn(f"the learning rate is 0 from step {config.schedule_steps} on, where --schedule_steps ends; "
                          f"this run has {total} steps")
        self.log.say(header(config, self.data.validation is not None))

    def record(self, steps: Steps, digests: dict[str, str] | None, progress: Progress) -> None:
        """Takes note of a dispatch that has been made."""
        self.ledger.add(progress.step, steps, digests)
        self.log.show_progress(progress, self.config.batch_size, len(self.data.train))
        if text := self._reading.remark(progress.idle):
            self.log.warn(text)

    def save_is_due(self, steps: Steps, progress: Progress) -> bool:
        """Whether it is, by the step or by --checkpoint_every_seconds on process 0's clock, which all follow."""
        if self.cadence.save(progress.step):
            return True
        every = self.config.checkpoint_every_seconds
        return every > 0 and steps.paced and self.group.lead(time.monotonic() - self._saved_at >= every)

    def save(self, state: State, progress: Progress) -> None:
        """Begins a checkpoint unless there is one of this step, once the ledger's lines up to it are on disk."""
        if self._saved_step < progress.step:
            progress.settle()
            if self.parts.audit and self.parts.audit.agreed < progress.step:
                self.parts.audit.repeat(state, progress.step)
            progress.count_seconds()
            with progress.account.of("save"):
                self.ledger.flush()
                remark = self.store.save(progress.step, state, self._meta(progress), progress.standing.best["step"])
            if remark:
                self.log.warn(remark)
            self._saved_step, self._saved_at = progress.step, time.monotonic()
            self.watchdog.beat()

    def compare_processes(self, line: Line, state: State, progress: Progress) -> None:
        """Adds to a line what each process took by itself, if there are several and steps were made; a collective."""
        trained = progress.account.seconds.get("train", 0.0)
        if self._stragglers and trained:
            self._stragglers.add(line, state, trained)

    def _saved(self, state: State, progress: Progress) -> None:
        """Waits until the checkpoint of this step is on disk; in one process, a save that failed is tried once more."""
        with progress.account.of("save"):
            try:
                self.store.wait()
            except WriteError:
                if self.group.several:
                    raise
                best = progress.standing.best["step"]
                self.log.warn(self.store.save(progress.step, state, self._meta(progress), best))

    def profile(self, progress: Progress) -> None:
        """To be called before each dispatch: a profile may begin or end here."""
        self._profile.between_steps(progress)

    def before_line(self, progress: Progress) -> None:
        """To be called after a dispatch: a line may follow, and an evaluation before it."""
        if self.cadence.line(progress.step):
            self.log.close_bar()
        if self.group.several and self.cadence.evaluation(progress.step) and not progress.standing.step:
            with progress.account.of("save"):
                self.store.wait()  # a process that now finds an error in the test set could not wait with the others

    def stop_if_signalled(self, state: State, progress: Progress) -> None:
        """Saves and raises if a signal came; the state must be that of a step boundary."""
        if (signum := self.group.stop_point(self.signals.received)) is None:
            return
        progress.settle()
        self.log.close_bar()
        self.save(state, progress)
        self._saved(state, progress)
        raise Interrupted(signum, f"stopped after step {progress.step} of {self.cadence.total_steps}; "
                          f"{self.store.last_checkpoint()}; the same command with --workdir={self.workdir.path} goes "
                          "on from there")

    def ends(self, on_line: OnLine, state: State, progress: Progress) -> bool:
        """Whether the caller's function ends the run at the newest line, in all processes; then the state is saved.

        Raises:
          Exception: what it raised, in the first process, once the state is saved; ProcessEnded in the others.
        """
        failed: Exception | SystemExit | None = None
        verdict = "go on"
        if self.group.first:
            try:
                verdict = "end" if ends(on_line, progress.history[-1]) else "go on"
            except (Exception, SystemExit) as error:  # the caller's
                failed, verdict = error, "failed"
        self.watchdog.beat()
        verdict = self.group.decide(verdict)
        if verdict == "go on" or (verdict == "end" and progress.history[-1].get("final")):
            return False
        self.save(state, progress)
        self._saved(state, progress)
        if failed is not None:
            raise failed
        self.group.barrier()  # where the others learn that the first one failed
        self.log.say(f"on_line ended the run after step {progress.step} of {self.cadence.total_steps}: the same call "
                     f"with workdir={self.workdir.path} goes on from there")
        return True

    def left_after(self, error: DivergedError) -> str:
        """What the run can go on from after this error, as a part of a message; checkpoints that it puts in doubt are
        set aside."""
        try:
            aside = self.store.set_aside(self._agreed) if isinstance(error, AuditError) else []
        except WriteError as failed:
            return f"no audit has confirmed the checkpoints after step {self._agreed}, and {failed}"
        told = f"no audit has confirmed checkpoint {listed(aside)}: set aside in {self.workdir.path / 'damaged'}; "
        return (told if aside else "") + self.store.last_checkpoint()

    def finish(self, state: State, progress: Progress, poll: Poll) -> None:
        """Tests what a validation set has chosen, and writes the last line and the summary."""
        self._saved(state, progress)
        chosen: State | None = state
        step = progress.standing.best["step"]
        if self.data.validation is not None and step != progress.step:
            with progress.account.of("restore"):
                chosen = self.store.intact(step, self.parts.state)
            if chosen is None:
                self.log.warn(f"checkpoint {step}, the best, cannot be read: its test accuracy is left out")
        with progress.account.of("evaluate"):
            tested = self.parts.measures.tested(state, chosen, poll)
        self.log.line(progress.add_final_line(params_sha256(self.parts.held.arrays(state.params)), tested))
        self._sessions.tell()  # for a kill from here on leaves a run that is finished: no start would tell of it
        text = ""
        if self.group.first:
            with contextlib.suppress(InputError):  # the file cannot be read
                sessions = [*read_sessions(self.workdir.path).values, self._sessions.word()]
                text = goodput.described(goodput.parts(sessions))
        self.log.say(summary(progress.history, self.workdir.path, text))


def _same_file(one: str, other: str) -> bool:
    """Whether these are two names of what is there, as through a link."""
    with contextlib.suppress(OSError):  # one of them is gone
        return os.path.samefile(one, other)
    return False
