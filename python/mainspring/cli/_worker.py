"""`mainspring worker`: runs the sessions that a store holds for some agents.

Invariant: it is ready when it says so, and from then on SIGTERM and Ctrl-C end it by a drain.
"""

import asyncio
import json
import signal
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from mainspring.agent import Agent
from mainspring.cli._exit import EXIT_CODES, note
from mainspring.cli._load import Choice
from mainspring.cli._store import JsonOption, StoreOption, refuse_memory, writable_store
from mainspring.cli._text import count
from mainspring.cli._turn import Durability, DurabilityOption, StreamOption
from mainspring.engine import Engine
from mainspring.reports import DrainReport

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class OnChangeName(StrEnum):
    """What to do with a session whose agent has changed since."""

    CONTINUE = "continue"
    PIN = "pin"
    REFUSE = "refuse"


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring worker support.bots:triage support.bots:refunds\n"
    "  mainspring worker agent.py:agent --store postgresql://app@db/agents --drain-s 60\n"
    '  mainspring run agent.py:agent "hello" --submit --store postgresql://app@db/agents\n\n'
    + EXIT_CODES
)
def worker(
    references: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:AGENT", help="The agents, by their names in the store."),
    ],
    *,
    store: StoreOption = None,
    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s", metavar="S", min=0, max=86_400, help="Seconds that the drain may take."
        ),
    ] = 30.0,
    on_change: Annotated[
        OnChangeName,
        typer.Option(
            "--on-change",
            help="Sessions of an agent that has changed: go on as it is now, as it was, or not.",
        ),
    ] = OnChangeName.CONTINUE,
    lease_s: Annotated[
        float | None,
        typer.Option(
            "--lease-s",
            metavar="S",
            min=0.1,
            max=3_600,
            help="Seconds after which others take over what a dead process ran. [default: 3]",
        ),
    ] = None,
    stream: StreamOption = True,
    durability: DurabilityOption = Durability.FULL,
    as_json: JsonOption = False,
) -> None:
    """Run the sessions that a store holds for some agents.

    It takes up what was submitted (`mainspring run --submit`), interrupted, or decided about, and
    what other processes leave behind, until SIGTERM or Ctrl-C. Then nothing new is begun: a step
    under way may end, and its session is let go of for another worker. What still runs after
    --drain-s seconds is dropped, and can be resumed.

    A SQLite file is open in one process at a time; several workers need postgresql://...

    Standard output gets what came of the drain: finished, parked and cut sessions.
    """
    refuse_memory(store, "there is nothing to take up")
    with ExitStack() as stack:
        agents = [_load(reference, stack, stream=stream) for reference in references]
        _refuse_doubles(references, agents)
        engine = Engine(
            writable_store(store),
            agents=agents,
            on_change=on_change.value,
            durability=durability.value,
            lease_s=lease_s,
        )
        # What the agents' own code prints must not stand among the results.
        with redirect_stdout(sys.stderr):
            report = asyncio.run(_serve(engine, agents, drain_s))
    if as_json:
        print(json.dumps(asdict(report), indent=2))
        return
    print(f"drained: {report.finished} finished, {report.parked} parked, {report.cut} cut")


def _load(reference: str, stack: ExitStack, *, stream: bool) -> Agent[Any]:
    return Choice(reference=reference).load(stack, stream=stream)[0]


def _refuse_doubles(references: list[str], agents: list[Agent[Any]]) -> None:
    seen: dict[str, str] = {}
    for reference, agent in zip(references, agents, strict=True):
        other = seen.setdefault(agent.name, reference)
        if other is not reference:
            raise typer.BadParameter(
                f'{other} and {reference} are both named "{agent.name}", the store knows agents '
                "by their names"
            )


async def _serve(engine: Engine, agents: list[Agent[Any]], drain_s: float) -> DrainReport:
    """Like `Engine.serve`, and says when it is ready and when it drains."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    async with engine:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, told.set)
        names = ", ".join(agent.name for agent in agents)
        taken = f"; {count(len(engine.resumed), 'session')} taken up" if engine.resumed else ""
        note(f"worker ready for {names}{taken}")
        await told.wait()
        drain = asyncio.ensure_future(engine.drain(drain_s))
        # Said once the engine has been told, so that nothing begins after it.
        await asyncio.sleep(0)
        note(f"told to end; what runs has {drain_s:g} s")
        return await drain
