"""What MkDocs puts into pages when it builds them: all flags, as the command line prints them."""

from typing import Any

from launch import help

_PLACE = "<!-- all flags -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(_PLACE, f"```text\n{help.text(full=True)}\n```")
