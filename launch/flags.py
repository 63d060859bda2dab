"""The command line of train and plan: absl flags, generated from Config."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

import distmlp
from distmlp.config import Config, flag_value
from distmlp.errors import InputError, one_line

CONFIGS = Path(distmlp.__file__).parent / "configs"  # which come with the package


def parse(argv: Sequence[str]) -> Config:
    """Config from a command line (argv[0] is the program), --flagfile included.

    Raises:
      InputError: no flags, an unknown one, a stray argument, a value of the wrong type, a flagfile that cannot be read.
    """
    given = [_with_config(argument) for argument in argv]
    if len(given) == 1:
        raise InputError("nothing to train: start with `python -m launch.train configs/digits.flags`, "
                         "or `python -m launch.train --help`")
    values = _flag_values()
    try:
        rest = values(given)[1:]
    except flags.UnrecognizedFlagError as error:
        _, similar, names = str(error).partition("Did you mean: ")
        hint = f", did you mean --{names.rstrip(' ?').replace(', ', ' or --')}" if similar else ""
        raise InputError(f"--{error.flagname} is no flag{hint}: --helpfull lists them all") from None
    except flags.IllegalFlagValueError as error:
        raise InputError(_illegal_value(error)) from None
    except (flags.CantOpenFlagFileError, UnicodeDecodeError) as error:
        files = ", ".join(argument.partition("=")[2] for argument in given if argument.startswith("--flagfile="))
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else error.__context__
        raise InputError(f"--flagfile={files} cannot be read ({reason}): give an existing file of flags, or "
                         "one of those that `distmlp configs` lists") from None
    except (flags.Error, ValueError) as error:  # ValueError: a value given to --noFLAG
        raise InputError(one_line(error).removeprefix("flag ")) from None
    if rest and rest[0].endswith(".flags"):
        given[given.index(rest[0])] = _with_config(f"--flagfile={rest[0]}")
        return parse(given)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}: give flags as --name=value, a config as NAME.flags")
    return Config(**{field.name: _value(field, values[field.name].value) for field in dataclasses.fields(Config)})


def _with_config(argument: str) -> str:
    """--flagfile=digits.flags, where there is no such file, as that of the config that comes with the package."""
    flag, _, name = argument.partition("=")
    packaged = CONFIGS / Path(name).name
    if flag.lstrip("-") != "flagfile" or not packaged.is_file() or Path(name).exists():
        return argument
    return f"{flag}={packaged}" if Path(name).parent.name in ("", "configs") else argument


def _flag_values() -> flags.FlagValues:
    values = flags.FlagValues()
    for field in dataclasses.fields(Config):
        default: Any = flag_value(field.default) if isinstance(field.default, tuple) else field.default
        where: dict[str, Any] = {"help": field.metadata["help"], "flag_values": values}
        if choices := field.metadata["choices"]:
            flags.DEFINE_enum(field.name, default, choices, **where)
        else:
            define: dict[Any, Callable[..., Any]] = {
                bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float
            }  # fmt: skip
            define.get(field.type, flags.DEFINE_string)(field.name, default, **where)
    return values


def _value(field: "dataclasses.Field[Any]", value: Any) -> Any:
    if field.name != "hidden_sizes":
        return value
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", value):
        raise InputError(f"--hidden_sizes={value}: give whole numbers from 1 up, as in 512,512")
    return tuple(int(size) for size in value.split(",") if size.strip())


def _illegal_value(error: flags.IllegalFlagValueError) -> str:
    """absl's message with its reason replaced by what the flag takes."""
    text = one_line(error).removeprefix("flag ")
    found = re.match(r"--(\w+)=(.*?): ", text)
    field = {field.name: field for field in dataclasses.fields(Config)}.get(found[1]) if found else None
    if found is None or field is None:
        return text
    kinds = {int: "give a whole number", float: "give a number", bool: "give true or false"}
    choices = field.metadata["choices"]
    remedy = f"choose one of {', '.join(choices)}" if choices else kinds[field.type]  # type: ignore[index] # a class, not a name
    return f"--{found[1]}={found[2]}: {remedy}"
