"""absl flags generated from Config, and run.flags: the flagfile that repeats a run."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from distmlp.config import Config, InputError

_HELP_FLAGS = {"-h", "-help", "--help", "--helpfull", "--helpshort"}
# Of one start, not of the run: leaving them out lets run.flags repeat the run anywhere.
_NOT_IN_RUN_FLAGS = ("workdir", "coordinator_address", "num_processes", "process_id")


class HelpRequested(Exception):
    """The command line asks for help; the message is the help text."""


def parse(argv: Sequence[str]) -> Config:
    """Config from a command line (argv[0] is the program), --flagfile included.

    Raises:
      InputError: unknown flag, stray argument, value of the wrong type, flagfile that cannot be read.
      HelpRequested: --help.
    """
    values = _flag_values()
    if _HELP_FLAGS & set(argv[1:]):
        raise HelpRequested(values.get_help())
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise InputError(_one_line(error)) from None
    except ValueError as error:  # absl: a value given to --noFLAG
        raise InputError(_one_line(error)) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: flags are given as --name=value")
    return Config(**{field.name: _value(field, values[field.name].value) for field in dataclasses.fields(Config)})


def run_flags(config: Config) -> str:
    """The text of a flagfile that repeats the run, without its workdir."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in _NOT_IN_RUN_FLAGS]
    lines = ["# Repeats this run: python -m launch.train --flagfile=run.flags"]
    for name in names:
        value: Any = getattr(config, name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name}={text.lower() if isinstance(value, bool) else text}")
    return "\n".join(lines) + "\n"


def _flag_values() -> flags.FlagValues:
    values = flags.FlagValues()
    for field in dataclasses.fields(Config):
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        where: dict[str, Any] = {"flag_values": values, "module_name": "distmlp"}
        if choices:
            flags.DEFINE_enum(field.name, field.default, list(choices), help_text, **where)
        elif field.type is bool:
            flags.DEFINE_boolean(field.name, field.default, help_text, **where)
        elif field.type is int:
            flags.DEFINE_integer(field.name, field.default, help_text, **where)
        elif field.type is float:
            flags.DEFINE_float(field.name, field.default, help_text, **where)
        elif field.type is str:
            flags.DEFINE_string(field.name, field.default, help_text, **where)
        else:
            flags.DEFINE_string(field.name, ",".join(map(str, field.default)), help_text, **where)
    return values


def _value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    if field.name != "hidden_sizes":
        return value
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", value):
        raise InputError(f"--hidden_sizes={value}: give whole numbers from 1 up, as in 512,512")
    return tuple(int(size) for size in value.split(",") if size.strip())


def _one_line(error: Exception) -> str:
    return re.sub(r"^flag ", "", " ".join(str(error).split()))
