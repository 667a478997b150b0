"""A server that answers with recorded bodies, and keeps what it was asked.

The recordings in `tests/fixtures/wire` are read by our engine and by the official SDKs, and by the
Rust tests of the codecs.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WIRE = Path(__file__).parent.parent / "fixtures" / "wire"


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Recorded:
    """A running server: each request is answered with the next recording, the last one again."""

    address: str
    names: Sequence[str]
    asked: list[Asked] = field(default_factory=list)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked, oldest first."""
        return [asked.body for asked in self.asked]

    def next_answer(self) -> tuple[str, bytes]:
        """Type and bytes of the answer to the request that came last."""
        name = self.names[min(len(self.asked), len(self.names)) - 1]
        kind = "text/event-stream" if name.endswith(".sse") else "application/json"
        return kind, (WIRE / name).read_bytes()


@contextmanager
def recorded(*names: str) -> Iterator[Recorded]:
    """A server on loopback that answers with these files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.asked.append(Asked(self.path, headers, json.loads(body)))
            kind, answer = served.next_answer()
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Recorded(f"http://127.0.0.1:{server.server_address[1]}", names)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
