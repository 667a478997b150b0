"""`mainspring show`: what happened in a session.

Invariant: it only reads; `--json` prints the stored events and nothing else.
"""

import sys
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES, note
from mainspring.cli._store import JsonOption, StoreOption, find_session, reading, records
from mainspring.cli._text import clean, count, moment
from mainspring.cli._totals import Totals, total
from mainspring.cli._trail import Trail, TrailLimits
from mainspring.cli._view import console_of
from mainspring.engine import SessionInfo
from mainspring.events import Event, decode_event, placed

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_SHORT = TrailLimits(arguments_chars_max=100, result_chars_max=120)
_FULL = TrailLimits(arguments_chars_max=100_000, result_chars_max=100_000)


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring show last\n"
    "  mainspring show 01a2060f-4eef --full | less\n"
    "  mainspring show last --json | jq 'select(.kind == \"tool_call_failed\")'\n\n" + EXIT_CODES
)
def show(
    session: Annotated[
        str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Do not shorten arguments and texts.")
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show what happened in a session, step by step.

    Each step names its model and why it was chosen, the tokens and the time, the tool calls with
    their arguments, results and errors; then come the totals and the answer.

    --json prints one event a line, as stored: kind, seq, at_us and the event's own fields.
    """
    with reading(store) as reader:
        info = find_session(reader, session)
        stored = records(reader, info.session)
    if as_json:
        for seq, at_us, _, text in stored:
            print(placed(seq, at_us, text))
        return
    events = [decode_event(seq, at_us, text) for seq, at_us, _, text in stored]
    _print(info, events, _FULL if full else _SHORT)


def _print(info: SessionInfo, events: list[Event], limits: TrailLimits) -> None:
    totals = total(events)
    console = console_of(sys.stdout)
    print(f"session  {info.session}")
    print(f"agent    {info.agent}{f'  from {clean(info.origin)}' if info.origin else ''}")
    print(f"started  {moment(info.created_us)}")
    owners = f", {count(info.epoch, 'owner')}" if info.epoch > 1 else ""
    print(f"status   {info.status}  ({count(info.event_count, 'event')}{owners})\n")
    trail = Trail(limits=limits, turns=True)
    for event in events:
        for each in trail.feed(event):
            console.print(each.styled)
    _print_totals(totals)


def _print_totals(totals: Totals) -> None:
    print(f"\ntotal    {totals.summary()}")
    if totals.text is not None:
        print(f"\n{clean(totals.text)}")
    if totals.status == "open":
        note(f"the turn has no end: it still runs, or: mainspring resume {totals.session}")
