"""The help of train and plan: all flags by topic."""

import dataclasses
import textwrap
from collections.abc import Sequence

from distmlp import machine
from distmlp.config import Config, flag_value

_WIDTH = 80  # columns of the help
_FLAGS = {"-h", "-help", "--help", "--helpshort"}
_USAGE = """\
Trains the MLP: python -m launch.train CONFIG.flags [--NAME=VALUE ...]

Flags given after a config win over it. Of several values the first is the
default, else the one shown; --[no]NAME without one is off. {more}

Exit codes: 0 done, or help; 2 bad input; 3 diverged; 128 + N stopped by signal
N, as 130 by Ctrl-C; else a fault.
"""


class HelpRequested(Exception):
    """The command line asks for help, or for the version; the message is the text."""


def check(arguments: Sequence[str]) -> None:
    """Raises HelpRequested for --help, --helpfull and --version."""
    if "--version" in arguments:
        raise HelpRequested(f"distmlp {machine.version('distmlp')}")
    if "--helpfull" in arguments or _FLAGS & set(arguments):
        raise HelpRequested(text(full="--helpfull" in arguments))


def text(full: bool) -> str:
    """The flags by topic, in lines of _WIDTH columns; without the rare ones unless `full`."""
    lines = [_USAGE.format(more="These are all flags." if full else "--helpfull has more.").rstrip()]
    for field in dataclasses.fields(Config):
        meta = field.metadata
        if meta["topic"]:
            lines += ["", f"{meta['topic']}:"]
        if meta["rare"] and not full:
            continue
        shown = "|".join(meta["choices"]) if meta["choices"] else flag_value(field.default)
        flag = f"  --{field.name}={shown}"
        if field.type is bool:
            flag = f"  --[no]{field.name}{'=true' if field.default else ''}"
        help_text = textwrap.wrap(meta["help"], _WIDTH, initial_indent=" " * 30, subsequent_indent=" " * 30)
        if len(flag) < 30:
            help_text[0] = flag + help_text[0][len(flag) :]
            flag = ""
        lines += [flag, *help_text] if flag else help_text
    return "\n".join(lines)
