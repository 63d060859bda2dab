"""The command line of train and plan: absl flags, generated from Config."""

import codecs
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

import distmlp
from distmlp.config import Config, flag_value, unquoted
from distmlp.errors import InputError, one_line

CONFIGS = Path(distmlp.__file__).parent / "configs"  # which come with the package


def parse(argv: Sequence[str]) -> Config:
    """Config from a command line (argv[0] is the program, or the verb), --flagfile included.

    Raises:
      InputError: no flags, an unknown one, a stray argument, a value of the wrong type, a flagfile that cannot be read.
    """
    if len(argv) == 1:
        raise InputError("nothing to train: start with `python -m launch.train configs/digits.flags`, "
                         "or `python -m launch.train --help`")
    values, arguments = _flag_values(), _with_configs(argv[1:])
    try:
        rest = values([argv[0], *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        _, similar, names = str(error).partition("Did you mean: ")
        hint = f", did you mean --{names.rstrip(' ?').replace(', ', ' or --')}" if similar else ""
        own = argv[0] in ("plan", "sweep")  # which have flags of their own
        lists = f"{argv[0]} --help lists its own, --helpfull training's" if own else "--helpfull lists them all"
        raise InputError(f"--{error.flagname} is no flag{hint}: {lists}") from None
    except flags.IllegalFlagValueError as error:
        raise InputError(_illegal_value(error)) from None
    except (flags.Error, ValueError) as error:  # ValueError: a value given to --noFLAG
        raise InputError(one_line(error).removeprefix("flag ")) from None
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}: give flags as --name=value, a config as NAME.flags")
    return Config(**{field.name: _value(field, values[field.name].value) for field in dataclasses.fields(Config)})


def _with_configs(arguments: Iterable[str], inside: tuple[Path, ...] = ()) -> list[str]:
    """The arguments, with what the configs among them hold in their places.

    A config is NAME.flags, --flagfile=NAME or --flagfile NAME, also as a line of another config.

    Args:
      inside: the files that are being read, the outermost first.

    Raises:
      InputError: one of them cannot be read, or names itself.
    """
    takes_value = {field.name for field in dataclasses.fields(Config) if field.type is not bool}
    found, rest = [], iter(arguments)
    for argument in rest:
        flag, equals, name = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        flag = flag.lstrip("-")
        if argument == "--":
            found += [argument, *rest]
        elif flag == "flagfile" or (not flag and name.endswith(".flags")):
            name = name if equals or not flag else next(rest, "")
            path = _config(name, inside)
            found += _with_configs(_lines(path, name, inside), (*inside, path))
        else:
            found.append(argument)
            if flag in takes_value and not equals:
                found += itertools.islice(rest, 1)
    return found


def _config(name: str, inside: tuple[Path, ...]) -> Path:
    """The config of this name: beside the config that names it, in the current folder, or one that comes along."""
    given = Path(os.path.expanduser(name))
    places = [*(path.parent / given for path in inside[-1:]), given]
    if str(given.parent) in (".", "configs"):
        places.append(CONFIGS / given.name)
    there = [path for path in places if path.exists()]
    again = {path.resolve() for path in inside}
    if there and all(path.resolve() in again for path in there):
        raise InputError(f"{inside[-1]} names {name}, which is being read, perhaps through others: take one out")
    return next((path for path in there if path.resolve() not in again), given)


def _lines(config: Path, name: str, inside: tuple[Path, ...]) -> list[str]:
    """A config's lines but comments and blank ones, of UTF-8, or of UTF-16 with its mark, as Windows may write it.

    Values that are no text keep their bytes, as run.flags has them.
    """
    try:
        content = config.read_bytes()
        marked = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode(*(["utf-16"] if marked else ["utf-8", "surrogateescape"]))
        lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.replace("\ufeff", ""))]
        for line in lines:
            if not re.match(r"--\w+=[^\0]*$|#|//", line):
                line.encode()  # else the file is none of flags
    except (OSError, ValueError) as error:
        reason = "not a text file" if isinstance(error, UnicodeError) else error
        where = "".join(f", in {path}," for path in inside[-1:])
        raise InputError(f"--flagfile={name}{where} cannot be read ({reason}): give an existing file of flags, or "
                         "one of those that `distmlp configs` lists") from None
    return [unquoted(line) for line in lines if line and not line.startswith(("#", "//"))]


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
