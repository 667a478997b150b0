"""Model calls without a session: one question to a model or a route, one answer.

Invariant: nothing is recorded and no tool is run; a call that nobody waits for any more is ended.
All calls share the connections of one thread, and no call has a task or a thread of its own.
Reading starts at `ModelClient.complete`.
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack, cast

import msgspec

from mainspring._lane import Lane, public_error
from mainspring._native import NativeEngine, NativeModels
from mainspring._schema import decode_output, output_schema
from mainspring.adapter import ModelAdapter
from mainspring.budget import Budget, tenant_budgets
from mainspring.errors import AgentError, from_failure
from mainspring.events import ToolCallRequest, Usage
from mainspring.models import Model, Route, check_single_step
from mainspring.tool import Tool, as_tool

__all__ = [
    "Completion",
    "CompletionDelta",
    "CompletionOptions",
    "CompletionStream",
    "ModelClient",
]

Messages = str | Sequence[Mapping[str, Any]]
"""What is asked: the user's text, or messages as Chat Completions has them."""

Asked = str | Model | Route | ModelAdapter
"""Who is asked."""

ToolLike = Tool[..., Any] | Callable[..., Any] | Mapping[str, Any]
"""A tool that a model may ask for: one of ours, a function, or as Chat Completions has it."""

KNOWN_MAX = 4096
"""Routes that a client keeps ready; one made anew for each call would fill it up."""

_NO_PROBLEMS = b"[]"


class Completion(msgspec.Struct, frozen=True):
    """An answer, and what it took to get it.

    Attributes:
        text: The text; empty when it only calls tools.
        tool_calls: The tool calls, in the model's order; their arguments are JSON as it wrote it.
        parsed: The answer as the type of `output`; None without one, and where tools are called.
        model: The name of the model that answered.
        usage: Tokens of all calls together: repairs and other models included.
        cost_usd: Their price in US dollars; None where no price is known.
        finish_reason: Why the model stopped: `stop`, `length`, `tool_calls`, `content_filter` or
            `other`.
    """

    text: str
    tool_calls: tuple[ToolCallRequest, ...]
    parsed: Any
    model: str
    usage: Usage
    cost_usd: float | None
    finish_reason: str
    _decision: bytes
    _attempts: bytes
    _problems: bytes

    @property
    def decision(self) -> dict[str, Any]:
        """Which model was asked first and why: `tier`, `reason`, `propensity`, `candidates`."""
        return cast(dict[str, Any], msgspec.json.decode(self._decision))

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every call that was made, oldest first.

        Each has `model`, `usage`, `cost_usd`, `total_us`, and the `error` or `problems` it ended
        with.
        """
        return cast(list[dict[str, Any]], msgspec.json.decode(self._attempts))

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What the checks found wrong with an answer that was given back all the same."""
        if self._problems == _NO_PROBLEMS:
            return []
        return cast(list[dict[str, Any]], msgspec.json.decode(self._problems))


class CompletionOptions(TypedDict, total=False):
    """What may be said besides the messages.

    Attributes:
        tools: Tools that the model may ask for; they are not run. Their schemas check the arguments
            of its calls.
        tool_choice: `auto`, `none`, `required`, or the name of a tool; left out: the server's
            default.
        output: Type of the answer, as for `Agent`, or a JSON Schema; left out: text.
        max_tokens: Most tokens of the answer; one that ends there counts.
        temperature: Sampling temperature; left out: the model's.
        params: Further fields of the request's body.
        tenant: Whose call it is, for limits that are shared fairly.
        timeout_s: Seconds for all of it, repairs and other models included; left out: the limits of
            the models.
    """

    tools: Sequence[ToolLike]
    tool_choice: str | Mapping[str, Any] | None
    output: Any
    max_tokens: int | None
    temperature: float | None
    params: Mapping[str, Any] | None
    tenant: str
    timeout_s: float | None


class CompletionDelta(msgspec.Struct, frozen=True):
    """A piece of an answer that is being made.

    Attributes:
        text: The next text. What came while nobody asked is one piece.
        restarted: Whether everything before this piece does not count: another call answers.
    """

    text: str
    restarted: bool = False


