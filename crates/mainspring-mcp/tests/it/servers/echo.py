"""The well-behaved server: one tool per kind of answer, listed in two pages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mcp_stdio import Server, Silence, send, text


def hold(call_id: Any, params: dict[str, Any]) -> Any:
    """Never answers."""
    raise Silence


def cancelled(call_id: Any, params: dict[str, Any]) -> Any:
    """How many of the held calls were cancelled."""
    return text(str(len([i for i in server.held if i in server.cancelled])))


def held(call_id: Any, params: dict[str, Any]) -> Any:
    """How many calls are held."""
    return text(str(len(server.held)))


def die(call_id: Any, params: dict[str, Any]) -> Any:
    """Ends the process without an answer."""
    sys.stderr.write("out of luck\n")
    sys.stderr.flush()
    os._exit(7)


def fail(call_id: Any, params: dict[str, Any]) -> Any:
    """A tool that says that it failed."""
    return {**text("no such row"), "isError": True}


def grow(call_id: Any, params: dict[str, Any]) -> Any:
    """Adds a tool and says so."""
    server.tools["late"] = fail
    send({"method": "notifications/tools/list_changed"})
    return text("grown")


def media(call_id: Any, params: dict[str, Any]) -> Any:
    """Every kind of content at once."""
    resource = {"uri": "file:///a", "mimeType": "text/plain"}
    return {
        "content": [
            {"type": "text", "text": "one"},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAAA="},
            {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
            {"type": "resource", "resource": {**resource, "text": "two"}},
            {"type": "resource", "resource": {**resource, "blob": "AAAA"}},
            {"type": "resource_link", "uri": "file:///b", "name": "bee"},
        ]
    }


server = Server(
    {
        "echo": lambda i, p: text(json.dumps(p.get("arguments"))),
        "meta": lambda i, p: text(str(p["_meta"].get("mainspring/effect_id"))),
        "pid": lambda i, p: text(str(os.getpid())),
        "env": lambda i, p: text(json.dumps(dict(os.environ))),
        "cwd": lambda i, p: text(str(Path.cwd())),
        "size": lambda i, p: text("x" * p["arguments"]["bytes"]),
        "structured": lambda i, p: {"content": [], "structuredContent": {"rows": 2}},
        "empty": lambda i, p: {},
        "strange": lambda i, p: {"content": [{"type": "smell"}]},
        "ask": lambda i, p: {"resultType": "input_required", "inputRequests": {}},
        "hold": hold,
        "held": held,
        "cancelled": cancelled,
        "die": die,
        "fail": fail,
        "grow": grow,
        "media": media,
    },
    page_count=2,
)
server.run()
