"""Runs one turn for a person: opens the store, shows what happens, prints the answer.

Invariant: whatever ends the process, the session can be resumed, and the person is told how.
Start reading at `take_turn`.
"""

import asyncio
import json
import signal
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import typer

from mainspring.agent import Agent
from mainspring.budget import Budget
from mainspring.cli._effects import described
from mainspring.cli._exit import ExitCode, explain, note, print_error
from mainspring.cli._store import hint_command
from mainspring.cli._text import clean
from mainspring.cli._totals import Totals, total
from mainspring.cli._trail import Trail
from mainspring.cli._view import View, viewing
from mainspring.engine import SESSIONS_PAGE_MAX, Engine
from mainspring.errors import MainspringError
from mainspring.events import Failure
from mainspring.reports import Pending
from mainspring.run import Run


class Durability(StrEnum):
    """What a commit survives."""

    FULL = "full"
    NORMAL = "normal"


StreamOption = Annotated[
    bool,
    typer.Option("--stream/--no-stream", help="Ask the models for their answers as streams."),
]
DurabilityOption = Annotated[
    Durability,
    typer.Option(
        "--durability", help="full: survives a power cut. normal: survives kill -9 of the process."
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Use this model instead; several times: smallest first, the next takes over.",
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url", metavar="URL", help="OpenAI-compatible server that has the --model."
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-usd",
        metavar="USD",
        help="US dollars that the session may spend in all its turns; every model needs a price.",
    ),
]
KeyEnvOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env", metavar="VARIABLE", help="Environment variable with that server's key."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """Where a turn branches off from another session.

    Args:
        parent: The other session.
        at: Position of the last event that both share; None: the last one there is.
        edit: What that event says instead.
    """

    parent: str
    at: int | None = None
    edit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is to be run, and how it is shown.

    Args:
        agent: Who runs it.
        origin: Where the agent can be loaded from again.
        store: The store's address.
        input: What the user says; None: go on with an interrupted turn, or with that of a fork.
        session: Id of the session; None: a new one.
        fork: The session is new and begins as this one; None: it does not.
        submit: Only store the turn, for a worker.
        budget: What the session may spend in all its turns; None: no bound, or as before.
        durability: What a commit survives.
        as_json: Print one JSON document instead of the answer, and no progress.
    """

    agent: Agent[Any]
    origin: str | None
    store: str
    input: str | None = None
    session: str | None = None
    fork: ForkPoint | None = None
    submit: bool = False
    budget: Budget | None = None
    durability: Durability = Durability.FULL
    as_json: bool = False


