"""A server that works but stays when its standard input ends."""

from __future__ import annotations

import os
import signal

from mcp_stdio import Server, text

Server({"pid": lambda i, p: text(str(os.getpid()))}).run()
signal.pause()
