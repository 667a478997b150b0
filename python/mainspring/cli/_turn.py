"""Runs one turn for a person: opens the store, shows what happens, prints the answer.

Invariant: whatever ends the process, the session can be resumed, and the person is told how.
Start reading at `take_turn`.
"""

import asyncio
import json
import shlex
import signal
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from mainspring.agent import Agent
from mainspring.cli._exit import ExitCode, explain, note, print_error
from mainspring.cli._store import DEFAULT_STORE
from mainspring.cli._text import clean
from mainspring.cli._totals import Totals, total
from mainspring.cli._trail import Trail
from mainspring.cli._view import View, viewing
from mainspring.engine import Engine, Run
from mainspring.errors import MainspringError
from mainspring.events import Failure


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
KeyEnvOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env", metavar="VARIABLE", help="Environment variable with that server's key."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is to be run, and how it is shown.

    Args:
        agent: Who runs it.
        origin: Where the agent can be loaded from again.
        store: The store's address.
        input: What the user says; None: go on with an interrupted turn.
        session: Id of the session; None: a new one.
        durability: What a commit survives.
        as_json: Print one JSON document instead of the answer, and no progress.
    """

    agent: Agent[Any]
    origin: str | None
    store: str
    input: str | None = None
    session: str | None = None
    durability: Durability = Durability.FULL
    as_json: bool = False


def take_turn(turn: Turn) -> ExitCode:
    """Runs a turn to its end; standard output gets the answer, standard error the rest.

    Raises:
        MainspringError: The turn could not be begun.
    """
    seen = _Seen()
    try:
        totals = asyncio.run(_run(turn, seen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _tell_interrupted(turn, seen.session)
        return ExitCode.INTERRUPTED
    output = typed_output(turn.agent, totals.text)
    return print_end(totals, output, store=turn.store, as_json=turn.as_json)


@dataclass(slots=True)
class _Seen:
    """What is known if the turn is broken off."""

    session: str | None = None


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
        with viewing(trail, silent=turn.as_json) as view:
            await _show(engine, run, trail, view)
        return total(await engine.log(run.session))


async def _begin(engine: Engine, turn: Turn) -> Run[Any]:
    if turn.input is None:
        assert turn.session is not None, "an interrupted turn has a session"
        return await engine.resume(turn.session, turn.agent)
    return await engine.start(turn.agent, turn.input, session=turn.session, origin=turn.origin)


async def _show(engine: Engine, run: Run[Any], trail: Trail, view: View) -> None:
    """Shows the turn's events; what came before them is only remembered."""
    for event in await engine.log(run.session):
        if event.seq < run.first_seq:
            trail.feed(event)
    async for event in run.events():
        view.feed(event)


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
    note(f"look at it: {_command('show', totals.session, store)}")
    return code


def _tell_interrupted(turn: Turn, session: str | None) -> None:
    if session is None:
        note("interrupted before the session began")
        return
    note(f"interrupted; go on with: {_command('resume', session, turn.store)}")


def _command(name: str, session: str, store: str) -> str:
    words = ["mainspring", name, session]
    if store != DEFAULT_STORE:
        words += ["--store", store]
    return shlex.join(words)


def print_refused(error: MainspringError) -> ExitCode:
    """For `--json`: the document of a run that could not be begun."""
    failure = Failure(error.code, error.message, error.hint, error.retryable)
    refused = Totals(status="failed", error=failure)
    print(json.dumps(refused.as_dict(None), ensure_ascii=False, indent=2))
    return explain(error)
