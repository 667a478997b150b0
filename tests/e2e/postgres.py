"""A PostgreSQL server for the tests of several processes, and a proxy that stands in its way.

Invariant: the server ends with the test process, however that ends. Start reading at `Postgres`.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from tests.e2e._support import ROOT
from tools.postgres_server import find_program

CHUNK_BYTES = 65_536


class Postgres:
    """The server of `tools/postgres_server.py`; a context manager.

    Args:
        env: What its environment has beside this one's.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.postgres_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        self._numbers = itertools.count()
        self.url = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # It removes its server once its input ends.
        self._process.communicate()

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def database(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{next(self._numbers)}"
        self.run_sql(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def run_sql(self, sql: str, *, url: str | None = None) -> str:
        """Runs SQL; gives what it prints."""
        psql = find_program("psql")
        assert psql is not None, "no psql found: apt-get install postgresql"
        command = [str(psql), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        done = subprocess.run(
            [*command, url or self.url], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def restart(self) -> None:
        """Ends the server as a crash would, and starts it again."""
        assert self._process.stdin is not None
        self._process.stdin.write("restart\n")
        self._process.stdin.flush()
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class Proxy:
    """Passes connections on to a server's port; a context manager.

    Attributes:
        delay_s: How long the server's answers are held back.
    """

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._port = port
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: set[socket.socket] = set()
        self._pairs: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        # Wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.drop()
        for pair in self._pairs:
            pair.join()

    def url(self, of: str) -> str:
        """The address of a database by way of this proxy."""
        address = urlsplit(of)
        port = self._listener.getsockname()[1]
        return address._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()

    def drop(self) -> int:
        """Cuts every connection there is; says how many ends that were."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            return len(self._sockets)

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                inner.close()
                continue
            with self._lock:
                self._sockets |= {inner, outer}
            pair = threading.Thread(target=self._serve, args=(inner, outer), daemon=True)
            self._pairs.append(pair)
            pair.start()

    def _serve(self, inner: socket.socket, outer: socket.socket) -> None:
        """Passes on both ways until one end is gone."""
        with inner, outer:
            asked = threading.Thread(target=_pass_on, args=(inner, outer, lambda: None))
            asked.start()
            _pass_on(outer, inner, self._hold_back)
            asked.join()
            with self._lock:
                self._sockets -= {inner, outer}

    def _hold_back(self) -> None:
        if self.delay_s:
            self._closed.wait(self.delay_s)


def _pass_on(source: socket.socket, target: socket.socket, wait: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            wait()
            target.sendall(chunk)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Sends a process a signal, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def job_of(store: str, base_url: str, effects: str, **more: Any) -> dict[str, Any]:
    """What the jobs of `shared.py` need."""
    return {"store": store, "base_url": base_url, "effects": effects, **more}
