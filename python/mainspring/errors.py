"""The exceptions of Mainspring: one base class, a subclass for each area.

Invariant: every failure has a stable `code` from the catalogue in `mainspring-session`, reads as a
message and at most one line of hint, and is the same after pickling. Cancellation
(`asyncio.CancelledError`, `KeyboardInterrupt`) is never turned into one of these. Reading starts at
`MainspringError`; `from_failure` picks the class for a code.
"""

from typing import Any

__all__ = [
    "AgentError",
    "BudgetError",
    "EngineError",
    "JournalError",
    "LimitError",
    "LocalModelError",
    "MainspringError",
    "McpError",
    "ModelError",
    "RouteError",
    "SessionCancelled",
    "SessionError",
    "SessionFailed",
    "ToolError",
    "from_failure",
]


class MainspringError(Exception):
    """Something failed; `code` says what, and `str()` says it to a person.

    Args:
        code: Stable `snake_case` name of the kind of failure, such as `model_timeout`.
        message: What failed, on what, the value seen, the value allowed; lower case.
        hint: How to cure it, if there is a cure.
        retryable: Whether trying again, unchanged, can help.
        details: Further fields, such as `session`; plain data.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str | None = None,
        *,
        retryable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Keeps every argument as an attribute of its name."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.details: dict[str, Any] = {} if details is None else dict(details)

    def __str__(self) -> str:
        """Returns the message, with the hint on a second line."""
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by state: `Exception` would call the class with the wrong arguments."""
        return _rebuild, (type(self), self.args), self.__dict__

    def _detail(self, name: str) -> str | None:
        value = self.details.get(name)
        return None if value is None else str(value)


class AgentError(MainspringError, ValueError):
    """An agent, a tool, a model or an input cannot be used as given.

    It is a `ValueError` too: most causes are wrong arguments in the user's own code.
    """


class ToolError(MainspringError):
    """A tool's schema, arguments, call or result failed."""

    @property
    def tool(self) -> str | None:
        """Name of the tool, if known."""
        return self._detail("tool")


class ModelError(MainspringError):
    """A model call failed, or a model's key is missing."""

    @property
    def model(self) -> str | None:
        """Name of the model, if known."""
        return self._detail("model")


class RouteError(MainspringError, ValueError):
    """Routing outcomes, a policy or learnt weights cannot be used as given.

    It is a `ValueError` too: most causes are wrong arguments or files of the user.
    """


class JournalError(MainspringError):
    """The journal could not be opened, read or written."""


class SessionError(MainspringError):
    """A session could not be found, started or continued, or it failed."""

    @property
    def session(self) -> str | None:
        """Id of the session, if known."""
        return self._detail("session")


class SessionFailed(SessionError):
    """A turn of a session ended without an answer that could be accepted."""


class SessionCancelled(SessionError):
    """A turn of a session ended because someone cancelled it through the engine."""


class LimitError(SessionError):
    """A turn of a session reached one of its limits."""


class BudgetError(LimitError):
    """A model call did not fit into what is left of a budget, so it was not made."""


class McpError(MainspringError):
    """An MCP server could not be started or called."""

    @property
    def server(self) -> str | None:
        """Name of the server, if known."""
        return self._detail("server")


class EngineError(MainspringError):
    """The engine is closed, full, or broke one of its own invariants."""


class LocalModelError(MainspringError):
    """A model on this machine could not be found, pulled or served."""


def from_failure(
    code: str, message: str, hint: str | None, retryable: bool, **fields: Any
) -> MainspringError:
    """Makes the exception for a failure that is plain data.

    Args:
        code: Code of the failure; it decides the class. A code this version does not know, from a
            newer journal, gives a plain `MainspringError`.
        message: Its message.
        hint: Its hint, if any.
        retryable: Whether trying again can help.
        fields: What becomes `details`, such as `session` or `tool`.

    Returns:
        The exception, not raised.
    """
    kind = _BY_CODE.get(code) or _BY_PREFIX.get(code.partition("_")[0], MainspringError)
    return kind(code, message, hint, retryable=retryable, details=fields)


_BY_CODE: dict[str, type[MainspringError]] = {
    "answer_rejected": SessionFailed,
    "approval_denied": ToolError,
    "approval_used": SessionError,
    "budget_exhausted": BudgetError,
    "cancelled": SessionCancelled,
    "internal": EngineError,
    "lease_lost": SessionError,
    "output_invalid": SessionFailed,
    "process_lost": SessionFailed,
    "replay_diverged": SessionError,
    "verify_failed": SessionFailed,
}

_BY_PREFIX: dict[str, type[MainspringError]] = {
    "agent": AgentError,
    "budget": AgentError,
    "engine": EngineError,
    "journal": JournalError,
    "limit": LimitError,
    "local": LocalModelError,
    "mcp": McpError,
    "model": ModelError,
    "route": RouteError,
    "session": SessionError,
    "tool": ToolError,
}


def _rebuild(kind: type[MainspringError], args: tuple[Any, ...]) -> MainspringError:
    return kind.__new__(kind, *args)
