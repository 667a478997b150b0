"""Where the engine's jobs run: async tools on the event loop, sync tools in threads.

Invariant: every job handed out by the native engine ends in exactly one report to it, whatever the
user's function does. One wake-up of the loop drains everything that waits, and everything that
ends in one turn of the loop is reported at once. Start reading at `Lane.drain`.
"""

import asyncio
import contextvars
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec

from mainspring._native import NativeEngine
from mainspring._schema import Signature, encode_result
from mainspring.adapter import ModelAdapter, ModelReply, ModelRequest, completion_of
from mainspring.context import Context
from mainspring.errors import MainspringError, from_failure
from mainspring.models import Answer, Route, ToolCall, rejection
from mainspring.outcome import Outcome
from mainspring.tool import Tool

__all__ = ["Lane"]

_log = logging.getLogger("mainspring.tool")

_TOOL, _VERIFY, _CANCEL, _START_THREAD, _RESOLVE, _POLICY, _RECONCILE, _MODEL = range(8)

ERROR_CHARS_MAX = 4000
"""Characters of an exception's text that a model gets to read."""


class Lane:
    """The Python side of one engine, bound to the event loop that opened it."""

    def __init__(self, native: NativeEngine, loop: asyncio.AbstractEventLoop) -> None:
        """Watches the engine's descriptor; `close` ends that."""
        self.native = native
        self._loop = loop
        self._tools: list[_Job] = []
        self._verifiers: list[Callable[[Answer], Any]] = []
        self._models: list[tuple[str, ModelAdapter]] = []
        self._tasks: dict[int, asyncio.Future[Any]] = {}
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._next_handle = 0
        self._done: list[tuple[int, str]] = []
        self._closing = False
        self._closed = False
        loop.add_reader(native.fd(), self.drain)

    def add_tool(self, tool: Tool[..., Any]) -> int:
        """Gives a tool its number."""
        number = len(self._tools)
        self._tools.append(_Job(tool))
        if not tool.is_async:
            self.native.mark_sync(number)
        return number

    def add_verifier(self, route: Route) -> int | None:
        """Gives a route's verify function its number, if it has one."""
        if route.verify is None:
            return None
        self._verifiers.append(route.verify)
        return len(self._verifiers) - 1

    def add_model(self, name: str, adapter: ModelAdapter) -> int:
        """Gives a model that is Python its number."""
        self._models.append((name, adapter))
        return len(self._models) - 1

    @property
    def handle(self) -> int:
        """The handle of what was asked last."""
        return self._next_handle

    def new_handle(self) -> int:
        """A handle for something that has no future."""
        self._next_handle += 1
        return self._next_handle

    def ask(self, request: Callable[..., None], *args: Any) -> "asyncio.Future[Any]":
        """Calls a method of the native engine with a new handle; the future gets its answer.

        Raises:
            EngineError: `engine_closed`: nobody takes answers any more.
        """
        if self._closed:
            raise _closed_error()
        self._next_handle += 1
        handle = self._next_handle
        future = self._loop.create_future()
        self._futures[handle] = future
        try:
            request(handle, *args)
        except RuntimeError as error:
            del self._futures[handle]
            raise public_error(error) from None
        return future

    def drain(self) -> None:
        """Takes everything the engine wants, and starts it."""
        for item in self.native.drain():
            kind = item[0]
            if kind == _TOOL:
                self._start_tool(item)
            elif kind == _RESOLVE:
                self._resolve(item[1], item[2], item[3])
            elif kind == _CANCEL:
                self._cancel(item[1])
            elif kind == _VERIFY:
                check = self._verify(self._verifiers[item[2]], item)
                self._tasks[item[1]] = self._loop.create_task(check)
            elif kind == _MODEL:
                self._tasks[item[1]] = self._loop.create_task(self._ask_model(item))
            elif kind == _POLICY:
                self._tasks[item[1]] = self._loop.create_task(self._ask_policy(item))
            elif kind == _RECONCILE:
                self._tasks[item[1]] = self._loop.create_task(self._reconcile(item))
            elif kind == _START_THREAD:
                threading.Thread(
                    target=_work,
                    args=(self.native, self._tools),
                    name="mainspring-tool",
                    daemon=True,
                ).start()

    def begin_close(self) -> None:
        """From now on a cancelled tool is one that the end of the program cut off."""
        self._closing = True

    async def close(self) -> None:
        """Stops watching, ends the tasks, and answers those who still wait."""
        self._closed = True
        self.drain()
        self._loop.remove_reader(self.native.fd())
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._futures.values():
            if not future.done():
                future.set_exception(_closed_error())
                future.exception()
        self._futures.clear()

    def _start_tool(self, item: tuple[Any, ...]) -> None:
        job = self._tools[item[2]]
        self._tasks[item[1]] = self._loop.create_task(self._run(job, item))

    async def _run(self, job: "_Job", item: tuple[Any, ...]) -> None:
        """Runs one async tool, from arguments to report."""
        ticket: int = item[1]
        if not self.native.may_act(item[9]):
            return self._withhold(ticket)
        try:
            result = await job.call(item)
            text = result if type(result) is str else encode_result(result, tool=job.tool.name)
        except asyncio.CancelledError:
            self._loop.call_soon(self._report_cancelled, ticket)
            raise
        except BaseException as error:
            self.native.failed(ticket, *failure_of(job.tool, error))
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            if not self._done:
                self._loop.call_soon(self._flush)
            self._done.append((ticket, text))
        finally:
            del self._tasks[ticket]

    def _withhold(self, ticket: int) -> None:
        """Reports a call that was not run: this process may have lost its session meanwhile."""
        del self._tasks[ticket]
        self.native.withheld(ticket)

    async def _ask_policy(self, item: tuple[Any, ...]) -> None:
        """Asks a tool's policy whether a person must approve a call; in doubt a person must."""
        ticket: int = item[1]
        tool = self._tools[item[2]].tool
        needed = True
        try:
            assert callable(tool.approve), "only such a tool has a policy"
            answer = tool.approve(msgspec.json.decode(item[3]))
            needed = bool(await answer if isinstance(answer, Awaitable) else answer)
        except Exception as error:
            _log.warning("approve of tool %r raised, a person is asked", tool.name, exc_info=error)
        finally:
            del self._tasks[ticket]
            self.native.policy_answered(ticket, needed)

    async def _reconcile(self, item: tuple[Any, ...]) -> None:
        """Asks a tool's own function what became of a call whose process ended."""
        ticket: int = item[1]
        job = self._tools[item[2]]
        outcome = Outcome.undecided("the reconcile function was cancelled")
        try:
            assert job.tool.reconcile is not None, "only such a tool is asked"
            answer = job.tool.reconcile(msgspec.json.decode(item[3]), job.context(item))
            found = await answer if isinstance(answer, Awaitable) else answer
            outcome = _checked_outcome(found)
        except Exception as error:
            _log.warning("reconcile of tool %r raised", job.tool.name, exc_info=error)
            outcome = Outcome.undecided(f"reconcile raised {type(error).__name__}: {error}")
        finally:
            del self._tasks[ticket]
            self.native.reconciled(ticket, outcome.kind, outcome_text(outcome, job.tool.name))

    async def _ask_model(self, item: tuple[Any, ...]) -> None:
        """Asks a model that is Python, and passes on what it says."""
        call: int = item[1]
        name, adapter = self._models[item[2]]
        try:
            request = ModelRequest(msgspec.json.decode(item[3]))
            answer = adapter.complete(request)
            if isinstance(answer, Awaitable):
                said: object = await answer
            else:
                said = await self._stream(call, answer)
            self.native.model_answered(call, msgspec.json.encode(completion_of(said)))
        except asyncio.CancelledError:
            # Nobody waits for it any more, or it was cancelled from within.
            if not self._closing:
                self.native.model_failed(call, *_cancelled_model(name))
            raise
        except BaseException as error:
            self._model_raised(call, name, error)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            del self._tasks[call]

    async def _stream(self, call: int, pieces: Any) -> ModelReply:
        """Passes on pieces of text as they come; gives the whole."""
        told: list[str] = []
        reply: ModelReply | None = None
        async for piece in pieces:
            if isinstance(piece, ModelReply):
                reply = piece
            elif isinstance(piece, str):
                told.append(piece)
                self.native.model_delta(call, piece)
            else:
                raise TypeError(
                    f"complete yielded {type(piece).__name__}, allowed are str and ModelReply"
                )
        whole = "".join(told)
        if reply is None:
            return ModelReply(whole)
        return reply if reply.text else replace(reply, text=whole)

    def _model_raised(self, call: int, name: str, error: BaseException) -> None:
        """Reports what an adapter raised, like the failure of a server where it tells a status."""
        _log.info("model %r raised", name, exc_info=error)
        status = getattr(error, "status_code", None)
        if isinstance(error, MainspringError) and error.code.startswith("model_"):
            failure = (error.code, error.message, error.hint, error.retryable)
            self.native.model_failed(call, *failure)
        elif isinstance(status, int) and 400 <= status <= 599:
            headers = getattr(getattr(error, "response", None), "headers", None) or {}
            after = headers.get("retry-after")
            body = {"error": {"message": _cut(str(error))}}
            self.native.model_refused(call, name, status, after, msgspec.json.encode(body))
        elif isinstance(error, TimeoutError):
            message = f'model "{name}" did not answer in time: {_told(error)}'
            self.native.model_failed(call, "model_timeout", message, None, retryable=True)
        else:
            message = f'model "{name}" raised {_told(error)}'
            self.native.model_failed(call, "model_adapter_failed", message, None, retryable=True)

    def _cancel(self, ticket: int) -> None:
        task = self._tasks.get(ticket)
        if task is not None:
            task.cancel()
            task.add_done_callback(functools.partial(self._never_began, ticket))

    def _never_began(self, ticket: int, task: "asyncio.Future[Any]") -> None:
        """Reports a task that was cancelled before its first step, and so could not itself."""
        if self._tasks.pop(ticket, None) is not None:
            self.native.cancelled(ticket)

    def _report_cancelled(self, ticket: int) -> None:
        """Reports a cancelled tool, unless it was cancelled because the program ends.

        `asyncio.run` cancels every task when it is interrupted. A tool that stops for that reason
        has no outcome: its session is resumed later.
        """
        if not self._closing:
            self.native.cancelled(ticket)

    def _flush(self) -> None:
        done, self._done = self._done, []
        self.native.returned(done)

    async def _verify(self, verify: Callable[[Answer], Any], item: tuple[Any, ...]) -> None:
        """Asks a verify function about one answer, and reports its verdict."""
        ticket: int = item[1]
        try:
            self.native.verified(ticket, await _verdict(verify, item[3]))
        except asyncio.CancelledError:
            self.native.cancelled(ticket)
            raise
        finally:
            del self._tasks[ticket]

    def _resolve(self, handle: int, ok: bool, value: Any) -> None:
        future = self._futures.pop(handle, None)
        if future is None or future.done():
            return
        if ok:
            future.set_result(value)
        else:
            code, message, hint, retryable = value
            future.set_exception(from_failure(code, message, hint, retryable))


