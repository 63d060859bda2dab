"""What MkDocs puts into pages when it builds them: all flags, as the command line prints them."""

from typing import Any

from distmlp import flags

_PLACE = "<!-- all flags -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    try:
        flags.parse(["train", "--helpfull"])
    except flags.HelpRequested as text:
        return markdown.replace(_PLACE, f"```text\n{text}```")
    raise AssertionError("--helpfull printed nothing")
