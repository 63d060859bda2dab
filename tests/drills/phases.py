"""launch.train, telling a drill what it is doing: python tests/drills/phases.py PHASE_FILE flags...

Nothing of the trainer is replaced; some of its methods say when they begin and end.
"""

import os

from launch import command, train


class Phase:
    """The current phase, written to the file in one call."""

    def __init__(self, path: str) -> None:
        self.file, self.now, self.saving = os.open(path, os.O_WRONLY), "", False
        self.set("imports")

    def set(self, phase: str) -> None:
        self.now = phase
        self._write()

    def _write(self) -> None:
        shown = "save" if self.saving and self.now in ("train", "evaluate") else self.now
        os.pwrite(self.file, shown.ljust(16).encode(), 0)

    def around_saves(self, owner: type, method: str) -> None:
        """Shows the phase save while `method` runs beside training or evaluation."""
        inner = getattr(owner, method)

        def outer(*args: object, **kwargs: object) -> object:
            self.saving = True
            self._write()
            try:
                return inner(*args, **kwargs)
            finally:
                self.saving = False
                self._write()

        setattr(owner, method, outer)

    def around(self, owner: type, method: str, phase: str, then: str = "") -> None:
        """Makes `method` set `phase` while it runs; afterwards `then`, or what was before."""
        inner = getattr(owner, method)

        def outer(*args: object, **kwargs: object) -> object:
            before = self.now
            self.set(phase)
            try:
                return inner(*args, **kwargs)
            finally:
                self.set(then or before)

        setattr(owner, method, outer)


def main(argv: list[str]) -> None:
    phase = Phase(argv.pop(1))
    from distmlp import progress
    from distmlp.parallel import evaluate, feed
    from distmlp.run import keeping, store

    phase.around(evaluate.Evaluator, "__call__", "evaluate")
    phase.around_saves(store.Store, "_save")
    phase.around(keeping.Keeping, "restored", "restore")
    phase.around(keeping.Keeping, "finish", "final", "end")
    phase.around(feed.Feed, "compile", "compile")
    phase.around(progress.Progress, "begin_steps", "train", "train")
    phase.set("setup")
    train.main(argv)


if __name__ == "__main__":
    command.run(main)
