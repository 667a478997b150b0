"""A server with a child of its own, which would outlive it if nobody killed the group."""

from __future__ import annotations

import os
import subprocess

from mcp_stdio import Server, text

child = subprocess.Popen(["sleep", "1000"])
Server({"pids": lambda i, p: text(f"{os.getpid()} {child.pid}")}).run()
