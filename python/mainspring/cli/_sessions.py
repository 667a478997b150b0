"""`mainspring sessions`: what a store holds.

Invariant: it only reads.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES, note
from mainspring.cli._store import JsonOption, StoreOption, reading
from mainspring.cli._text import clean, columns, moment
from mainspring.reports import SessionInfo

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class StatusName(StrEnum):
    """How a session's last turn stands."""

    OPEN = "open"
    WAITING = "waiting"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring sessions\n"
    "  mainspring sessions --status open --limit 100\n"
    "  mainspring sessions --json | jq -r '.[].session'\n\n" + EXIT_CODES
)
def sessions(
    status: Annotated[
        StatusName | None, typer.Option("--status", help="Only those whose last turn stands so.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")
    ] = 20,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List the sessions of a store, the newest first.

    An open session runs, or its process is gone and `mainspring resume` goes on with it. A waiting
    one needs a decision: `mainspring effects` lists what about. The store is only read, also beside
    a running engine.
    """
    with reading(store) as reader:
        # One more tells whether the list is cut.
        heads = reader.sessions(status.value if status else None, limit + 1, None)
    found = [SessionInfo(*head) for head in heads]
    if as_json:
        print(json.dumps([asdict(each) for each in found[:limit]], indent=2))
        return
    if not found:
        note("no session fits" if status else "the store holds no session")
        return
    rows = [("SESSION", "STATUS", "AGENT", "EVENTS", "STARTED", "ORIGIN")]
    rows += [
        (
            each.session,
            each.status,
            each.agent,
            str(each.event_count),
            moment(each.created_us),
            clean(each.origin or "-"),
        )
        for each in found[:limit]
    ]
    print("\n".join(columns(rows)))
    if len(found) > limit:
        note(f"the newest {limit} are shown; --limit shows more")
