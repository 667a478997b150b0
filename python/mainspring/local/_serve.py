"""Serves a local model as an OpenAI-compatible server, in a process of its own.

Invariant: the server process lives at most as long as this process and its `LocalServer`.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from mainspring.local._cache import locate
from mainspring.local._catalog import ModelEntry, find
from mainspring.local._errors import LocalModelError

_NICE = 10
_PREFIX_CACHE_MIB = 512
_HEALTH_POLL_S = 0.05
_HEALTH_ANSWER_S = 2.0
_STOP_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """Bounds of a local server.

    Args:
        start_s_max: From start to healthy, the load of the model included.
        fault_lines_max: Lines of the server's error output kept for an error message.
        fault_line_chars_max: Characters kept of each.
    """

    start_s_max: float = 120.0
    fault_lines_max: int = 8
    fault_line_chars_max: int = 300


class LocalServer:
    """A model served on loopback while the `with` block runs.

    The process has low priority, and it dies with this process however this one dies.

    Args:
        model: A pulled catalogue model's name, or the path of a GGUF file.
        port: TCP port on 127.0.0.1; 0: a free one.
        threads: Threads that compute; None: one less than the cores, at least 1.
        context_tokens: Prompt and answer of one request together.
        parallel: Requests served at a time, each with its own context and prefix cache.
        cache_dir: Cache folder; None: as for `pull`.
        limits: Bounds; None: the defaults of `ServerLimits`.

    Raises:
        LocalModelError: On entry. `local_model_unknown`, `local_model_not_gguf`,
            `local_model_not_pulled`; `local_runtime_missing`, llama.cpp's runtime is not
            installed; `local_port_unusable`; `local_server_failed`, the process ended before it was
            healthy; `local_server_slow`, it was not healthy in time (retry can help).

    Example:
        >>> with LocalServer("qwen2.5-coder-0.5b") as server:  # doctest: +SKIP
        ...     print(server.base_url)
        http://127.0.0.1:40213/v1
    """

    def __init__(
        self,
        model: str | Path | ModelEntry,
        *,
        port: int = 0,
        threads: int | None = None,
        context_tokens: int = 4096,
        parallel: int = 1,
        cache_dir: Path | str | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise ValueError(f"port is {port}, must be 0 to 65535")
        for name, value in (("context_tokens", context_tokens), ("parallel", parallel)):
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, must be at least 1")
        found = find(model)
        self._path = locate(found, cache_dir=cache_dir)
        self._model_name = found.name if isinstance(found, ModelEntry) else found.stem
        self._port = port
        self._threads = threads or max(1, (os.cpu_count() or 1) - 1)
        self._context_tokens = context_tokens
        self._parallel = parallel
        self._limits = limits or ServerLimits()
        self._child: _Child | None = None
        self._url = ""

    @property
    def model_name(self) -> str:
        """The name to put into requests: the catalogue name, or the file's name."""
        return self._model_name

    @property
    def base_url(self) -> str:
        """The OpenAI base URL, such as `http://127.0.0.1:40213/v1`; runs only inside `with`."""
        self._running()
        return f"{self._url}/v1"

    @property
    def pid(self) -> int:
        """The id of the server process."""
        return self._running().process.pid

    def start(self) -> Self:
        """Starts the server and returns once it answers; `with` calls it."""
        if self._child is not None:
            raise ValueError("this server is already running")
        if importlib.util.find_spec("xllamacpp") is None:
            raise LocalModelError(
                "local_runtime_missing",
                "the llama.cpp runtime (package xllamacpp) is not installed",
                'run: pip install "mainspring[demo]"',
            )
        _check_port(self._port)
        child = _Child(self._config(), self._limits)
        self._child = child
        try:
            self._url = child.wait_until_healthy(self._model_name)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the server; a second call does nothing."""
        child, self._child = self._child, None
        if child is not None:
            child.stop()

    def wait(self) -> int:
        """Blocks until the server process ends and returns its exit code."""
        return self._running().process.wait()

    def __enter__(self) -> Self:
        """Starts the server."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the server."""
        self.stop()

    def _running(self) -> "_Child":
        if self._child is None:
            raise ValueError("this server is not running; use it in a with block")
        return self._child

    def _config(self) -> dict[str, Any]:
        return {
            "parent_pid": os.getpid(),
            "path": str(self._path),
            "name": self._model_name,
            "port": self._port,
            "threads": self._threads,
            "context_tokens": self._context_tokens,
            "parallel": self._parallel,
            "prefix_cache_mib": _PREFIX_CACHE_MIB,
            "nice": _NICE,
        }


