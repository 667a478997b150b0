"""`mainspring show`: what happened in a session.

Invariant: it only reads; `--json` prints the stored events and nothing else.
"""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mainspring.cli._exit import EXIT_CODES, note
from mainspring.cli._store import JsonOption, StoreOption, find_session, reading, records
from mainspring.cli._text import call_text, clean, count, moment, one_line
from mainspring.cli._totals import Totals, total
from mainspring.cli._trail import Trail, TrailLimits, budget_text
from mainspring.cli._view import console_of
from mainspring.errors import AgentError
from mainspring.events import Event, decode_event, placed
from mainspring.reports import SessionInfo

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_SHORT = TrailLimits(arguments_chars_max=100, result_chars_max=120)
_FULL = TrailLimits(arguments_chars_max=100_000, result_chars_max=100_000)


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring show last\n"
    "  mainspring show 01a2060f-4eef --full | less\n"
    "  mainspring show last --at 7\n"
    "  mainspring show last --json | jq 'select(.kind == \"tool_call_failed\")'\n\n" + EXIT_CODES
)
def show(
    session: Annotated[
        str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Do not shorten arguments and texts.")
    ] = False,
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            metavar="SEQ",
            min=0,
            help="Only up to event SEQ, and the conversation as it stood then.",
        ),
    ] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show what happened in a session, step by step.

    Each step names its model and why it was chosen, the tokens and the time, the tool calls with
    their arguments, results and errors; then come the totals and the answer. With --at come the
    phase that the session was in and the messages that its next model call would hold.

    --json prints one event a line, as stored: kind, seq, at_us and the event's own fields.
    """
    with reading(store) as reader:
        info = find_session(reader, session)
        stored = records(reader, info.session)
        state: dict[str, Any] | None = None
        if at is not None:
            stored = _cut(info, stored, at)
            state = json.loads(reader.state_at(info.session, at + 1))
        spending: dict[str, Any] | None = None
        if any('"kind":"budget_set"' in text for _, _, _, text in stored):
            until = None if at is None else at + 1
            spending = json.loads(reader.state_at(info.session, until))["spending"]
    if as_json:
        for seq, at_us, _, text in stored:
            print(placed(seq, at_us, text))
        return
    events = [decode_event(seq, at_us, text) for seq, at_us, _, text in stored]
    limits = _FULL if full else _SHORT
    _print_trail(info, events, limits)
    if spending is not None:
        _print_spending(spending)
    if state is not None:
        _print_state(state, limits)
        return
    _print_totals(info, total(events, waits=info.status == "waiting"))


def _cut(info: SessionInfo, stored: list[tuple[Any, ...]], at: int) -> list[tuple[Any, ...]]:
    last = stored[-1][0]
    if at > last:
        raise AgentError(
            "agent_invalid",
            f'session "{info.session}" has no event {at}, its last one is {last}',
            f"mainspring show {info.session} --json shows the events with their positions (seq)",
        )
    return [each for each in stored if each[0] <= at]


def _print_trail(info: SessionInfo, events: list[Event], limits: TrailLimits) -> None:
    console = console_of(sys.stdout)
    print(f"session  {info.session}")
    print(f"agent    {info.agent}{f'  from {clean(info.origin)}' if info.origin else ''}")
    print(f"started  {moment(info.created_us)}")
    if info.parent is not None:
        shared = count(info.shared_count or 0, "event")
        print(f"forked   from {info.parent}, with its first {shared}")
    if info.owner is not None:
        print(f"owner    {clean(info.owner)}")
    owners = f", {count(info.epoch, 'owner')}" if info.epoch > 1 else ""
    print(f"status   {info.status}  ({count(info.event_count, 'event')}{owners})\n")
    trail = Trail(limits=limits, turns=True)
    for event in events:
        for each in trail.feed(event):
            console.print(each.styled)


def _print_state(state: dict[str, Any], limits: TrailLimits) -> None:
    """The state after an event: the phase by its name, and the conversation."""
    phase = state["phase"]
    name = phase if isinstance(phase, str) else next(iter(phase))
    messages = state["messages"]
    print(
        f"\nafter event {state['next_seq'] - 1}: {name.lower()}, {count(len(messages), 'message')}"
    )
    for message in messages:
        for kind, told in _told(message):
            print(f"  {kind.ljust(9)}  {one_line(told, limits.result_chars_max)}")


def _told(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Who says what in a message, a line each."""
    role = str(message["role"])
    parts = message.get("content") or ()
    texts = [part.get("text", f"({part.get('type')})") for part in parts]
    if texts or message.get("text"):
        yield role, "\n".join(texts) or message["text"]
    for asked in message.get("tool_calls") or ():
        yield role, f"calls {call_text(asked['name'], asked['arguments'], 200)}"


def _print_spending(spending: dict[str, Any]) -> None:
    """What the session has spent of its budget, or what its tenant has been charged for it."""
    funding = spending.get("funding", {})
    budget = funding.get("budget")
    if budget is not None:
        spent = spending.get("spent", {}) | {"ms": spending.get("used_ms", 0)}
        print(f"\nbudget   {budget_text(budget, spent)}")
    if funding.get("tenant"):
        charged = spending.get("charged", {})
        usd, calls = charged.get("usd_nanos", 0) / 1e9, charged.get("calls", 0)
        print(f"tenant   {clean(funding['tenant'])}, charged {usd:.4f} usd, {count(calls, 'call')}")


def _print_totals(info: SessionInfo, totals: Totals) -> None:
    print(f"\ntotal    {totals.summary()}")
    if totals.text is not None:
        print(f"\n{clean(totals.text)}")
    if totals.status == "open":
        note(f"the turn has no end: it still runs, or: mainspring resume {info.session}")
    if totals.status == "waiting":
        note(f"the turn waits for a decision: mainspring effects {info.session}")
