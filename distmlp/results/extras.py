"""Packages that only some verbs use, imported when they are."""

import importlib
from typing import Any

from distmlp.errors import InputError


def need(module: str, extra: str, what: str) -> Any:
    """The module, for `what`, which a user asked for; `extra` is distmlp's extra that installs it.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = error.name or module
        raise InputError(f"{what} needs {package}, which is not installed: pip install 'distmlp[{extra}]'") from None
