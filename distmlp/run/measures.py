"""What evaluations of a state find, as the lines of metrics.jsonl have it."""

from collections.abc import Callable

from distmlp.config import Config
from distmlp.data.datasets import Data, Examples
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.step import State
from distmlp.run.metrics import Line


class Measures:
    """Evaluates states of one run; `poll` is called before each step of it, and may raise to stop."""

    def __init__(self, config: Config, data: Data, evaluator: Evaluator, poll: Callable[[], None]) -> None:
        self._eval_train, self._data, self._evaluator, self._poll = config.eval_train, data, evaluator, poll

    def evaluated(self, state: State) -> Line:
        """What is due while training: of the validation set where there is one, else of the test set."""
        line: Line = {}
        if self._eval_train:
            line["train_accuracy"] = self._evaluator(state, self._data.train, self._poll).accuracy
        if self._data.validation is not None:
            return line | self._measure("validation", state, self._data.validation)
        return line | self._measure("test", state, self._data.test)

    def tested(self, last: State, best: State | None) -> Line:
        """Of the test set, where a validation set chose: only now, with nothing left to choose."""
        line = {} if best is None else self._measure("best_test", best, self._data.test)
        return line | self._measure("test", last, self._data.test)

    def _measure(self, name: str, state: State, dataset: Examples) -> Line:
        found = self._evaluator(state, dataset, self._poll)
        return {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy, f"{name}_correct": found.correct,
                f"{name}_count": found.total}