class CompletionStream:
    """An answer in pieces; iterate over it, once.

    Breaking off ends the call, at the latest when the stream is collected; `aclose` does it at
    once.

    Attributes:
        completion: The whole, once the iteration has ended; None before.
    """

    def __init__(self, lane: Lane, native: NativeModels, handle: int, output: Any) -> None:
        """Made by `ModelClient.stream`."""
        self.completion: Completion | None = None
        self._lane = lane
        self._native = native
        self._handle = handle
        self._output = output
        self._over = False

    def __aiter__(self) -> AsyncIterator[CompletionDelta]:
        """Gives the stream itself."""
        return self

    async def __anext__(self) -> CompletionDelta:
        """Waits for the next piece.

        Raises:
            MainspringError: What `ModelClient.complete` raises.
        """
        while not self._over:
            try:
                restarted, text, done = await self._lane.ask(self._native.next, self._handle)
            except BaseException:
                self._end()
                raise
            if done is not None:
                self._end()
                self.completion = _completion(done, self._output)
            if text or restarted:
                return CompletionDelta(text, restarted)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the call, if it has not ended."""
        self._end()

    def __del__(self) -> None:
        """Ends the call of a stream that was broken off."""
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._native.give_up(self._handle)


class ModelClient:
    """Asks models, without sessions and their logs; use it as an async context manager.

    Routes choose, check, repair, escalate and fall back as they do in an agent.

    Args:
        budgets: What tenants may spend, by name; counted from when the client is opened.

    Raises:
        AgentError: `budget_invalid`, when it is opened: a budget cannot be used as given.

    Example:
        >>> from mainspring import Model, ModelClient
        >>> small = Model("small", base_url="http://127.0.0.1:8000/v1")
        >>> async def ask() -> str:
        ...     async with ModelClient() as client:
        ...         return (await client.complete(small, "Name a colour.")).text
    """

    def __init__(self, *, budgets: Mapping[str, Budget] | None = None) -> None:
        """Opens nothing; entering the context does."""
        self._budgets = dict(budgets or {})
        self._open: tuple[NativeModels, Lane] | None = None
        self._process = 0
        self._numbers: dict[Any, int] = {}
        self._routes: dict[int, tuple[Asked, int]] = {}

    async def __aenter__(self) -> Self:
        """Starts the thread that makes the calls."""
        if self._open is not None:
            raise RuntimeError("the model client is open already")
        try:
            native = NativeModels(tenant_budgets(self._budgets))
        except RuntimeError as error:
            raise public_error(error) from None
        # The lane asks of it only what belongs to the jobs that it hands out, and those it has.
        lane = Lane(cast(NativeEngine, native), asyncio.get_running_loop())
        self._open = (native, lane)
        self._process = os.getpid()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the client; calls under way end with `engine_closed`."""
        await self.close()

    async def close(self) -> None:
        """Ends every call and the thread. Closing twice is the same as once."""
        if self._open is None or self._process != os.getpid():
            return
        native, lane = self._open
        self._open = None
        self._numbers.clear()
        self._routes.clear()
        lane.begin_close()
        await asyncio.get_running_loop().run_in_executor(None, native.close)
        await lane.close()

    async def complete(
        self, model: Asked, messages: Messages, **options: Unpack[CompletionOptions]
    ) -> Completion:
        """Asks a question and waits for the answer.

        Args:
            model: A name, a `Model` or a `Route`; the same object each time, which is made ready
                once.
            messages: What the user says, or messages with `role` and `content` as Chat Completions
                has them: `system`, `user`, `assistant` with `tool_calls`, `tool`.
            options: As `CompletionOptions` says.

        Raises:
            AgentError: `agent_invalid`: something cannot be used as given.
            ModelError: The model failed, and so did the others of the route.
            SessionFailed: `output_invalid`, `answer_rejected`: no model's answer counts.
            EngineError: `engine_closed`: the client is not open.
        """
        native, lane = self._opened()
        number = self._number(model, native, lane)
        body = _body(messages, options) if options else _plain_body(messages)
        tenant = options.get("tenant", "")
        limit = _milliseconds(options.get("timeout_s"))
        future = lane.ask(native.complete, number, body, tenant, limit)
        handle = lane.handle
        try:
            done = await future
        except asyncio.CancelledError:
            native.give_up(handle)
            raise
        return _completion(done, options.get("output"))

    def stream(
        self,
        model: Asked,
        messages: Messages,
        *,
        verify: Literal["before", "never"] = "before",
        **options: Unpack[CompletionOptions],
    ) -> CompletionStream:
        """Asks a question and gives the answer's text as it is made.

        Args:
            model: As for `complete`.
            messages: As for `complete`.
            verify: `before`: what a model says that is not the last of its route comes in one
                piece, once it has passed its checks; the last model's text comes at once. `never`:
                all text comes at once, and checks that fail begin the answer anew
                (`CompletionDelta.restarted`).
            options: As `CompletionOptions` says.

        Returns:
            The stream, to be iterated over with `async for`.

        Raises:
            AgentError: `agent_invalid`: something cannot be used as given.
            EngineError: `engine_closed`: the client is not open.
        """
        if verify not in ("before", "never"):
            raise ValueError(f"verify is {verify!r}, allowed are 'before' and 'never'")
        native, lane = self._opened()
        number = self._number(model, native, lane)
        body = _body(messages, options)
        handle = lane.new_handle()
        tenant, limit = options.get("tenant", ""), _milliseconds(options.get("timeout_s"))
        try:
            native.stream(handle, number, body, verify == "never", tenant, limit)
        except RuntimeError as error:
            raise public_error(error) from None
        return CompletionStream(lane, native, handle, options.get("output"))

    def _opened(self) -> tuple[NativeModels, Lane]:
        if self._open is None:
            raise from_failure(
                "engine_closed",
                "the model client is not open",
                "use it as `async with ModelClient() as client:`",
                retryable=False,
            )
        return self._open

    def _number(self, model: Asked, native: NativeModels, lane: Lane) -> int:
        """The number of a route that is ready, by identity first: comparing routes takes longer."""
        known = self._routes.get(id(model))
        if known is not None:
            return known[1]
        route = model if isinstance(model, Route) else Route(model)
        number = self._numbers.get(route)
        if number is None:
            number = self._numbers[route] = _register(route, native, lane)
        if len(self._routes) >= KNOWN_MAX:
            self._routes.clear()
        # The object is kept too: as long as it lives, no other has its identity.
        self._routes[id(model)] = (model, number)
        return number


