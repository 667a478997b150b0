"""`mainspring fork`: runs a new session that begins with another one's first events.

Invariant: the other session is only read; its events are shared and not copied.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated

import typer

from mainspring.cli._exit import EXIT_CODES
from mainspring.cli._load import Choice
from mainspring.cli._resume import chosen_agent
from mainspring.cli._run import check_choice
from mainspring.cli._store import (
    JsonOption,
    StoreOption,
    find_session,
    load_events,
    reading,
    store_of,
)
from mainspring.cli._totals import total
from mainspring.cli._turn import (
    BaseUrlOption,
    ForkPoint,
    KeyEnvOption,
    ModelOption,
    StreamOption,
    Turn,
    print_refused,
    take_turn,
)
from mainspring.errors import AgentError, MainspringError
from mainspring.events import TERMINAL, Event, InputReceived

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring fork last --at 4 --model gpt-5.4\n"
    "  mainspring fork last --at 6 --edit '4 lamps are left'\n"
    "  mainspring fork last --input 'and in French?'\n\n" + EXIT_CODES
)
def fork(
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
    at: Annotated[
        int | None,
        typer.Option(
            "--at",
            metavar="SEQ",
            min=0,
            help="The last event that both share, as `mainspring show ID --json` numbers them "
            "(seq). Left out: the last one there is.",
        ),
    ] = None,
    edit: Annotated[
        str | None,
        typer.Option(
            "--edit",
            metavar="TEXT",
            help="What event SEQ says instead: an input, an answer or a tool's result.",
        ),
    ] = None,
    told: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="TEXT", help="What the user says next, if SEQ is the end of a turn."
        ),
    ] = None,
    new_session: Annotated[
        str | None, typer.Option("--session", metavar="NEW_ID", help="The new session's id.")
    ] = None,
    store: StoreOption = None,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    api_key_env: KeyEnvOption = None,
    as_json: JsonOption = False,
    stream: StreamOption = True,
) -> None:
    """Run a new session from any point of another one.

    Both share the events up to SEQ. What was recorded there stands and is not repeated; what was
    under way there is made anew, and approvals are asked for anew. Nothing of the other session
    changes. The turn runs as with `mainspring run`.

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
            events = load_events(reader, found.session)
        _check_point(found.session, events if at is None else events[: at + 1], told)
        with ExitStack() as stack:
            agent, origin = chosen_agent(total(events), given, "fork").load(stack, stream=stream)
            turn = Turn(
                agent=agent,
                origin=origin,
                store=store_of(store),
                input=told,
                session=new_session,
                fork=ForkPoint(parent=found.session, at=at, edit=edit),
                as_json=as_json,
            )
            code = take_turn(turn)
    except MainspringError as error:
        if not as_json:
            raise
        code = print_refused(error)
    raise typer.Exit(code)


def _check_point(session: str, shared: Sequence[Event], told: str | None) -> None:
    """Refuses a fork that would have nothing to run."""
    if told is not None:
        return
    last = shared[-1]
    if isinstance(last, TERMINAL):
        why = "ends a turn"
    elif not any(isinstance(event, InputReceived) for event in shared):
        why = "comes before the first turn"
    else:
        return
    raise AgentError(
        "agent_invalid",
        f'event {last.seq} of session "{session}" {why}, there is nothing to run',
        "say what the user says next with --input TEXT, or name an earlier event with --at",
    )
