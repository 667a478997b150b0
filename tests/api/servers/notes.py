"""An MCP server for tests, in the standard library alone: `python notes.py [FOLDER]`.

It keeps notes in memory. Invariant: one line of JSON comes in, one goes out; it ends when its
standard input does. Every start adds a line to `starts` in FOLDER.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOTES = {"first": "buy milk"}


def read_note(name: str) -> str:
    """Read a note."""
    return NOTES[name]


def write_note(name: str, text: str) -> str:
    """Write a note; the same twice is the same as once."""
    NOTES[name] = text
    return f"{name} has {len(text)} characters"


def die(name: str) -> str:
    """End the server in the middle of a call."""
    sys.stderr.write(f"dying of {name}\n")
    sys.stderr.flush()
    os._exit(3)


def variable(name: str) -> str:
    """Say an environment variable of the server."""
    return os.environ.get(name, "not set")


def wait(name: str) -> str:
    """Answer only if there is a file `answers` in FOLDER; else never."""
    if not (Path(sys.argv[1]) / "answers").exists():
        sys.stdin.read()
    return name


def wait_read(name: str) -> str:
    """Do the same, and say that it changes nothing."""
    return wait(name)


TOOLS: list[tuple[Callable[..., str], list[str], dict[str, bool]]] = [
    (read_note, ["name"], {"readOnlyHint": True}),
    (write_note, ["name", "text"], {"idempotentHint": True}),
    (die, ["name"], {}),
    (variable, ["name"], {"readOnlyHint": True}),
    (wait, ["name"], {}),
    (wait_read, ["name"], {"readOnlyHint": True}),
]


def listed() -> list[dict[str, Any]]:
    """The tools as `tools/list` gives them."""
    return [
        {
            "name": tool.__name__.replace("_", ".", 1),
            "description": tool.__doc__,
            "inputSchema": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in names},
                "required": names,
            },
            "annotations": hints,
        }
        for tool, names, hints in TOOLS
    ]


def call(params: dict[str, Any]) -> dict[str, Any]:
    """The result of `tools/call`; what a tool raises is an error result."""
    by_name = {tool.__name__.replace("_", ".", 1): tool for tool, _, _ in TOOLS}
    try:
        text = by_name[params["name"]](**params["arguments"])
    except KeyError as error:
        content = [{"type": "text", "text": f"there is no note {error}"}]
        return {"content": content, "isError": True}
    return {"content": [{"type": "text", "text": text}]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; a method that MCP 2025-06-18 does not have is refused."""
    method, reply = request["method"], {"jsonrpc": "2.0", "id": request["id"]}
    if method == "initialize":
        reply["result"] = {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "notes", "version": "1"},
        }
    elif method == "tools/list":
        reply["result"] = {"tools": listed()}
    elif method == "tools/call":
        reply["result"] = call(request["params"])
    else:
        reply["error"] = {"code": -32601, "message": f"no method {method}"}
    return reply


def main() -> None:
    """Serve until standard input ends."""
    if len(sys.argv) > 1:
        with (Path(sys.argv[1]) / "starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            sys.stdout.write(json.dumps(answer(request)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
