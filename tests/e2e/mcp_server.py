"""An MCP server with a child of its own, for the test of what a kill leaves behind.

Its tool `hold` never answers; it tells both process ids to the port in `TELL_PORT`.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any


def main() -> None:
    """Answers until standard input ends."""
    child = subprocess.Popen(["sleep", "1000"])
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        body = _answer(message["method"], child.pid)
        if body is not None:
            answer = {"jsonrpc": "2.0", "id": message["id"], **body}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _answer(method: str, child: int) -> dict[str, Any] | None:
    if method == "initialize":
        result: dict[str, Any] = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "family", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": "hold", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        address = ("127.0.0.1", int(os.environ["TELL_PORT"]))
        with socket.create_connection(address) as listener:
            listener.sendall(f"{os.getpid()} {child}".encode())
        return None
    else:
        return {"error": {"code": -32601, "message": f"no method {method}"}}
    return {"result": result}


if __name__ == "__main__":
    main()
