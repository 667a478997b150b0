"""A server that writes a line without end when asked, and stops reading when asked."""

from __future__ import annotations

import signal
import sys
from typing import Any

from mcp_stdio import Server, text


def flood(call_id: Any, params: dict[str, Any]) -> Any:
    """Writes until the pipe breaks."""
    while True:
        sys.stdout.write("x" * 65536)


def sleep(call_id: Any, params: dict[str, Any]) -> Any:
    """Reads nothing any more."""
    signal.pause()


Server({"flood": flood, "sleep": sleep, "hello": lambda i, p: text("hello")}).run()
