"""`mainspring run`: an agent of a module, or the built-in assistant, on an input.

Invariant: which agent and which models run is decided before the store is opened.
"""

import re
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from mainspring.budget import usd
from mainspring.cli._exit import EXIT_CODES
from mainspring.cli._load import ASSISTANT, Choice
from mainspring.cli._store import JsonOption, StoreOption, refuse_memory, writable_store
from mainspring.cli._turn import (
    BaseUrlOption,
    BudgetOption,
    Durability,
    DurabilityOption,
    KeyEnvOption,
    ModelOption,
    StreamOption,
    Turn,
    print_refused,
    take_turn,
)
from mainspring.errors import MainspringError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

# A lone argument of this form is an agent without its input, not a question.
_REFERENCE = re.compile(r"[\w./~-]+(\.py|:[A-Za-z_][\w.]*)")


@app.command(
    epilog="\b\nExamples:\n"
    '  mainspring run agent.py:agent "which files changed today?"\n'
    '  mainspring run support.bots:triage "refund order 7" --session order-7\n'
    "  git diff | mainspring run review:agent - --json | jq -r .output\n"
    '  mainspring run "what is a mainspring?" --base-url http://127.0.0.1:8080/v1 --model qwen3\n'
    "\n" + EXIT_CODES
)
def run(
    first: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:AGENT",
            help="The agent: an attribute of a module or of a .py file, or a function that makes "
            "it. Left out: an assistant without tools, on --model or on the provider whose key "
            "is set.",
            show_default=False,
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="What the agent is told; - reads standard input.",
            show_default=False,
        ),
    ] = None,
    *,
    store: StoreOption = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="ID", help="A new session's id, or one to continue."),
    ] = None,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    api_key_env: KeyEnvOption = None,
    submit: Annotated[
        bool,
        typer.Option(
            "--submit",
            help="Only store the turn, for a `mainspring worker`, and print the session's id.",
        ),
    ] = False,
    budget_usd: BudgetOption = None,
    as_json: JsonOption = False,
    stream: StreamOption = True,
    durability: DurabilityOption = Durability.FULL,
) -> None:
    """Run an agent on an input, and keep its session.

    The session is written to the store as it happens: after Ctrl-C, a crash or kill -9,
    `mainspring resume` goes on where it was. Standard output gets the answer alone; what happens
    meanwhile goes to standard error, live on a terminal and as lines elsewhere.

    Where only a person's decision can bring the turn on, it is left waiting: the exit code is 3,
    `mainspring effects` decides and `mainspring resume` goes on.

    --json prints one document: session, status, output, usage, cost_usd, steps, error.
    """
    reference, told = _arguments(first, second)
    choice = Choice(
        reference=reference, models=tuple(model or ()), base_url=base_url, api_key_env=api_key_env
    )
    check_choice(choice)
    if submit:
        refuse_memory(store, "there is nothing for a worker to take up")
    try:
        with ExitStack() as stack:
            agent, origin = choice.load(stack, stream=stream)
            turn = Turn(
                agent=agent,
                origin=origin,
                store=writable_store(store),
                input=told,
                session=session,
                submit=submit,
                budget=None if budget_usd is None else usd(budget_usd),
                durability=durability,
                as_json=as_json,
            )
            code = take_turn(turn)
    except MainspringError as error:
        if not as_json:
            raise
        code = print_refused(error)
    raise typer.Exit(code)


def check_choice(choice: Choice) -> None:
    """Refuses options that need one another."""
    for option, value in (("--base-url", choice.base_url), ("--api-key-env", choice.api_key_env)):
        if value and not choice.models:
            raise typer.BadParameter(f"{option} needs --model NAME beside it")


def _arguments(first: str, second: str | None) -> tuple[str, str]:
    if second is None:
        if _REFERENCE.fullmatch(first):
            raise typer.BadParameter(f'"{first}" names an agent, its input is missing')
        reference, told = ASSISTANT, first
    else:
        reference, told = first, second
    if told == "-":
        told = sys.stdin.read()
    if not told.strip():
        raise typer.BadParameter("the input is empty")
    return reference, told
