"""The mutants of the mutation drill: what is broken, where, and which tests must notice."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One passage of one file, replaced."""

    file: str
    breaks: str  # what the product then does wrong
    before: str  # occurs exactly once in the file
    after: str
    tests: str  # test files, or -k expressions, of which at least one test must fail
    lives: str = ""  # why no test can notice, if that is so

    def applied_to(self, text: str) -> str:
        """The file's text with the mutation.

        Raises:
          ValueError: the passage is not there exactly once: the code has moved on, and the mutant must follow.
        """
        if text.count(self.before) != 1:
            raise ValueError(f"{self.file}: {self.before!r} occurs {text.count(self.before)} times, not once")
        return text.replace(self.before, self.after)


LOADER, PARITY = "tests/data/test_loader.py", "tests/parallel/test_parity.py"

MUTANTS = [
    Mutant("distmlp/model.py", "loss is divided by the shard's own weights", "total = jnp.sum(weights) if weight_sum is None else weight_sum", "total = jnp.sum(weights)", PARITY),
]
