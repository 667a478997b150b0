"""A small MCP server kit for the tests: one thread, standard input and output, no dependencies.

Owns the message loop; each server beside it only says what its tools do. It keeps what it was told
(cancelled calls, effect ids) so that a test can ask for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[[Any, dict[str, Any]], Any]


class Silence(Exception):
    """Raised by a tool that gives no answer now."""


def send(message: dict[str, Any]) -> None:
    """Writes one message as a line."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: str) -> dict[str, Any]:
    """A tool result with one text part."""
    return {"content": [{"type": "text", "text": value}]}


class Server:
    """A server of the 2025-11-25 revision: handshake first, then requests."""

    def __init__(self, tools: dict[str, Handler], page_count: int = 1) -> None:
        """Takes the tools by name, listed in this many pages."""
        self.tools = tools
        self.page_count = page_count
        self.held: list[Any] = []
        self.cancelled: list[Any] = []
        self.before_answer: Callable[[], None] = lambda: None

    def describe(self, name: str) -> dict[str, Any]:
        """The entry of one tool in the list."""
        return {
            "name": name,
            "description": f"does {name}",
            "inputSchema": {"type": "object"},
            "annotations": {"readOnlyHint": True, "idempotentHint": True},
        }

    def list_tools(self, cursor: str | None) -> dict[str, Any]:
        """One page of the tools."""
        names = list(self.tools)
        size = -(-len(names) // self.page_count)
        start = int(cursor or 0)
        page: dict[str, Any] = {"tools": [self.describe(n) for n in names[start : start + size]]}
        if start + size < len(names):
            page["nextCursor"] = str(start + size)
        return page

    def answer(self, method: str, params: dict[str, Any], call_id: Any) -> dict[str, Any]:
        """The body of the answer to one request."""
        if method == "initialize":
            return {
                "result": {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "test", "version": "1"},
                }
            }
        if method == "tools/list":
            return {"result": self.list_tools(params.get("cursor"))}
        if method == "tools/call":
            tool = self.tools.get(params["name"])
            if tool is None:
                return {"error": {"code": -32602, "message": f"unknown tool {params['name']}"}}
            return {"result": tool(call_id, params)}
        return {"error": {"code": -32601, "message": f"no method {method}"}}

    def handle(self, message: dict[str, Any]) -> None:
        """Handles one message."""
        method, params = message.get("method", ""), message.get("params") or {}
        if method == "notifications/cancelled":
            self.cancelled.append(params.get("requestId"))
        if "id" not in message:
            return
        try:
            body = self.answer(method, params, message["id"])
        except Silence:
            self.held.append(message["id"])
            return
        self.before_answer()
        send({"id": message["id"], **body})

    def run(self) -> None:
        """Runs until standard input ends."""
        for line in sys.stdin:
            self.handle(json.loads(line))
