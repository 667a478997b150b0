"""A server that writes all kinds of rubbish to standard output before each answer."""

from __future__ import annotations

import sys

from mcp_stdio import Server, text

NOISE = (
    b"starting up...\n",
    b"\n",
    b"\xff\xfe not utf-8\n",
    b'{"level": "info", "msg": "a log line"}\n',
    b"123\n",
    b"[1, 2]\n",
    b'{"jsonrpc": "2.0", "id": 9999, "result": {}}\n',
    b'{"jsonrpc": "2.0", "method": "notifications/message", "params": {}}\n',
    b'{"jsonrpc": "2.0", "method": "made/up"}\n',
    b'{"broken": \n',
)


def make_noise() -> None:
    """Writes every line of the rubbish."""
    for line in NOISE:
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


server = Server({"hello": lambda i, p: text("hello")})
server.before_answer = make_noise
make_noise()
server.run()
