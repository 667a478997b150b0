"""A server that answers in reverse order, once it holds as many calls as it was told."""

from __future__ import annotations

import sys
from typing import Any

from mcp_stdio import Server, Silence, send, text

waiting: list[tuple[Any, str]] = []


def collect(call_id: Any, params: dict[str, Any]) -> Any:
    """Answers when the last call is in."""
    waiting.append((call_id, params["arguments"]["word"]))
    if len(waiting) == int(sys.argv[1]):
        for held_id, word in reversed(waiting):
            # As text: some servers send the number back so.
            send({"id": str(held_id), "result": text(word)})
        waiting.clear()
    raise Silence


Server({"collect": collect}).run()
