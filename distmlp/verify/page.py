"""The result as one page for a browser, which needs no network and no package that distmlp does without."""

import html
import string
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from distmlp.verify.verify import Result, Row

_WORDS = {True: ("held", "held"), False: ("bad", "not held"), None: ("none", "does not apply here")}


def page(result: Result) -> str:
    """The page, HTML."""
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    kinds = Counter((device["host"], device["kind"]) for device in result.devices)
    good = not result.exit_code
    return template.substitute(
        verdict="All that applies here holds" if good else _verdict(result), state="held" if good else "bad",
        rows="\n".join(map(_row, result.rows)),
        devices=html.escape("; ".join(f"{count} x {kind} on {host}" for (host, kind), count in kinds.items())),
        versions=html.escape(", ".join(f"{name} {version}" for name, version in result.versions.items())),
        seconds=f"{sum(row.seconds for row in result.rows):,.0f}", made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip


def _verdict(result: Result) -> str:
    bad = sum(row.held is False for row in result.rows)
    late = sum(not row.finished for row in result.rows)
    return ", ".join([f"{bad} of {len(result.rows)} not held"] * bool(bad) + [f"{late} not finished"] * bool(late))


def _row(row: Row) -> str:
    kind, word = _WORDS[row.held] if row.finished else ("late", "not finished")
    return (f'<tr class="{kind}"><td><span class="mark">{word}</span></td><td>{html.escape(row.name)}</td>'
            f'<td>{html.escape(row.detail)}</td><td class="n">{row.seconds:.1f}</td></tr>')
