"""A model for tests: it follows a script, and speaks the real protocol on a real socket.

Point an agent, or any OpenAI client, at `ScriptedModel` and no key or network is needed. Start
reading at `ScriptedModel`; the functions beside it make the steps of its script.

Invariant: it runs on the standard library alone, and `mainspring` never imports it.
"""

from __future__ import annotations

from mainspring.testing._http import ServerLimits
from mainspring.testing._script import (
    Answer,
    Call,
    Request,
    Script,
    Step,
    Usage,
    call,
    calls,
    delay,
    drop,
    fail,
    garbage,
    hang,
    say,
    say_json,
    wait_for,
)
from mainspring.testing._server import ScriptedModel

__all__ = [
    "Answer",
    "Call",
    "Request",
    "Script",
    "ScriptedModel",
    "ServerLimits",
    "Step",
    "Usage",
    "call",
    "calls",
    "delay",
    "drop",
    "fail",
    "garbage",
    "hang",
    "say",
    "say_json",
    "wait_for",
]
