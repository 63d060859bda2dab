"""After which steps what is due: arithmetic on the step number, so that a resumed run does the same things."""

from distmlp.config import Config
from distmlp.errors import InputError


class Cadence:
    """What is due after a number of completed steps, as `config` asks."""

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self._config, self.per_epoch = config, steps_per_epoch
        self._ledger_digests = config.ledger_digests_every if config.ledger else 0
        self.total_steps = config.total_steps(steps_per_epoch)
        # --profile_steps=A:B counts steps from 1: from A - 1 completed steps to B.
        self.profile = [int(n) - 1 + i for i, n in enumerate(config.profile_steps.split(":")) if n]
        if self.profile and self.profile[1] > self.total_steps:
            raise InputError(f"--profile_steps={config.profile_steps} goes beyond the run's {self.total_steps} steps")

    def epoch_end(self, step: int) -> bool:
        return _every(self.per_epoch, step)

    def evaluation(self, step: int) -> bool:
        by_epoch = self.epoch_end(step) and _every(self._config.eval_every_epochs, step // self.per_epoch)
        return step == self.total_steps or by_epoch or _every(self._config.eval_every_steps, step)

    def line(self, step: int) -> bool:
        """Whether a line of metrics.jsonl is due."""
        return self.epoch_end(step) or self.evaluation(step)

    def save(self, step: int) -> bool:
        """Whether a checkpoint is due, apart from --checkpoint_every_seconds."""
        by_evaluation = not self._config.checkpoint_every_steps and not self._config.checkpoint_every_seconds
        return (
            step == self.total_steps
            or _every(self._config.checkpoint_every_steps, step)
            or (by_evaluation and self.evaluation(step))
        )

    def comparison(self, step: int) -> bool:
        """Whether the devices' copies of the state are to be compared, by digests that the ledger keeps."""
        for_ledger = _every(self._ledger_digests, step) or (self._config.ledger and step == self.total_steps)
        return for_ledger or _every(self._config.check_replicas_every, step)

    def next(self, step: int) -> int:
        """The next step after which something may be due: a dispatch must not go beyond it."""
        config = self._config
        intervals = (self.per_epoch, config.eval_every_steps, config.checkpoint_every_steps,
                     config.check_replicas_every, self._ledger_digests)
        due = [step - step % interval + interval for interval in intervals if interval]
        return min(self.total_steps, *due, *(n for n in self.profile if n > step))


def _every(interval: int, number: int) -> bool:
    return interval > 0 and number > 0 and number % interval == 0
