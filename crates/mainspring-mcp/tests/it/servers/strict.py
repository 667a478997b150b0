"""A server that ends when the first message is not `initialize`, as older ones do."""

from __future__ import annotations

import json
import sys

from mcp_stdio import Server, text

server = Server({"hello": lambda i, p: text("hello from 2025")})
first = json.loads(sys.stdin.readline())
if first["method"] != "initialize":
    sys.exit("expected initialize")
server.handle(first)
server.run()
