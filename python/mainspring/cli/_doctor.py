"""`mainspring doctor`: what this machine can run, and why not.

Invariant: every line is something that was tried; the exit code is 1 only where basic use fails.
"""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES, ExitCode
from mainspring.cli._probes import PROBES, Finding
from mainspring.cli._store import StoreOption
from mainspring.cli._text import clean, line
from mainspring.cli._view import console_of

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring doctor\n"
    "  mainspring doctor --json | jq '.[] | select(.state != \"ok\")'\n\n" + EXIT_CODES
)
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    store: StoreOption = None,
) -> None:
    """Find out what this machine can run, and why not.

    Each line is something that was tried: ok, warn (something is not possible) or fail (nothing
    runs before it is cured). Keys are looked for by name and never used; no other machine is asked.
    """
    findings: list[Finding] = []
    for probe in PROBES:
        for finding in probe(store):
            findings.append(finding)
            if not as_json:
                _print(finding)
    if as_json:
        print(json.dumps([asdict(each) for each in findings], indent=2))
    failed = any(each.state == "fail" for each in findings)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.DONE)


def _print(finding: Finding) -> None:
    console = console_of(sys.stdout)
    state = (f"{finding.state:<5}", _STYLES[finding.state])
    console.print(line(state, f"{finding.name:<26}{clean(finding.detail)}").styled)
    if finding.cure:
        console.print(line(f"{'':<31}", (f"-> {finding.cure}", "dim")).styled)
