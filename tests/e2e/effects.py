"""The outside world of the tests: an HTTP server that counts what tools do, and how they tell it.

Owns the count that no killed process can falsify: an effect is there once the server has it,
whether or not the process that asked for it lives to hear so. Start reading at `EffectServer`;
`leave` and `was_left` are what the tools in other processes call.
"""

import contextlib
import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit


class EffectServer:
    """Counts effects; as a context manager it serves on a port of loopback.

    Attributes:
        on_effect: Called with the count and the process after each effect and before its answer,
            one at a time.
    """

    def __init__(self) -> None:
        self.on_effect: Callable[[int, int], None] = lambda count, pid: None
        self.records: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="effects")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def count(self) -> int:
        """How many effects there are."""
        return len(self.records)

    def take(self, path: str, body: dict[str, Any]) -> Any:
        """Answers one request: to do something, or whether it was done."""
        with self._changed:
            if path == "/was-left":
                return any(one["effect_id"] == body["effect_id"] for one in self.records)
            self.records.append(body)
            self.on_effect(len(self.records), body.get("pid", 0))
            self._changed.notify_all()
            return "counted"

    def wait_for(self, count: int) -> None:
        """Waits until there are so many effects."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.records) >= count)

    def by_session(self) -> dict[str, list[dict[str, Any]]]:
        """All effects, in the order in which they came."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record in self.records:
            found.setdefault(record["session"], []).append(record)
        return found

    def repeated(self) -> int:
        """How many effects came again with a key that had come before."""
        keys = Counter(record["effect_id"] for record in self.records)
        return sum(count - 1 for count in keys.values())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, effects: EffectServer) -> None:
        self.effects = effects
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(self.server.effects.take(self.path, body)).encode()
        # Whoever asked may be dead by now.
        with contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def leave(place: str, record: dict[str, Any]) -> None:
    """Makes an effect: at a server's URL, or as a line of a file."""
    if place.startswith("http:"):
        _ask(place, "/do", record)
        return
    # One write to a file that is only appended to: the line is whole or missing.
    file = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, json.dumps(record).encode() + b"\n")
    os.close(file)


def was_left(place: str, effect_id: str) -> bool:
    """Whether there is an effect with this key."""
    if place.startswith("http:"):
        return bool(_ask(place, "/was-left", {"effect_id": effect_id}))
    lines = Path(place).read_text().splitlines()
    return any(json.loads(line)["effect_id"] == effect_id for line in lines)


def _ask(place: str, path: str, body: dict[str, Any]) -> Any:
    """Asks the server, on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(place).netloc)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body).encode())
        with connection.getresponse() as response:
            return json.loads(response.read())
