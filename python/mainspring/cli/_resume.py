"""`mainspring resume`: goes on with a session whose process is gone.

Invariant: a session that has ended is never run again; its result is printed once more.
"""

from contextlib import ExitStack
from typing import Annotated

import typer

from mainspring.agent import Agent
from mainspring.cli._exit import EXIT_CODES, ExitCode, note
from mainspring.cli._load import Choice, choice_of
from mainspring.cli._run import check_choice
from mainspring.cli._store import (
    JsonOption,
    StoreOption,
    find_session,
    load_events,
    reading,
    store_of,
)
from mainspring.cli._totals import Totals, total
from mainspring.cli._turn import (
    BaseUrlOption,
    Durability,
    DurabilityOption,
    KeyEnvOption,
    ModelOption,
    StreamOption,
    Turn,
    print_end,
    print_refused,
    take_turn,
    typed_output,
)
from mainspring.errors import AgentError, MainspringError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring resume last\n"
    "  mainspring resume 01a2060f-4eef --json\n"
    "  mainspring resume last agent.py:agent --model gpt-5.4\n\n" + EXIT_CODES
)
def resume(
    session: Annotated[
        str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
    ],
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:AGENT",
            help="The agent. Left out: the one that the session was started with.",
            show_default=False,
        ),
    ] = None,
    *,
    store: StoreOption = None,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    api_key_env: KeyEnvOption = None,
    as_json: JsonOption = False,
    stream: StreamOption = True,
    durability: DurabilityOption = Durability.FULL,
) -> None:
    """Go on with a session whose process is gone.

    Recorded model calls and tool results are not repeated. A session that has ended is not run
    again: its result is printed, and the exit code is that of the run. One that waits for a
    decision is taken up, and left again with exit code 3 if it still waits.

    --json prints the same document as `mainspring run --json`.
    """
    given = Choice(
        reference=reference or "",
        models=tuple(model or ()),
        base_url=base_url,
        api_key_env=api_key_env,
    )
    check_choice(given)
    try:
        with reading(store) as reader:
            found = find_session(reader, session)
            totals = total(load_events(reader, found.session))
        if found.status not in ("open", "waiting"):
            code = _print_ended(totals, store_of(store), as_json=as_json)
        else:
            with ExitStack() as stack:
                agent, origin = chosen_agent(totals, given, "resume").load(stack, stream=stream)
                turn = Turn(
                    agent=agent,
                    origin=origin,
                    store=store_of(store),
                    session=found.session,
                    durability=durability,
                    as_json=as_json,
                )
                code = take_turn(turn)
    except MainspringError as error:
        if not as_json:
            raise
        code = print_refused(error)
    raise typer.Exit(code)


def chosen_agent(totals: Totals, given: Choice, command: str) -> Choice:
    """What to run: as the session was started, with what the command line says in its place."""
    if given.reference and (given.models or not totals.origin):
        return given
    if not totals.origin:
        raise AgentError(
            "agent_invalid",
            f'session "{totals.session}" was started by a program, not from a module',
            f"say which agent runs it: mainspring {command} {totals.session} MODULE:AGENT",
        )
    started = choice_of(totals.origin)
    models = given if given.models else started
    return Choice(
        reference=given.reference or started.reference,
        models=models.models,
        base_url=models.base_url,
        api_key_env=models.api_key_env,
    )


def _print_ended(totals: Totals, store: str, *, as_json: bool) -> ExitCode:
    if not as_json:
        note(f"session {totals.session} has ended already; nothing is run")
        return print_end(totals, totals.text, store=store, as_json=False)
    agent: Agent[object] | None = None
    if totals.origin:
        # The agent only tells whether the answer is a value or text.
        try:
            agent, _ = choice_of(totals.origin).load(None, stream=False)
        except MainspringError:
            agent = None
    return print_end(totals, typed_output(agent, totals.text), store=store, as_json=True)
