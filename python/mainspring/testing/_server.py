"""The scripted model as a server: its thread, its connections, and one answer per request.

Start reading at `ScriptedModel`. Invariant: `stop` returns only when every connection is closed
and every thread of the server has ended. The event loop's thread owns all state but the recorded
requests, which a lock guards.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from mainspring.models import Model
from mainspring.testing._checks import Refused, check_request
from mainspring.testing._http import (
    HttpRequest,
    ServerLimits,
    chunked,
    head_bytes,
    read_request,
)
from mainspring.testing._render import (
    Rendered,
    chunks,
    completion,
    cut,
    error,
    opening_chunks,
    render,
)
from mainspring.testing._script import (
    Answer,
    Delay,
    Drop,
    Fail,
    Garbage,
    Hang,
    Hold,
    Request,
    Script,
    Step,
    check_script,
    choose,
)
from mainspring.testing._waiting import EventWaiters

_DEFAULT_NAME = "scripted"
_SECRET_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "cookie", "api-key", "x-api-key")
)
_CONNECTIONS_WAITING_MAX = 4096
_JSON = "application/json"
_STREAM = "text/event-stream; charset=utf-8"


class ScriptedModel:
    """A model that follows a script, served over the OpenAI Chat Completions protocol.

    As a context manager it starts a server on loopback and stops it at the end. The n-th step of
    a list answers the conversation that holds n assistant messages, so one script serves many
    conversations at once, and retries and resumed processes too.

    Args:
        script: A list of steps, or a function from `Request` to a step. It runs in the server's
            thread and must not block.
        models: Instead of `script`, one script for each model name; other names get 404.
        api_key: The key that requests must carry; without it, every key is accepted.
        port: The port to listen on; 0 takes a free one.
        limits: Bounds of the server.

    Raises:
        TypeError: A script has the wrong type, or both or none of `script` and `models` is given.
        ValueError: A script is empty, or has a step that no conversation can reach.

    Example:
        >>> from mainspring.testing import ScriptedModel, call, calls, say
        >>> with ScriptedModel([calls(call("search", query="x")), say("done")]) as model:
        ...     model.model().name  # for Agent("finder", model=model.model(), tools=[search])
        'scripted'
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: Mapping[str, Script] | None = None,
        api_key: str | None = None,
        port: int = 0,
        limits: ServerLimits | None = None,
    ) -> None:
        if (script is None) == (models is None):
            raise TypeError("ScriptedModel() takes either a script or models, exactly one of them")
        self._any_name = script is not None
        self._scripts = dict(models or {})
        if script is not None:
            self._scripts[_DEFAULT_NAME] = script
        if not self._scripts:
            raise ValueError("ScriptedModel() got models without any name, needs at least 1")
        for name, one in self._scripts.items():
            check_script(one, name=name)
        self._api_key = api_key
        self._port = port
        self._limits = limits or ServerLimits()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._waiters = EventWaiters()
        self._connections: set[asyncio.Task[None]] = set()
        self._attempts: OrderedDict[bytes, int] = OrderedDict()
        self._answer_count = 0
        self._changed = threading.Condition()
        self._requests: deque[Request] = deque(maxlen=self._limits.requests_kept_max)
        self._request_count = 0

    def __enter__(self) -> Self:
        """Starts the server."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server."""
        self.stop()

    def start(self) -> Self:
        """Starts the server; after a `stop` it listens on the same port again.

        Raises:
            RuntimeError: It runs already.
            OSError: The port is taken, or the process may open no more files.
        """
        if self._thread is not None:
            raise RuntimeError("scripted model runs already\nhint: call stop() first")
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            # Clients may connect from here on; the loop takes them up when it runs.
            listener.listen(_CONNECTIONS_WAITING_MAX)
        except BaseException:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(listener, ready))
            except BaseException as error:
                failed.append(error)
            finally:
                listener.close()
                ready.set()

        self._thread = threading.Thread(target=run, name="scripted-model", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            # Too many open files, for one: the loop itself needs some.
            self._thread.join()
            self._thread = None
            raise failed[0]
        return self

    def stop(self) -> None:
        """Closes every connection and ends the server; does nothing if it does not run."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = self._loop = self._stopping = None

    @property
    def base_url(self) -> str:
        """The address for clients, ending in `/v1`.

        Raises:
            RuntimeError: The server was never started.
        """
        if self._port == 0:
            raise RuntimeError("scripted model has no address yet\nhint: use it in a with block")
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def requests(self) -> list[Request]:
        """The requests that came so far, oldest first; refused ones too, if they held JSON."""
        with self._changed:
            return list(self._requests)

    @property
    def request_count(self) -> int:
        """How many requests came so far, forgotten ones included."""
        return self._request_count

    def wait_for_requests(self, count: int, *, timeout_s: float = 60.0) -> list[Request]:
        """Blocks until that many requests came; call it with `asyncio.to_thread` from a loop.

        Raises:
            TimeoutError: Fewer came in the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._request_count >= count, timeout_s):
                raise TimeoutError(
                    f"scripted model got {self._request_count} requests in {timeout_s:g} s, "
                    f"waited for {count}"
                )
            return list(self._requests)

    def model(
        self,
        name: str | None = None,
        *,
        tool_mode: Literal["native", "json_schema"] | None = None,
        stream: bool = False,
    ) -> Model:
        """Describes this server as a model for an agent; `dataclasses.replace` sets more fields.

        Args:
            name: The model's name; without it, `scripted`, or the first of `models`.
            tool_mode: As for `Model`.
            stream: As for `Model`.

        Raises:
            RuntimeError: The server was never started.
        """
        return Model(
            name or next(iter(self._scripts)),
            base_url=self.base_url,
            api_key=self._api_key or "none",
            tool_mode=tool_mode,
            stream=stream,
        )

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(
            self._serve_connection,
            sock=listener,
            limit=self._limits.head_bytes_max,
            backlog=_CONNECTIONS_WAITING_MAX,
        )
        ready.set()
        await self._stopping.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._waiters.close()

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is served by a task"
        self._connections.add(task)
        try:
            keep_alive = True
            while keep_alive:
                keep_alive = await self._serve_request(reader, writer)
            # Flushes what is written, then closes.
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The client is gone or the server stops: there is nobody to tell.
            pass
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _serve_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answers one request; says whether the connection can take another."""
        try:
            http = await read_request(reader, writer, self._limits)
        except Refused as refused:
            _write_error(writer, refused, {"connection": "close"})
            return False
        if http is None:
            return False
        try:
            return await self._answer(http, reader, writer)
        except Refused as refused:
            _write_error(writer, refused, self._headers())
            await writer.drain()
            return http.keep_alive

    async def _answer(
        self, http: HttpRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        self._check_key(http)
        if http.path == "/v1/models" or http.path.startswith("/v1/models/"):
            self._answer_models(http, writer)
            await writer.drain()
            return http.keep_alive
        if http.path != "/v1/chat/completions":
            raise Refused(404, f"Invalid URL ({http.method} {http.path})")
        if http.method != "POST":
            raise _wrong_method(http)
        request = self._record(http)
        check_request(request.body)
        if not self._any_name and request.model not in self._scripts:
            raise _unknown_model(request.model)
        script = self._scripts[_DEFAULT_NAME if self._any_name else request.model]
        try:
            step = choose(script, request)
        except ValueError as wrong:
            # 400, so that no client tries again what cannot get better.
            raise Refused(400, str(wrong), code="script_error") from wrong
        ending = await self._reach(step, request.attempt)
        keep_alive = await self._play(ending, http, request, reader, writer)
        return keep_alive and http.keep_alive

    async def _reach(self, step: Step, attempt: int) -> Answer | Fail | Hang | Drop | Garbage:
        """Waits as the step says, and skips the failures that earlier attempts took."""
        while True:
            if isinstance(step, Hold):
                await self._waiters.wait(step.event)
                step = step.then
            elif isinstance(step, Delay):
                await asyncio.sleep(step.seconds)
                step = step.then
            elif isinstance(step, Answer) or step.then is None or attempt <= step.times:
                return step
            else:
                attempt -= step.times
                step = step.then

    async def _play(
        self,
        step: Answer | Fail | Hang | Drop | Garbage,
        http: HttpRequest,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        stream = request.body.get("stream") is True
        if isinstance(step, Fail):
            refused = Refused(step.status, step.message, code=step.code)
            _write_error(writer, refused, {**self._headers(), **_retry_after(step)})
        elif isinstance(step, Garbage):
            length = len(step.body)
            kind = _STREAM if stream else _JSON
            writer.write(
                head_bytes(200, self._headers(), content_type=kind, body_bytes=length) + step.body
            )
        elif isinstance(step, Answer):
            self._answer_count += 1
            rendered = self._render(step, http, request)
            writer.write(self._whole(rendered, request, stream=stream))
        else:
            if step.after_chars is not None:
                rendered = self._render(step.of, http, request)
                writer.write(self._part(rendered, request, stream=stream, chars=step.after_chars))
                await writer.drain()
            if isinstance(step, Hang):
                # Until the client closes, or the server stops and cancels this.
                while await reader.read(4096):
                    pass
            return False
        await writer.drain()
        return True

    def _render(self, answer: Answer, http: HttpRequest, request: Request) -> Rendered:
        return render(
            answer,
            request,
            body_chars=len(http.body),
            number=self._answer_count,
            now_s=int(time.time()),
        )

    def _whole(self, rendered: Rendered, request: Request, *, stream: bool) -> bytes:
        if not stream:
            return _json_bytes(200, completion(rendered), self._headers())
        head = head_bytes(200, self._headers(), content_type=_STREAM, body_bytes=None)
        sent = chunks(rendered, include_usage=_wants_usage(request))
        return head + chunked([*_events(sent), b"data: [DONE]\n\n"], last=True)

    def _part(self, rendered: Rendered, request: Request, *, stream: bool, chars: int) -> bytes:
        """The start of an answer, and never its end, however many characters are asked for."""
        if stream:
            head = head_bytes(200, self._headers(), content_type=_STREAM, body_bytes=None)
            part = cut(rendered, chars=chars)
            sent = opening_chunks(part, include_usage=_wants_usage(request))
            return head + chunked(_events(sent), last=False)
        body = json.dumps(completion(rendered), ensure_ascii=False)
        length = len(body.encode())
        head = head_bytes(200, self._headers(), content_type=_JSON, body_bytes=length)
        return head + body[: min(chars, len(body) - 1)].encode()

    def _answer_models(self, http: HttpRequest, writer: asyncio.StreamWriter) -> None:
        if http.method != "GET":
            raise _wrong_method(http)
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "mainspring"}
            for name in self._scripts
        ]
        if http.path == "/v1/models":
            answer: dict[str, Any] = {"object": "list", "data": listed}
        else:
            name = http.path.removeprefix("/v1/models/")
            found = [one for one in listed if one["id"] == name]
            if not found:
                raise _unknown_model(name)
            answer = found[0]
        writer.write(_json_bytes(200, answer, self._headers()))

    def _check_key(self, http: HttpRequest) -> None:
        if self._api_key is None:
            return
        given = http.headers.get("authorization", "")
        if not given:
            raise Refused(
                401,
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        # The key that came is not repeated: error texts end in logs.
        if not hmac.compare_digest(given.encode(), f"Bearer {self._api_key}".encode()):
            raise Refused(401, "Incorrect API key provided.")

    def _record(self, http: HttpRequest) -> Request:
        try:
            body = json.loads(http.body)
        except ValueError as wrong:
            raise Refused(
                400,
                "We could not parse the JSON body of your request. The request body must be "
                f"valid JSON: {wrong}",
            ) from None
        if not isinstance(body, dict):
            raise Refused(400, f"Invalid body: expected an object, got {type(body).__name__}.")
        key = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).digest()
        attempt = self._attempts.pop(key, 0) + 1
        self._attempts[key] = attempt
        if len(self._attempts) > self._limits.attempts_kept_max:
            self._attempts.popitem(last=False)
        headers = {
            name: "hidden" if name in _SECRET_HEADERS else value
            for name, value in http.headers.items()
        }
        request = Request(body, headers, attempt)
        with self._changed:
            self._requests.append(request)
            self._request_count += 1
            self._changed.notify_all()
        return request

    def _headers(self) -> dict[str, str]:
        return {"x-request-id": f"req_{self._request_count}"}


def _write_error(
    writer: asyncio.StreamWriter, refused: Refused, headers: Mapping[str, str]
) -> None:
    writer.write(_json_bytes(refused.status, error(refused), headers))


def _json_bytes(status: int, value: object, headers: Mapping[str, str]) -> bytes:
    body = json.dumps(value, ensure_ascii=False).encode()
    return head_bytes(status, headers, content_type=_JSON, body_bytes=len(body)) + body


def _events(sent: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    for chunk in sent:
        yield b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False).encode()


def _wants_usage(request: Request) -> bool:
    options = request.body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _retry_after(step: Fail) -> dict[str, str]:
    if step.retry_after_s is None:
        return {}
    # The API sends both: `retry-after-ms` is for clients that can wait less than a second.
    return {
        "retry-after": f"{step.retry_after_s:g}",
        "retry-after-ms": f"{step.retry_after_s * 1000:g}",
    }


def _unknown_model(name: str) -> Refused:
    return Refused(
        404,
        f"The model `{name}` does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def _wrong_method(http: HttpRequest) -> Refused:
    return Refused(
        405,
        f"Not allowed to {http.method} on {http.path}. "
        "(HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
    )