def _closed_error() -> MainspringError:
    return from_failure("engine_closed", "the engine was closed", None, retryable=False)


class _Job:
    """A tool with what every call of it needs."""

    __slots__ = ("decode", "fn", "signature", "tool")

    def __init__(self, tool: Tool[..., Any]) -> None:
        self.tool = tool
        self.fn = tool.fn
        self.signature: Signature = tool.signature
        self.decode = self.signature.decode

    def call(self, item: tuple[Any, ...]) -> Any:
        """Calls the function; gives its result, or what is to be awaited for it."""
        arguments = self.decode(item[3])
        if self.signature.context_names:
            context = self.context(item)
            for name in self.signature.context_names:
                arguments[name] = context
        return self.fn(**arguments)

    def context(self, item: tuple[Any, ...]) -> Context:
        """What the function may know of its call."""
        return Context(
            session=item[4],
            tool=self.tool.name,
            call_id=item[5],
            effect_id=item[6],
            attempt=item[7],
            deadline_s=item[8] / 1000,
        )


def _checked_outcome(found: object) -> Outcome:
    if not isinstance(found, Outcome):
        raise TypeError(f"reconcile gives an Outcome, not {type(found).__name__}")
    return found


def outcome_text(outcome: Outcome, tool: str) -> str:
    """An outcome's value as the engine takes it: text."""
    if outcome.kind == "done" and not isinstance(outcome.value, str):
        return encode_result(outcome.value, tool=tool)
    return "" if outcome.value is None else str(outcome.value)


