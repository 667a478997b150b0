"""`mainspring replay`: runs a session again against its recorded results.

Invariant: it only reads; no model is asked and no tool runs.
"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES, ExitCode
from mainspring.cli._store import JsonOption, StoreOption, find_session, reading
from mainspring.cli._text import clean, count
from mainspring.reports import ReplayReport, read_replay

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring replay last\n"
    "  mainspring replay 01a2060f-4eef --json | jq .divergence\n\n" + EXIT_CODES
)
def replay(
    session: Annotated[
        str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
    ],
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Run a session again against its recorded results.

    The engine's decisions are made again from the recorded answers and results, and every event
    must come out as it is stored. No model is asked, no tool runs, and the store is only read. The
    exit code is 1 at the first difference.

    --json prints one document: session, identical, event_count, divergence.
    """
    with reading(store) as reader:
        found = find_session(reader, session).session
        report = read_replay(found, reader.replay(found))
    if as_json:
        document = {"session": found, "identical": report.identical, **asdict(report)}
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print(report)
    raise typer.Exit(ExitCode.DONE if report.identical else ExitCode.FAILED)


def _print(report: ReplayReport) -> None:
    print(f"{count(report.event_count, 'event')} came out the same")
    if found := report.divergence:
        print(f"event {found.seq} differs: {clean(found.why)}")
        print(f"  recorded  {clean(found.recorded or 'nothing, the log ends before it')}")
        print(f"  replayed  {clean(found.replayed or 'nothing')}")
