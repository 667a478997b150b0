"""`mainspring effects`: the tool calls that wait for a decision, and the decisions.

Invariant: a decision is about what the person was shown: it names the request that was open when
the store was read, and counts once. Start reading at `_decide`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mainspring.cli._exit import EXIT_CODES, ExitCode, note, print_error
from mainspring.cli._store import (
    JsonOption,
    StoreOption,
    find_session,
    hint_command,
    pending_calls,
    reading,
    store_of,
)
from mainspring.cli._text import call_text, count
from mainspring.engine import Engine
from mainspring.errors import JournalError, SessionError
from mainspring.outcome import Outcome
from mainspring.reports import Pending

LIST = "list"
ARGUMENTS_CHARS_MAX = 2_000


class _ListByDefault(TyperGroup):
    """Lists unless the first word is one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the name of the list in front where no command is named."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [LIST, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    add_completion=False,
    rich_markup_mode=None,
    help="List the tool calls that wait for a decision, and decide.\n\n"
    "`mainspring effects [ID]` lists them, `approve`, `deny` and `resolve` decide. A session goes "
    "on when it is resumed after its decision.",
    epilog="\b\nExamples:\n"
    "  mainspring effects\n"
    "  mainspring effects last --json\n"
    "  mainspring effects approve last --by ann\n"
    "  mainspring effects deny 01a2060f-4eef 2 --message 'too much'\n"
    "  mainspring effects resolve last --done 'order 7 is paid'\n\n" + EXIT_CODES,
)

SessionArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
]
CallArgument = Annotated[
    int | None,
    typer.Argument(
        metavar="CALL",
        min=0,
        help="The call's number, as the list shows it. Left out: the only one that fits.",
        show_default=False,
    ),
]
ByOption = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decided, for the log.")
]