def _register(route: Route, native: NativeModels, lane: Lane) -> int:
    members: list[dict[str, Any]] = []
    for model in route.models:
        access = model.access()
        if model.adapter is not None:
            access["adapter"] = lane.add_model(model.name, model.adapter)
        members.append({"model": model.spec(), "access": access})
    check_single_step(route)
    name = "+".join(model.name for model in route.models)
    encoded = msgspec.json.encode(members)
    policy = None if route.policy is None else msgspec.json.encode(route.policy.spec())
    weights = route.read_weights()
    try:
        return native.route(name, encoded, lane.add_verifier(route), policy, weights)
    except RuntimeError as error:
        raise public_error(error) from None


def _plain_body(messages: Messages) -> bytes:
    return _encoded({"model": "", "messages": _listed(messages)})


def _body(messages: Messages, options: CompletionOptions) -> bytes:
    """The request as JSON; what is wrong with it is found where it is read."""
    body: dict[str, Any] = dict(options.get("params") or {})
    body["model"] = ""
    body["messages"] = _listed(messages)
    if tools := options.get("tools"):
        body["tools"] = [_tool(each) for each in tools]
    if (choice := options.get("tool_choice")) is not None:
        body["tool_choice"] = _choice(choice)
    output = options.get("output")
    if output is not None and output is not str:
        body["response_format"] = _response_format(output)
    for name in ("max_tokens", "temperature"):
        value = options.get(name)
        if value is not None:
            body[name] = value
    return _encoded(body)


def _listed(messages: Messages) -> Sequence[Mapping[str, Any]]:
    if isinstance(messages, str):
        return ({"role": "user", "content": messages},)
    listed: object = messages
    if isinstance(listed, Mapping) or not isinstance(listed, Sequence):
        raise TypeError(f"messages is text or a list of messages, not {type(listed).__name__}")
    return cast(Sequence[Mapping[str, Any]], listed)


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:
        raise AgentError(
            "agent_invalid", f"the request cannot be written as JSON: {error}"
        ) from error


def _tool(tool: ToolLike) -> Mapping[str, Any] | msgspec.Raw:
    return tool if isinstance(tool, Mapping) else _tool_json(as_tool(tool))


@functools.lru_cache(maxsize=1024)
def _tool_json(tool: Tool[..., Any]) -> msgspec.Raw:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return msgspec.Raw(msgspec.json.encode({"type": "function", "function": function}))


def _choice(choice: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": choice}}
    return choice


def _response_format(output: Any) -> Mapping[str, Any] | msgspec.Raw:
    if isinstance(output, Mapping):
        return _format_of(output)
    try:
        return _cached_format(output)
    except TypeError:  # Types whose metadata cannot be hashed are made anew each time.
        return _format_of(output_schema(output))


def _format_of(schema: Any) -> Mapping[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@functools.lru_cache(maxsize=256)
def _cached_format(output: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(_format_of(output_schema(output))))


def _milliseconds(timeout_s: float | None) -> int | None:
    if timeout_s is None:
        return None
    if not 0 < timeout_s <= 86_400:
        raise ValueError(f"timeout_s is {timeout_s}, must be above 0, at most 86400")
    return max(1, round(timeout_s * 1000))


def _completion(done: tuple[Any, ...], output: Any) -> Completion:
    text, calls, finish_reason, model, usage, cost_usd, decision, attempts, problems = done
    parsed: Any = None
    if output is not None and not calls:
        is_schema = isinstance(output, Mapping)
        parsed = msgspec.json.decode(text) if is_schema else decode_output(output, text)
    return Completion(
        text,
        tuple([ToolCallRequest(*call) for call in calls]) if calls else (),
        parsed,
        model,
        Usage(*usage),
        cost_usd,
        finish_reason,
        decision,
        attempts,
        problems,
    )
