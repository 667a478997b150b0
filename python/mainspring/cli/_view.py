"""What a person sees while a turn runs: a live view on a terminal, plain lines elsewhere.

Invariant: everything goes to standard error; without a terminal that understands them, no control
sequence is written.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from mainspring.cli._text import clean, duration
from mainspring.cli._trail import OpenCall, Trail
from mainspring.events import Event

SHOWN_CALLS_MAX = 12
"""Tool calls under way that the live view lists; the rest are counted."""


def is_fancy(stream: TextIO) -> bool:
    """Tells whether a stream is a terminal that may get colours and cursor movements."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return stream.isatty() and not plain


def console_of(stream: TextIO) -> Console:
    """A console that writes as `is_fancy` says, and adds nothing of its own."""
    fancy = is_fancy(stream)
    return Console(
        file=stream,
        force_terminal=fancy,
        no_color=not fancy,
        color_system="auto" if fancy else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


class View(Protocol):
    """Where the events of a turn go."""

    def feed(self, event: Event) -> None:
        """Shows an event."""


class SilentView:
    """Shows nothing: for `--json`."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def feed(self, event: Event) -> None:
        """Tells the trail, and drops its lines."""
        self._trail.feed(event)


class PlainView:
    """Prints the lines of a trail as they come."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def feed(self, event: Event) -> None:
        """Prints the event's lines."""
        for each in self._trail.feed(event):
            print(each.plain, file=sys.stderr, flush=True)


class LiveView:
    """Prints the lines of a trail, and below them what is under way."""

    def __init__(self, trail: Trail, live: Live) -> None:
        self._trail = trail
        self._live = live

    def feed(self, event: Event) -> None:
        """Prints the event's lines above the live part."""
        for each in self._trail.feed(event):
            self._live.console.print(each.styled)


class _UnderWay:
    """The live part: the model call or the tool calls under way, and the text being written."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._spinner = Spinner("dots", style="cyan")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now_us = time.time_ns() // 1000
        parts: list[RenderableType] = []
        # Copies: the trail goes on in the thread of the event loop.
        model_call = self._trail.model_call
        calls = list(self._trail.tool_calls.values())
        if model_call is not None:
            parts.append(self._row("model ", model_call, now_us))
            if tail := self._trail.writing.strip():
                width = max(20, options.max_width - 12)
                shown = clean(tail).splitlines()[-3:]
                parts += [Text(f"          {row[-width:]}", style="dim") for row in shown]
        parts += [self._row("tool  ", call, now_us) for call in calls[:SHOWN_CALLS_MAX]]
        if len(calls) > SHOWN_CALLS_MAX:
            parts.append(Text(f"    and {len(calls) - SHOWN_CALLS_MAX} more", style="dim"))
        yield Group(*parts)

    def _row(self, kind: str, call: OpenCall, now_us: int) -> Text:
        frame = self._spinner.render(time.monotonic())
        took = duration(now_us - call.started_us)
        row = Text.assemble(frame if isinstance(frame, Text) else "", f" {kind}  ", call.text)
        row.append(f"  {took}", style="dim")
        row.no_wrap, row.overflow = True, "ellipsis"
        return row


@contextmanager
def viewing(trail: Trail, *, silent: bool) -> Iterator[View]:
    """Gives the view that suits standard error.

    What the agent's own code prints goes to standard error too, so that standard output holds the
    answer alone.
    """
    if silent:
        with redirect_stdout(sys.stderr):
            yield SilentView(trail)
    elif is_fancy(sys.stderr):
        console = console_of(sys.stderr)
        live = Live(_UnderWay(trail), console=console, refresh_per_second=10, transient=True)
        with live:
            yield LiveView(trail, live)
    else:
        with redirect_stdout(sys.stderr):
            yield PlainView(trail)