class _Child:
    """The process, and the threads that read its output."""

    def __init__(self, config: dict[str, Any], limits: ServerLimits) -> None:
        self._limits = limits
        self._fault: deque[str] = deque(maxlen=limits.fault_lines_max)
        self._announced = threading.Event()
        self._url: str | None = None
        self._started = threading.Event()
        self._start_error: OSError | None = None
        self.process: subprocess.Popen[str]
        # The kernel's parent-death signal fires when the thread that started the child ends, not
        # the process. So the child gets a thread that lives exactly as long as it does.
        keeper = threading.Thread(
            target=self._keep, args=(config,), name="mainspring-local", daemon=True
        )
        keeper.start()
        self._started.wait()
        if self._start_error is not None:
            raise LocalModelError(
                "local_server_failed", f"the server cannot be started: {self._start_error}"
            )

    def wait_until_healthy(self, name: str) -> str:
        """Returns the server's address once its health page answers."""
        deadline = time.monotonic() + self._limits.start_s_max
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise self._ended(name)
            if self._announced.wait(_HEALTH_POLL_S) and self._url is None:
                self.process.wait(_STOP_S)  # Its output ended: it is about to.
                raise self._ended(name)
            if self._url is not None and _is_healthy(self._url):
                return self._url
            if self._url is not None:
                time.sleep(_HEALTH_POLL_S)
        raise LocalModelError(
            "local_server_slow",
            f'server of model "{name}" was not ready in {self._limits.start_s_max:g} s'
            + self._tail(),
            "the machine may be busy or short of memory; try fewer threads or a smaller model",
        )

    def stop(self) -> None:
        """Kills the process: it holds nothing that a slower end would save."""
        self.process.kill()
        self.process.wait(_STOP_S)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _ended(self, name: str) -> LocalModelError:
        self._stderr_reader.join(_STOP_S)
        return LocalModelError(
            "local_server_failed",
            f'server of model "{name}" ended with code {self.process.poll()} '
            f"before it was ready{self._tail()}",
            "check the free memory; for one's own file, that it is whole and that this llama.cpp "
            "knows its model type",
        )

    def _tail(self) -> str:
        return f": {' | '.join(self._fault)}" if self._fault else ""

    def _keep(self, config: dict[str, Any]) -> None:
        script = Path(__file__).with_name("_child.py")
        # -P: the folder of the script must not shadow installed modules.
        command = [sys.executable, "-P", str(script), json.dumps(config)]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace"
            )
        except OSError as error:
            self._start_error = error
            self._started.set()
            return
        self._stderr_reader = threading.Thread(
            target=self._read_stderr, args=(self.process.stderr,), daemon=True
        )
        self._stderr_reader.start()
        self._started.set()
        if self.process.stdout is not None:
            self._read_stdout(self.process.stdout)
        self.process.wait()

    def _read_stdout(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                # The runtime may print too; the announcement is the line that is our JSON.
                if self._url is None and line.startswith('{"url": '):
                    self._url = str(json.loads(line)["url"]).rstrip("/")
                    self._announced.set()
        self._announced.set()

    def _read_stderr(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if text := line.strip():
                    self._fault.append(text[: self._limits.fault_line_chars_max])


def _check_port(port: int) -> None:
    """Names a taken port before the model is loaded; the server itself only says it failed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the server does, so that a connection lately closed does not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise LocalModelError(
                "local_port_unusable",
                f"port {port} on 127.0.0.1 cannot be used: {error.strerror}",
                "give another port, or 0 for a free one",
            ) from error


def _is_healthy(url: str) -> bool:
    # No proxy: the address is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=_HEALTH_ANSWER_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