def take_turn(turn: Turn) -> ExitCode:
    """Runs a turn to its end, or until only a person's decision can bring it on.

    Standard output gets the answer, standard error the rest.

    Raises:
        MainspringError: The turn could not be begun.
    """
    seen = _Seen()
    try:
        totals = asyncio.run(_run(turn, seen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _tell_interrupted(turn, seen.session)
        return ExitCode.INTERRUPTED
    if turn.submit:
        return _print_submitted(totals, turn)
    if seen.pending:
        return _print_waiting(totals, seen.pending, turn)
    output = typed_output(turn.agent, totals.text)
    return print_end(totals, output, store=turn.store, as_json=turn.as_json)


@dataclass(slots=True)
class _Seen:
    """What is known if the turn is broken off, and what it waits for."""

    session: str | None = None
    pending: list[Pending] = field(default_factory=list)


async def _run(turn: Turn, seen: _Seen) -> Totals:
    task = asyncio.current_task()
    assert task is not None, "a coroutine of asyncio.run is a task"
    # `timeout`, `kill` and service managers send SIGTERM: it ends like Ctrl-C. Only this task is
    # cancelled, so that the engine closes before the tools do and records nothing of that.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    trail = Trail(turns=False)
    engine = Engine(turn.store, agents=(), durability=turn.durability.value)
    async with engine:
        run = await _begin(engine, turn)
        seen.session = run.session
        if not turn.as_json:
            note(f"session {run.session}  agent {turn.agent.name}")
        waits = False
        if not turn.submit:
            with viewing(trail, silent=turn.as_json) as view:
                waits = await _show(engine, run, trail, view)
        if waits:
            seen.pending = await engine.pending(run.session)
        return total(await engine.log(run.session), waits=waits)


async def _begin(engine: Engine, turn: Turn) -> Run[Any]:
    fork = turn.fork
    if fork is not None:
        return await engine.fork(
            fork.parent,
            turn.agent,
            at=fork.at,
            edit=fork.edit,
            input=turn.input,
            new_session=turn.session,
            origin=turn.origin,
        )
    if turn.input is None:
        assert turn.session is not None, "an interrupted turn has a session"
        return await engine.resume(turn.session, turn.agent)
    begin = engine.submit if turn.submit else engine.start
    return await begin(
        turn.agent, turn.input, session=turn.session, origin=turn.origin, budget=turn.budget
    )


async def _show(engine: Engine, run: Run[Any], trail: Trail, view: View) -> bool:
    """Shows the turn's events; what came before them is only remembered.

    Returns:
        Whether the turn waits for a decision, and for nothing else.
    """
    for event in await engine.log(run.session):
        if event.seq < run.first_seq:
            trail.feed(event)
    async for event in run.events():
        view.feed(event)
        if trail.asks and await _waits(engine, run.session, event.seq):
            return True
    return False


async def _waits(engine: Engine, session: str, seq: int) -> bool:
    """Whether a session waits for a decision, its event at `seq` being the last one."""
    before: str | None = None
    while page := await engine.sessions(status="waiting", limit=SESSIONS_PAGE_MAX, before=before):
        for each in page:
            if each.session == session:
                return each.event_count == seq + 1
        before = page[-1].session
    return False


def typed_output(agent: Agent[Any] | None, text: str | None) -> Any:
    """The answer as JSON prints it: a value if the agent has an output type, else the text."""
    if text is None or agent is None or agent.output_schema() is None:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def print_end(totals: Totals, output: Any, *, store: str, as_json: bool) -> ExitCode:
    """Prints how a session ended, and gives the exit code for it."""
    code = ExitCode.DONE if totals.status == "finished" else ExitCode.FAILED
    if as_json:
        print(json.dumps(totals.as_dict(output), ensure_ascii=False, indent=2))
        return code
    if totals.text is not None:
        # A pipe gets the answer as it is; a terminal must not obey it.
        print(clean(totals.text) if sys.stdout.isatty() else totals.text, flush=True)
    if totals.error is not None:
        print_error(clean(totals.error.message), clean(totals.error.hint or ""))
    note(f"{totals.status}: {totals.summary()}")
    note(f"look at it: {hint_command('show', totals.session, store=store)}")
    return code


def _print_waiting(totals: Totals, pending: list[Pending], turn: Turn) -> ExitCode:
    if turn.as_json:
        print(json.dumps(totals.as_dict(None), ensure_ascii=False, indent=2))
        return ExitCode.WAITS
    note(f"waiting: {totals.summary()}")
    for each in pending:
        note("\n".join(described(each, turn.store)))
    note(f"then go on with: {hint_command('resume', totals.session, store=turn.store)}")
    return ExitCode.WAITS


def _print_submitted(totals: Totals, turn: Turn) -> ExitCode:
    if turn.as_json:
        print(json.dumps(totals.as_dict(None), ensure_ascii=False, indent=2))
        return ExitCode.DONE
    print(totals.session, flush=True)
    resume = hint_command("resume", totals.session, store=turn.store)
    note(f"stored; a worker of the store runs it, or: {resume}")
    return ExitCode.DONE


def _tell_interrupted(turn: Turn, session: str | None) -> None:
    if session is None:
        note("interrupted before the session began")
        return
    note(f"interrupted; go on with: {hint_command('resume', session, store=turn.store)}")


def print_refused(error: MainspringError) -> ExitCode:
    """For `--json`: the document of a run that could not be begun."""
    failure = Failure(error.code, error.message, error.hint, error.retryable)
    refused = Totals(status="failed", error=failure)
    print(json.dumps(refused.as_dict(None), ensure_ascii=False, indent=2))
    return explain(error)
