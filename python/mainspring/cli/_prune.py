"""`mainspring prune`: removes ended sessions from a store.

Invariant: only sessions whose last turn has ended are removed, and only on request.
"""

import asyncio
import json
import re
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES
from mainspring.cli._store import JsonOption, StoreOption, existing_store
from mainspring.cli._text import count
from mainspring.engine import Engine
from mainspring.reports import CompactReport, PruneReport, Status

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d{1,9})([smhdw])")


class EndedStatus(StrEnum):
    """How a session's last turn ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring prune --older-than 30d --dry-run\n"
    "  mainspring prune --older-than 12h --status failed --agent triage\n"
    "  mainspring prune --older-than 90d --compact --json\n\n" + EXIT_CODES
)
def prune(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only sessions whose last event is older: a number and s, m, h, d or w, as 30d.",
        ),
    ],
    *,
    status: Annotated[
        list[EndedStatus] | None,
        typer.Option(
            "--status", help="Only those that ended so; several times. [default: all three]"
        ),
    ] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="Only those of this agent.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be removed.")
    ] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Give the room back to the system; takes a while."),
    ] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Remove ended sessions from a store for good.

    Sessions that run, wait for a decision or can be resumed stay, and so do the events that a fork
    shares with a removed session.

    --json prints one document: dry_run, sessions, kept_for_forks, events, blobs, and with --compact
    bytes_before and bytes_after.
    """
    older_than_s = seconds_of(older_than)
    if dry_run and compact:
        raise typer.BadParameter("--dry-run changes nothing, leave --compact out")
    statuses: list[Status] = [each.value for each in status or EndedStatus]
    address = existing_store(store)
    pruned, compacted = asyncio.run(
        _prune(address, older_than_s, statuses, agent, dry_run=dry_run, compact=compact)
    )
    if as_json:
        document = {"dry_run": dry_run, **asdict(pruned)}
        document |= {} if compacted is None else asdict(compacted)
        print(json.dumps(document, indent=2))
        return
    print(
        f"{'would remove' if dry_run else 'removed'} {count(pruned.sessions, 'session')} "
        f"({pruned.kept_for_forks:,} in part, for their forks), {count(pruned.events, 'event')}, "
        f"{count(pruned.blobs, 'blob')}"
    )
    if compacted is not None:
        before, after = (_megabytes(compacted.bytes_before), _megabytes(compacted.bytes_after))
        print(f"compacted the store from {before} to {after}")


def seconds_of(text: str) -> float:
    """Reads a duration such as `30d`, `12h` or `90m`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(
            f'"{text}" is no time, write a number and its unit: 45s, 90m, 12h, 30d or 8w'
        )
    return float(int(found[1]) * _UNITS_S[found[2]])


async def _prune(
    store: str,
    older_than_s: float,
    statuses: list[Status],
    agent: str | None,
    *,
    dry_run: bool,
    compact: bool,
) -> tuple[PruneReport, CompactReport | None]:
    async with Engine(store) as engine:
        pruned = await engine.prune(
            older_than_s=older_than_s, statuses=statuses, agent=agent, dry_run=dry_run
        )
        return pruned, await engine.compact() if compact else None


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.2f} MB"
