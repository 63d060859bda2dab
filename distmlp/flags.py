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
    except flags.UnrecognizedFlagError as error:
        _, similar, names = str(error).partition("Did you mean: ")
        hint = f", did you mean --{names.rstrip(' ?').replace(', ', ' or --')}" if similar else ""
        raise InputError(f"--{error.flagname} is no flag{hint}: --help lists them all") from None
    except flags.IllegalFlagValueError as error:
        raise InputError(_illegal_value(error)) from None
    except (flags.CantOpenFlagFileError, UnicodeDecodeError) as error:
        given = ", ".join(argument.partition("=")[2] for argument in argv if argument.startswith("--flagfile="))
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else error.__context__
        raise InputError(f"--flagfile={given} cannot be read ({reason}): give an existing file of flags") from None
    except (flags.Error, ValueError) as error:  # ValueError: a value given to --noFLAG
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
        default: Any = field.default
        where: dict[str, Any] = {"flag_values": values, "module_name": "distmlp"}
        if choices:
            flags.DEFINE_enum(field.name, default, list(choices), help_text, **where)
        elif field.type is bool:
            flags.DEFINE_boolean(field.name, default, help_text, **where)
        elif field.type is int:
            flags.DEFINE_integer(field.name, default, help_text, **where)
        elif field.type is float:
            flags.DEFINE_float(field.name, default, help_text, **where)
        elif field.type is str:
            flags.DEFINE_string(field.name, default, help_text, **where)
        else:
            flags.DEFINE_string(field.name, ",".join(map(str, default)), help_text, **where)
    return values


def _value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    if field.name != "hidden_sizes":
        return value
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", value):
        raise InputError(f"--hidden_sizes={value}: give whole numbers from 1 up, as in 512,512")
    return tuple(int(size) for size in value.split(",") if size.strip())


def _illegal_value(error: flags.IllegalFlagValueError) -> str:
    """absl's message with its reason replaced by what the flag takes."""
    text = _one_line(error)
    found = re.match(r"--(\w+)=(.*?): ", text)
    field = {field.name: field for field in dataclasses.fields(Config)}.get(found[1]) if found else None
    if found is None or field is None:
        return text
    kinds = {int: "give a whole number", float: "give a number", bool: "give true or false"}
    choices = field.metadata["choices"]
    remedy = f"choose one of {', '.join(choices)}" if choices else kinds[field.type]  # type: ignore[index]
    return f"--{found[1]}={found[2]}: {remedy}"


def _one_line(error: Exception) -> str:
    return re.sub(r"^flag ", "", " ".join(str(error).split()))