@app.command(LIST)
def list_effects(
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="Only this session's: its id, the beginning of it, or last. Left out: those of "
            "all sessions that wait for nothing else.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=100_000, help="Look at so many sessions at most.")
    ] = 100,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List the tool calls that wait for a decision, the newest session first.

    An approval waits because its tool asks for one before it runs. An effect waits because its
    process ended while the tool ran, and it must be found out what became of it. The store is only
    read, also beside a running engine.

    --json prints a list of objects: session, call, kind, tool, arguments, effect_id, approval,
    attempt.
    """
    with reading(store) as reader:
        wanted = None if session is None else find_session(reader, session).session
        found = pending_calls(reader, wanted, limit)
    if as_json:
        print(json.dumps([_as_dict(each) for each in found], ensure_ascii=False, indent=2))
        return
    if not found:
        note("nothing waits for a decision")
        return
    print("\n\n".join("\n".join(described(each, store_of(store))) for each in found))


@app.command("approve", epilog=EXIT_CODES)
def approve(
    session: SessionArgument,
    call: CallArgument = None,
    *,
    arguments: Annotated[
        str | None,
        typer.Option(
            "--arguments",
            metavar="JSON",
            help="All arguments to run it with, as an object, if not those of the model.",
        ),
    ] = None,
    by: ByOption = None,
    store: StoreOption = None,
) -> None:
    """Let a tool call run that waits for approval.

    The decision is stored; the tool runs when the session is resumed.
    """
    edited = None if arguments is None else _object(arguments)
    verb = "approved" if edited is None else f"approved with {json.dumps(edited)}"

    async def tell(engine: Engine, chosen: Pending) -> None:
        await engine.approve(
            chosen.session, chosen.call, approval=chosen.approval, arguments=edited, by=by
        )

    _decide(session, call, "approval", store=store, tell=tell, verb=verb)


@app.command("deny", epilog=EXIT_CODES)
def deny(
    session: SessionArgument,
    call: CallArgument = None,
    *,
    message: Annotated[
        str, typer.Option("--message", metavar="TEXT", help="Why not; the model reads it.")
    ] = "no reason given",
    by: ByOption = None,
    store: StoreOption = None,
) -> None:
    """Refuse a tool call that waits for approval.

    The decision is stored; the model reads the message when the session is resumed.
    """

    async def tell(engine: Engine, chosen: Pending) -> None:
        await engine.deny(chosen.session, chosen.call, message, approval=chosen.approval, by=by)

    _decide(session, call, "approval", store=store, tell=tell, verb="denied")


@app.command("resolve", epilog=EXIT_CODES)
def resolve(
    session: SessionArgument,
    call: CallArgument = None,
    *,
    done: Annotated[
        str | None,
        typer.Option("--done", metavar="TEXT", help="It took effect; the model reads this result."),
    ] = None,
    not_done: Annotated[
        bool, typer.Option("--not-done", help="It took no effect: it is run again.")
    ] = False,
    failed: Annotated[
        str | None,
        typer.Option("--failed", metavar="TEXT", help="It is given up; the model reads this."),
    ] = None,
    by: ByOption = None,
    store: StoreOption = None,
) -> None:
    """Say what became of a tool call whose process ended.

    One of --done, --not-done and --failed is needed. The answer is stored, and the session goes on
    with it when it is resumed.
    """
    if (done is not None) + not_done + (failed is not None) != 1:
        raise typer.BadParameter("one of --done TEXT, --not-done and --failed TEXT is needed")
    if done is not None:
        outcome = Outcome.done(done)
    elif failed is not None:
        outcome = Outcome.failed(failed)
    else:
        outcome = Outcome.not_done()

    async def tell(engine: Engine, chosen: Pending) -> None:
        await engine.resolve(chosen.session, chosen.call, outcome, by=by)

    _decide(session, call, "effect", store=store, tell=tell, verb="resolved")


def described(each: Pending, store: str) -> list[str]:
    """Lines about a call that waits, the last one with how to decide."""
    attempts = f", {count(each.attempt, 'attempt')} begun" if each.attempt else ""
    needed = _WAITS_FOR[kind_of(each)]
    lines = [
        f"session {each.session}  call {each.call}  waits for {needed}{attempts}",
        f"  what       {call_text(each.tool, each.arguments, ARGUMENTS_CHARS_MAX)}",
        f"  effect id  {each.effect_id}",
    ]
    if each.approval is not None:
        lines.append(f"  approval   {each.approval}")
    return [*lines, *(f"  {way}" for way in ways(each, store))]


def ways(each: Pending, store: str) -> list[str]:
    """How to decide about a call, one way a line."""

    def way(verb: str, *options: str) -> str:
        words = ("effects", verb, each.session, str(each.call), *options)
        return f"{verb.ljust(9)}  {hint_command(*words, store=store)}"

    if each.approval is not None:
        return [way("approve"), way("deny", "--message", "TEXT")]
    return [
        way("resolve", "--done", "TEXT"),
        way("resolve", "--not-done"),
        way("resolve", "--failed", "TEXT"),
    ]


def kind_of(each: Pending) -> str:
    """What a call waits for: `approval`, or what became of its `effect`."""
    return "effect" if each.approval is None else "approval"


_WAITS_FOR = {"approval": "approval", "effect": "an outcome"}
_DECIDED_BY = {"approval": "approve", "effect": "resolve"}


def _as_dict(each: Pending) -> dict[str, Any]:
    found = asdict(each)
    try:
        found["arguments"] = json.loads(each.arguments)
    except ValueError:
        # As the model wrote it.
        found["arguments"] = each.arguments
    order = ("session", "call", "kind", "tool", "arguments", "effect_id", "approval", "attempt")
    found["kind"] = kind_of(each)
    return {name: found[name] for name in order}


def _object(text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--arguments is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(
            f"--arguments is {json.dumps(value)[:40]}, must be an object such as " + '{"order": 7}'
        )
    return value


def _decide(
    session: str,
    call: int | None,
    kind: str,
    *,
    store: str | None,
    tell: Callable[[Engine, Pending], Awaitable[None]],
    verb: str,
) -> None:
    address = store_of(store)
    with reading(store) as reader:
        wanted = find_session(reader, session).session
        waiting = pending_calls(reader, wanted, 1)
    chosen = _choose(waiting, wanted, call, kind)
    try:
        left = asyncio.run(_recorded(address, chosen, tell))
    except JournalError as error:
        if error.code != "journal_locked":
            raise
        print_error(error.message, _LOCKED_HINT)
        raise typer.Exit(ExitCode.FAILED) from None
    shown = call_text(chosen.tool, chosen.arguments, ARGUMENTS_CHARS_MAX)
    note(f"{verb}: call {chosen.call} of session {wanted}, {shown}")
    if left:
        note(f"{count(len(left), 'call')} of it still wait{'s' if len(left) == 1 else ''}:")
        note("\n".join(line for each in left for line in described(each, address)[1:]))
    # In a file nobody else can be at work.
    shared = address.startswith(("postgresql:", "postgres:"))
    on = "a worker of the store goes on, or" if shared else "go on with"
    note(f"{on}: {hint_command('resume', wanted, store=address)}")


_LOCKED_HINT = (
    "the program that runs the session decides: run.approve(...), run.deny(...) or "
    "run.resolve(...); or end it, then decide here"
)


async def _recorded(
    store: str, chosen: Pending, tell: Callable[[Engine, Pending], Awaitable[None]]
) -> list[Pending]:
    """Records a decision, and gives what still waits in the session."""
    async with Engine(store) as engine:
        await tell(engine, chosen)
        return await engine.pending(chosen.session)


def _choose(waiting: list[Pending], session: str, call: int | None, kind: str) -> Pending:
    """The call that is meant.

    Raises:
        SessionError: `approval_used`: none or several fit.
    """
    fitting = [each for each in waiting if kind_of(each) == kind]
    named = [each for each in waiting if each.call == call]
    if call is None and len(fitting) == 1:
        return fitting[0]
    if named and named[0] in fitting:
        return named[0]
    needed = _WAITS_FOR[kind]
    calls = ", ".join(str(each.call) for each in fitting)
    if call is None and fitting:
        message = f'{len(fitting)} calls of session "{session}" wait for {needed}, one is needed'
        hint = f"give its number behind the session: {calls}"
    elif named:
        other = kind_of(named[0])
        message = f'call {call} of session "{session}" waits for {_WAITS_FOR[other]}, not {needed}'
        hint = f"mainspring effects {_DECIDED_BY[other]} {session} {call}"
    elif fitting:
        message = f'call {call} of session "{session}" waits for no decision, waiting: {calls}'
        hint = f"mainspring effects {session} shows them"
    else:
        what = f"call {call}" if call is not None else "no call"
        needed = needed if call is None else "no decision"
        message = f'{what} of session "{session}" waits for {needed}'
        hint = f"mainspring effects {session} shows what it waits for"
    raise SessionError("approval_used", message, hint, details={"session": session})
