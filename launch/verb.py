"""What the verbs on a run's folder share: how they read a command line, and how they end."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from distmlp import InputError
from distmlp.config import check_local
from launch import command


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override] # overloads
        """As argparse's, to which -hidden_sizes=8 would be -h, and a value of it; ~ at the beginning of a value becomes
        the home folder: after --output= no shell does that."""
        args = [re.sub("^-(?=h[a-z])", "--", argument) for argument in (sys.argv[1:] if args is None else args)]
        given, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(given, action.dest, None)
            for text in value if isinstance(value, list) else [value]:
                check_local(action.option_strings[0] if action.option_strings else str(action.metavar), str(text))
            if isinstance(value, list):
                setattr(given, action.dest, [os.path.expanduser(text) for text in value])
            elif isinstance(value, str):
                setattr(given, action.dest, os.path.expanduser(value))
        return given, rest

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: {self.prog} --help says how")


class Named(argparse.Action):
    """Takes a name, or several, of which none is empty: a shell variable that is not set would choose what leaving it
    out does, or the current folder."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:  # fmt: skip
        if "" in (values if isinstance(values, list) else [values]):
            remedy = "name one, or leave the flag out" if option_string else "name one"
            raise argparse.ArgumentError(self, f"is empty, as if by a shell variable that is not set: {remedy}")
        setattr(namespace, self.dest, values)


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser of a verb's command line, whose `doc` becomes the help; wrong usage is an InputError."""
    raw = argparse.RawDescriptionHelpFormatter
    return _Parser(f"python -m launch.{name}", description=doc, formatter_class=raw, allow_abbrev=False)


def add_checkpoint(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--checkpoint", action=Named, default="", metavar="best|newest|STEP",
                           help="which checkpoint; default: best if the run knows one, else newest")


def add_ensemble(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--ensemble", action="store_true",
                           help="of a sweep's folder, the mean of the members that it has kept, not the refitted model")


def add_header(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--header", choices=("auto", "none"), default="",
                           help="none: a text table's first line is a row; default: as the run was trained")


def run(main: Callable[[list[str]], int], kept: str = "") -> NoReturn:
    """Ends the process as the verb `main` says: with its exit code, or 2 and one line for bad input.

    A fault has another exit code than Python's 1, by which a verb says what it found: os.EX_SOFTWARE.

    Args:
      kept: how it goes on, as command.run has it; what it prints is in a folder, too: nothing is lost where standard
        output has no room for it.
    """

    def ended(argv: list[str]) -> int:
        try:
            found = main(argv[1:])
            if not kept:
                command.check_written()
            return found
        except Exception as error:
            code, said = command.ending(error)
            if code != 1 or hasattr(error, "exit_code"):
                raise
            print(said, file=sys.stderr)
            return os.EX_SOFTWARE

    command.run(ended, kept)
