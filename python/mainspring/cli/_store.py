"""Which store a command uses, and how a person names a session in it.

Invariant: reading never writes and never takes the store's lock, so it works beside a running
engine; only `writable_store` makes a folder.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from mainspring._lane import public_error
from mainspring._native import JournalReader
from mainspring.errors import JournalError, SessionError
from mainspring.events import Event, decode_event
from mainspring.reports import Pending, SessionInfo

DEFAULT_FOLDER = ".mainspring"
DEFAULT_STORE = f"sqlite:///{DEFAULT_FOLDER}/mainspring.db"

PAGE_SESSIONS = 500
"""Sessions read at a time while an id's beginning is looked up."""

SHOWN_MATCHES_MAX = 5
"""Sessions named where the beginning of an id fits several."""

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where sessions are kept. [default: $MAINSPRING_STORE, else "
        f"{DEFAULT_STORE} under this folder]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def store_of(option: str | None) -> str:
    """The store's address: the option, else the environment, else the default."""
    return option or os.environ.get("MAINSPRING_STORE", "").strip() or DEFAULT_STORE


def writable_store(option: str | None) -> str:
    """The store's address, with the default's folder made if it is missing.

    Raises:
        JournalError: `journal_io`, if the folder cannot be made.
    """
    store = store_of(option)
    if store == DEFAULT_STORE:
        folder = Path(DEFAULT_FOLDER)
        try:
            folder.mkdir(exist_ok=True)
            ignore = folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise JournalError(
                "journal_io",
                f'the folder "{folder.absolute()}" cannot be made: {error.strerror}',
                "go to a folder that can be written, or set --store or MAINSPRING_STORE",
            ) from error
    return store


def existing_store(option: str | None) -> str:
    """The address of a store that is there: to open it for writing would make a missing file.

    Raises:
        JournalError: It cannot be read, or there is none.
    """
    with reading(option):
        return store_of(option)


def refuse_memory(option: str | None, why: str) -> None:
    """Refuses the store that forgets.

    Raises:
        JournalError: `journal_url_invalid`.
    """
    if store_of(option) == "memory:":
        raise JournalError(
            "journal_url_invalid",
            f'store "memory:" forgets when its process ends, {why}',
            "use sqlite:///FILE.db",
        )


def hint_command(*words: str, store: str) -> str:
    """A command line for a person to copy, on this store and without its password."""
    own = os.environ.get("MAINSPRING_STORE", "").strip() or DEFAULT_STORE
    return shlex.join(["mainspring", *words, *(() if store == own else ("--store", _shown(store)))])


def _shown(store: str) -> str:
    parts = urlsplit(store)
    if parts.password is None:
        return store
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:...@{host}"))


@contextmanager
def reading(option: str | None) -> Iterator[JournalReader]:
    """Opens a store to read.

    Raises:
        JournalError: It cannot be read, or there is none.
    """
    refuse_memory(option, "there is nothing to read")
    store = store_of(option)
    if store == DEFAULT_STORE and not Path(DEFAULT_FOLDER, "mainspring.db").exists():
        raise JournalError(
            "journal_io",
            f'no session was run in "{Path.cwd()}", its {DEFAULT_FOLDER}/mainspring.db is missing',
            "go to the folder of the run, or name the store with --store or MAINSPRING_STORE",
        )
    try:
        reader = JournalReader(store)
        try:
            yield reader
        finally:
            reader.close()
    except RuntimeError as error:
        raise public_error(error) from None


def find_session(reader: JournalReader, wanted: str) -> SessionInfo:
    """Finds a session by its id, by the beginning of it, or by the word `last`.

    Raises:
        SessionError: `session_not_found`: none or several fit.
    """
    if wanted == "last":
        newest = reader.sessions(None, 1, None)
        if not newest:
            raise SessionError("session_not_found", "the store holds no session")
        return SessionInfo(*newest[0])
    head = reader.head(wanted)
    if head is not None:
        return SessionInfo(*head)
    fitting = [info for info in _all_sessions(reader) if info.session.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise SessionError(
            "session_not_found",
            f'no session has the id "{wanted}" or begins with it',
            "mainspring sessions lists them",
            details={"session": wanted},
        )
    shown = ", ".join(info.session for info in fitting[:SHOWN_MATCHES_MAX])
    more = ", ..." if len(fitting) > SHOWN_MATCHES_MAX else ""
    raise SessionError(
        "session_not_found",
        f'{len(fitting)} sessions begin with "{wanted}", one id is needed: {shown}{more}',
        "give more of the id, or `last` for the newest",
        details={"session": wanted},
    )


def _all_sessions(reader: JournalReader) -> Iterator[SessionInfo]:
    before: str | None = None
    while page := reader.sessions(None, PAGE_SESSIONS, before):
        for head in page:
            yield SessionInfo(*head)
        before = page[-1][0]


def load_events(reader: JournalReader, session: str) -> list[Event]:
    """A session's events, oldest first."""
    return [decode_event(seq, at_us, text) for seq, at_us, _, text in records(reader, session)]


def pending_calls(reader: JournalReader, session: str | None, sessions_max: int) -> list[Pending]:
    """The tool calls that wait for a decision: a session's, or those of all that only wait."""
    return [Pending(*each) for each in reader.pending(session, sessions_max)]


def records(reader: JournalReader, session: str) -> list[tuple[Any, ...]]:
    """A session's records: `(seq, at_us, epoch, json)`, oldest first."""
    return reader.load(session, 0)
