"""How values look in a line: shortened, with units, and harmless for a terminal.

Invariant: nothing that a model or a tool wrote reaches a terminal with its control characters.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output: parts of `(text, style)`."""

    parts: tuple[tuple[str, str], ...]

    @property
    def plain(self) -> str:
        """The line without styles."""
        return "".join(text for text, _ in self.parts).rstrip()

    @property
    def styled(self) -> Text:
        """The line for a terminal."""
        return Text.assemble(*self.parts)


def line(*parts: str | tuple[str, str]) -> Line:
    """Makes a line of plain texts and `(text, style)`."""
    return Line(tuple((part, "") if isinstance(part, str) else part for part in parts))


def clean(text: str) -> str:
    """Replaces control characters other than tab and line end."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str, chars_max: int) -> str:
    """A text on one line, its middle of white space collapsed and its end cut."""
    # A line needs no more than its width, however long the text is.
    head = text[: chars_max * 8]
    flat = clean(" ".join(head.split()))
    if len(flat) > chars_max:
        return f"{flat[: chars_max - 3]}..."
    return f"{flat}..." if len(head) < len(text) else flat


def call_text(name: str, arguments: str, chars_max: int) -> str:
    """A tool call as a person would write it: `name(key="value")`."""
    try:
        value: Any = json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return f"{clean(name)}({one_line(arguments, chars_max)})"
    share = max(12, chars_max // max(1, len(value)))
    shown = ", ".join(
        f"{key}={one_line(json.dumps(each, ensure_ascii=False), share)}"
        for key, each in value.items()
    )
    return f"{clean(name)}({one_line(shown, chars_max)})"


def duration(microseconds: int) -> str:
    """A duration with a unit that suits it."""
    milliseconds = max(0, microseconds) / 1000
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} min {seconds} s"


def moment(microseconds: int) -> str:
    """A time of day in UTC, to the second."""
    return datetime.fromtimestamp(microseconds / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it is due."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as text with aligned columns."""
    widths = [max(len(row[idx]) for row in rows) for idx in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
