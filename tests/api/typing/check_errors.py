"""Types that a checker must infer for errors; checked, never run."""

from typing import assert_type

from mainspring.errors import AgentError, MainspringError, SessionFailed, from_failure


def check_errors(error: SessionFailed) -> None:
    assert_type(error.session, str | None)
    assert_type(error.retryable, bool)
    assert_type(from_failure("internal", "m", None, retryable=False), MainspringError)
    caught: ValueError = AgentError("agent_invalid", "m")
    print(caught)