def _work(native: NativeEngine, tools: list[_Job]) -> None:
    """A thread that runs sync tools until the engine closes."""
    while (item := native.take_sync()) is not None:
        job = tools[item[2]]
        if not native.may_act(item[9]):
            native.withheld(item[1])
            continue
        try:
            # A context of its own, so that no call sees what another set.
            result = contextvars.Context().run(job.call, item)
            native.returned([(item[1], encode_result(result, tool=job.tool.name))])
        except BaseException as error:
            native.failed(item[1], *failure_of(job.tool, error))


def failure_of(tool: Tool[..., Any], error: BaseException) -> tuple[str, str, str | None, bool]:
    """What a model reads of an exception: code, message, hint, retryable."""
    if isinstance(error, MainspringError) and error.code.startswith("tool_"):
        return error.code, error.message, error.hint, error.retryable
    _log.info("tool %r raised", tool.name, exc_info=error)
    return "tool_failed", f'tool "{tool.name}" raised {_told(error)}', None, False


def _told(error: BaseException) -> str:
    """An exception in words, with what is too long of it cut off."""
    text = _cut(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[:ERROR_CHARS_MAX]}..."


def _cancelled_model(name: str) -> tuple[str, str, str | None, bool]:
    return "model_adapter_failed", f'model "{name}" was cancelled from within', None, True


async def _verdict(verify: Callable[[Answer], Any], raw: bytes) -> str | None:
    """Asks a verify function; an error of its own is a rejection that says so."""
    try:
        data = msgspec.json.decode(raw)
        calls = tuple(
            ToolCall(call["name"], _arguments(call["arguments"])) for call in data["tool_calls"]
        )
        verdict = verify(Answer(data["text"], calls, data["model"], data["step"]))
        if isinstance(verdict, Awaitable):
            verdict = await verdict
        return rejection(verdict)
    except Exception as error:
        _log.warning("the verify function raised", exc_info=error)
        return f"the verify function raised {type(error).__name__}: {error}"


def _arguments(text: str) -> dict[str, Any]:
    value = msgspec.json.decode(text)
    return value if isinstance(value, dict) else {}


def public_error(error: RuntimeError) -> BaseException:
    """The public exception for what the native module raises."""
    if len(error.args) == 4:
        code, message, hint, retryable = error.args
        return from_failure(code, message, hint, retryable)
    return error
