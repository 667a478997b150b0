"""How commands end: the exit codes, and errors as a person reads them.

Invariant: a user's mistake is a line that starts `error: ` and perhaps one that starts `hint: `;
a traceback is shown only where MAINSPRING_DEBUG asks for it.
"""

import os
import sys
import traceback
from enum import IntEnum

from mainspring.errors import MainspringError


class ExitCode(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    FAILED = 1
    WRONG_USE = 2
    WAITS = 3
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong use, 3 waits for a decision, 130 interrupted by Ctrl-C."
)

# What a person at a terminal can do is not what a program can do.
_HINTS = {
    "journal_locked": "wait until it ends, or take a store of your own: --store sqlite:///other.db",
}


def explain(error: BaseException) -> ExitCode:
    """Writes an error to standard error, and says how the process ends."""
    if os.environ.get("MAINSPRING_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, MainspringError):
        message, hint = error.message, _HINTS.get(error.code, error.hint)
    elif isinstance(error, OSError) and error.strerror:
        place = f' "{error.filename}"' if error.filename else ""
        message, hint = f"{error.strerror.lower()}{place}", None
    else:
        message = f"internal error, {type(error).__name__}: {error}"
        hint = "set MAINSPRING_DEBUG=1 to see where, and report it"
    print_error(message, hint)
    return ExitCode.FAILED


def print_error(message: str, hint: str | None) -> None:
    """Writes a message, and its hint if there is one, to standard error."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def note(text: str) -> None:
    """Writes a line for the person, not for a program."""
    print(text, file=sys.stderr, flush=True)
