"""Mainspring: durable, parallel, routed AI agents.

The public names of the package. Those that need the native engine are loaded at first use, so that
importing the package costs little. Start reading at `mainspring.agent`, then `mainspring.engine`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mainspring.agent import Agent, Limits
from mainspring.context import Context
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
)
from mainspring.mcp import Mcp
from mainspring.models import Answer, Model, Route
from mainspring.outcome import Outcome
from mainspring.tool import Tool, tool

if TYPE_CHECKING:
    from mainspring.engine import Engine, Run
    from mainspring.events import Event
    from mainspring.reports import Pending, Report, SessionInfo

__all__ = [
    "Agent",
    "AgentError",
    "Answer",
    "Context",
    "Engine",
    "EngineError",
    "Event",
    "JournalError",
    "LimitError",
    "Limits",
    "LocalModelError",
    "MainspringError",
    "Mcp",
    "McpError",
    "Model",
    "ModelError",
    "Outcome",
    "Pending",
    "Report",
    "Route",
    "Run",
    "SessionCancelled",
    "SessionError",
    "SessionFailed",
    "SessionInfo",
    "Tool",
    "ToolError",
    "tool",
]

_LATE = {
    "Engine": "mainspring.engine",
    "Event": "mainspring.events",
    "Pending": "mainspring.reports",
    "Report": "mainspring.reports",
    "Run": "mainspring.engine",
    "SessionInfo": "mainspring.reports",
}


def __getattr__(name: str) -> Any:
    """Loads a late name at its first use."""
    module = _LATE.get(name)
    if module is None:
        raise AttributeError(f"module 'mainspring' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists late names too."""
    return sorted({*globals(), *__all__})
