"""Mainspring: durable, parallel, routed AI agents.

The public names of the package. Those that need the native engine are loaded at first use, so that
importing the package costs little. Start reading at `mainspring.agent`, then `mainspring.engine`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mainspring._route_policy import RoutePolicy
from mainspring.adapter import ModelAdapter, ModelReply, ModelRequest
from mainspring.agent import Agent, Limits
from mainspring.budget import Budget, BudgetReport, Spent, usd
from mainspring.compaction import Compaction
from mainspring.context import Context
from mainspring.errors import (
    AgentError,
    BudgetError,
    EngineError,
    JournalError,
    LimitError,
    LocalModelError,
    MainspringError,
    McpError,
    ModelError,
    RouteError,
    SessionCancelled,
    SessionError,
    SessionFailed,
    ToolError,
)
from mainspring.mcp import Mcp
from mainspring.models import Answer, Endpoint, Model, Route
from mainspring.outcome import Outcome
from mainspring.tool import Tool, tool

if TYPE_CHECKING:
    from mainspring.engine import Engine, Run
    from mainspring.events import Event
    from mainspring.model_client import Completion, CompletionDelta, CompletionStream, ModelClient
    from mainspring.reports import Pending, Report, SessionInfo

__all__ = [
    "Agent",
    "AgentError",
    "Answer",
    "Budget",
    "BudgetError",
    "BudgetReport",
    "Compaction",
    "Completion",
    "CompletionDelta",
    "CompletionStream",
    "Context",
    "Endpoint",
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
    "ModelAdapter",
    "ModelClient",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "Outcome",
    "Pending",
    "Report",
    "Route",
    "RouteError",
    "RoutePolicy",
    "Run",
    "SessionCancelled",
    "SessionError",
    "SessionFailed",
    "SessionInfo",
    "Spent",
    "Tool",
    "ToolError",
    "tool",
    "usd",
]

_LATE = {
    "Completion": "mainspring.model_client",
    "CompletionDelta": "mainspring.model_client",
    "CompletionStream": "mainspring.model_client",
    "Engine": "mainspring.engine",
    "Event": "mainspring.events",
    "ModelClient": "mainspring.model_client",
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
