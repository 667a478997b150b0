"""`mainspring demo`: the main job on local models, without any key.

Invariant: where a script answers in the place of models, the first line says so and why.
"""

import importlib.util
import os
import shlex
import shutil
import sys
from typing import Annotated

import typer

from mainspring import demo as demonstration
from mainspring.cli._exit import ExitCode, note
from mainspring.cli._models import _shown_progress
from mainspring.cli._store import JsonOption, StoreOption, writable_store
from mainspring.cli._turn import Turn, print_refused, take_turn
from mainspring.errors import LocalModelError, MainspringError
from mainspring.local import locate, pull


def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="Take scripted models: seconds, and nothing is pulled.")
    ] = False,
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            help="What to ask. [default: a question about files and commits of the repository]",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the main job on local models, without any key.

    An agent answers a question about the git repository of the current folder, with two tools of
    its own and an MCP server. A small model goes first; a larger one takes over when a check of
    its answer fails. The models (1.6 GB) are pulled once, into the cache of `mainspring models`.
    Where they cannot be, scripted ones answer, and the first line says so.

    Examples: mainspring demo | mainspring demo --fast |
    mainspring demo --question "how many lines has README.md?"

    Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted by Ctrl-C.
    """
    try:
        code = _run(fast=fast, question=question, store=store, as_json=as_json)
    except MainspringError as error:
        if not as_json:
            raise
        code = print_refused(error)
    raise typer.Exit(code)


def _run(*, fast: bool, question: str | None, store: str | None, as_json: bool) -> ExitCode:
    root = demonstration.repository()
    why_scripted = "--fast was given" if fast else _pull_models()
    if why_scripted is not None:
        note(f"scripted model: no real model is asked; {why_scripted}")
    asked = question or demonstration.default_question(root)
    address = writable_store(store)
    if why_scripted is None:
        factory, origin = demonstration.local, "mainspring.demo:local"
        note(f"loading {', then '.join(demonstration.MODELS)}: served on this machine, no key")
    else:
        factory, origin = demonstration.scripted, "mainspring.demo:scripted"
    note(f"question: {asked}")
    where = ["--store", store] if store else []
    resume = shlex.join([_program(), "resume", "last", *where])
    note(f"kill -9 {os.getpid()} at any moment, then: {resume}")
    with factory(asked) as agent:
        turn = Turn(agent=agent, origin=origin, store=address, input=asked, as_json=as_json)
        code = take_turn(turn)
    note(f"all sessions: {shlex.join([_program(), 'sessions', *where])}")
    return code


def _program() -> str:
    """How this program is called: in a fresh tree it is not on the path."""
    return "mainspring" if shutil.which("mainspring") else sys.argv[0]


def _pull_models() -> str | None:
    """Brings the models into the cache; says why it cannot, if it cannot."""
    if importlib.util.find_spec("xllamacpp") is None:
        return 'the llama.cpp runtime is not installed, run: pip install "mainspring[demo]"'
    for name in demonstration.MODELS:
        try:
            _pull_model(name)
        except LocalModelError as error:
            return error.message
    return None


def _pull_model(name: str) -> None:
    try:
        locate(name)
        return
    except LocalModelError as error:
        if error.code != "local_model_not_pulled":
            raise
    held: list[str] = []
    with _shown_progress(name) as show:

        def progress(done_bytes: int, total_bytes: int, source: str) -> None:
            while held:
                show.notice(held.pop(0))
            show.progress(done_bytes, total_bytes, source)

        # Notices wait for the first byte: without any, the reason is told in the first line.
        pull(name, progress=progress, notice=held.append)
