"""Errors: what they say, which class a code gets, and that pickling changes nothing."""

import copy
import pickle

import pytest

from mainspring import errors
from mainspring.errors import (
    AgentError,
    EngineError,
    JournalError,
    LimitError,
    LocalModelError,
    MainspringError,
    McpError,
    ModelError,
    SessionCancelled,
    SessionError,
    SessionFailed,
    ToolError,
    from_failure,
)


def test_text_is_the_message_and_the_hint_on_a_second_line() -> None:
    plain = ToolError("tool_timeout", 'tool "search" ran 31.2 s, limit 30 s')
    hinted = ToolError("tool_timeout", 'tool "search" ran 31.2 s, limit 30 s', "raise timeout_s")

    assert str(plain) == 'tool "search" ran 31.2 s, limit 30 s'
    assert str(hinted) == 'tool "search" ran 31.2 s, limit 30 s\nhint: raise timeout_s'


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("agent_changed", AgentError),
        ("answer_rejected", SessionFailed),
        ("cancelled", SessionCancelled),
        ("engine_overloaded", EngineError),
        ("internal", EngineError),
        ("journal_full", JournalError),
        ("limit_steps", LimitError),
        ("local_model_unknown", LocalModelError),
        ("mcp_exited", McpError),
        ("model_auth", ModelError),
        ("output_invalid", SessionFailed),
        ("process_lost", SessionFailed),
        ("session_busy", SessionError),
        ("tool_failed", ToolError),
        ("verify_failed", SessionFailed),
        ("invented_by_a_newer_version", MainspringError),
    ],
)
def test_a_code_decides_the_class(code: str, kind: type[MainspringError]) -> None:
    error = from_failure(code, "it broke", "mend it", retryable=True, session="s1")

    assert type(error) is kind
    assert (error.code, error.message, error.hint) == (code, "it broke", "mend it")
    assert error.retryable
    assert error.details == {"session": "s1"}


def test_errors_survive_pickling_and_copying() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not isinstance(kind, type):
            continue
        error = kind("code_x", "message", "hint", retryable=True, details={"session": "s1"})
        error.add_note("seen twice")
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind
            assert vars(again) == vars(error)
            assert str(again) == "message\nhint: hint"
            assert again.args == error.args


def test_fields_can_be_read_by_name() -> None:
    details = {"session": "s1", "tool": "t", "model": "m", "server": "x"}

    assert SessionFailed("output_invalid", "m", details=details).session == "s1"
    assert ToolError("tool_failed", "m", details=details).tool == "t"
    assert ModelError("model_auth", "m", details=details).model == "m"
    assert McpError("mcp_exited", "m", details=details).server == "x"
    assert ToolError("tool_failed", "m").tool is None


def test_a_wrong_argument_is_a_value_error_too() -> None:
    assert issubclass(AgentError, ValueError)
    assert all(
        issubclass(kind, MainspringError) for kind in (AgentError, SessionFailed, LimitError)
    )
