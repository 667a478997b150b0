"""Models that are Python: what they see, what they may say, and what becomes of their faults."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Engine,
    Event,
    Limits,
    Model,
    ModelError,
    ModelReply,
    ModelRequest,
    Route,
    RoutePolicy,
    tool,
)
from mainspring.events import ModelCallFailed, ModelCallFinished, RouteDecided

PLAIN = RoutePolicy(explore=0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test in an event loop of its own."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(test(**arguments))

    return run


class Scripted:
    """Says one thing after the other, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *says: Any) -> None:
        self.says = list(says)
        self.asked: list[ModelRequest] = []

    async def complete(self, request: ModelRequest) -> Any:
        self.asked.append(request)
        said = self.says.pop(0)
        if isinstance(said, BaseException):
            raise said
        return said


class Streaming:
    """Yields pieces, then what it was given to end with."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    async def complete(self, request: ModelRequest) -> AsyncIterator[Any]:
        for piece in self.pieces:
            yield piece


class Hanging:
    """Never answers, and says when it was told to stop."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.stopped = asyncio.Event()

    async def complete(self, request: ModelRequest) -> str:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        raise AssertionError("it waits for ever")


class Refused(Exception):
    """What the SDKs of providers raise: an error with the status of a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server said {status}")
        self.status_code = status


@tool(effect="read")
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


async def run_log(agent: Agent[Any]) -> tuple[Any, list[Event]]:
    async with Engine("memory:") as engine:
        run = await engine.start(agent, "go")
        try:
            result: Any = await run.result()
        except ModelError as error:
            result = error
        return result, await engine.log(run.session)


@in_loop
async def test_an_object_with_one_async_method_is_a_model() -> None:
    model = Scripted(ModelReply(tool_calls=[("add", {"a": 2, "b": 3})]), "five")
    result, log = await run_log(Agent("sums", instructions="Add.", model=model, tools=[add]))

    assert result == "five"
    first, second = model.asked
    assert first.model == "scripted"
    assert first.messages == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "go"},
    ]
    assert [each["function"]["name"] for each in first.tools] == ["add"]
    assert second.messages[-1]["content"] == "5"
    assert [event.model for event in log if isinstance(event, RouteDecided)] == ["scripted"]


@in_loop
async def test_usage_and_finish_reason_are_recorded() -> None:
    reply = ModelReply("cut", finish_reason="length", input_tokens=7, output_tokens=2)
    model = Model("mine", adapter=Scripted(reply, "whole"), price=(1.0, 2.0))
    _, log = await run_log(Agent("a", model=model))

    (first, _) = [event for event in log if isinstance(event, ModelCallFinished)]
    assert first.finish_reason == "length"
    assert (first.usage.input_tokens, first.usage.output_tokens) == (7, 2)
    assert first.cost_usd == pytest.approx(11e-6)


@in_loop
async def test_a_whole_chat_completion_may_be_returned() -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "hi"}}], "usage": None}
    result, _ = await run_log(Agent("a", model=Scripted(body)))
    assert result == "hi"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (("a", "b"), "ab"),
        (("a", "b", ModelReply(output_tokens=3)), "ab"),
        (("dra", ModelReply("the whole")), "the whole"),
    ],
)
@in_loop
async def test_pieces_of_a_stream_make_the_answer(pieces: tuple[Any, ...], text: str) -> None:
    result, _ = await run_log(Agent("a", model=Streaming(*pieces)))
    assert result == text


@in_loop
async def test_pieces_reach_those_who_watch() -> None:
    go_on = asyncio.Event()

    class Slow:
        async def complete(self, request: ModelRequest) -> AsyncIterator[str]:
            yield "one "
            await go_on.wait()
            yield "two"

    async with Engine("memory:") as engine:
        run = await engine.start(Agent("a", model=Slow()), "go")
        seen = ""
        async for event in run.events():
            if event.kind == "model_delta":
                seen += event.text  # type: ignore[attr-defined]
                go_on.set()
        assert seen == "one two"


@pytest.mark.parametrize(
    ("error", "code", "retried"),
    [
        (Refused(429), "model_rate_limited", True),
        (Refused(503), "model_server_error", True),
        (Refused(401), "model_auth", False),
        (TimeoutError("late"), "model_timeout", True),
        (ValueError("odd"), "model_adapter_failed", True),
        (ModelError("model_context_overflow", "too long"), "model_context_overflow", False),
    ],
)
@in_loop
async def test_what_an_adapter_raises_fails_the_attempt_like_a_server(
    error: Exception, code: str, retried: bool
) -> None:
    model = Scripted(error, "fine")
    agent = Agent("a", model=Route(model, Scripted("the next model"), policy=PLAIN))
    result, log = await run_log(agent)

    (failed,) = [event for event in log if isinstance(event, ModelCallFailed)]
    assert failed.error.code == code
    assert result == ("fine" if retried else "the next model")


@in_loop
async def test_what_is_no_answer_is_said() -> None:
    agent = Agent("a", model=Scripted(17), limits=Limits(model_attempts_max=1))
    result, _ = await run_log(agent)
    assert result.code == "model_adapter_failed"
    assert "complete returned int, allowed are str, ModelReply and a chat completion" in str(result)


@in_loop
async def test_a_deadline_stops_an_adapter_and_the_next_model_is_asked() -> None:
    hanging = Hanging()
    slow = Model("slow", adapter=hanging, total_s=0.01)
    route = Route(slow, Scripted("late"), policy=PLAIN)
    agent = Agent("a", model=route, limits=Limits(model_attempts_max=1))
    result, _ = await run_log(agent)
    await hanging.stopped.wait()
    assert result == "late"


@in_loop
async def test_cancelling_a_turn_stops_an_adapter() -> None:
    hanging = Hanging()
    async with Engine("memory:") as engine:
        run = await engine.start(Agent("a", model=hanging), "go")
        await hanging.began.wait()
        await run.cancel("enough")
        await hanging.stopped.wait()


@in_loop
async def test_closing_the_engine_stops_an_adapter() -> None:
    hanging = Hanging()
    async with Engine("memory:") as engine:
        await engine.start(Agent("a", model=hanging), "go")
        await hanging.began.wait()
    assert hanging.stopped.is_set()


def test_what_cannot_be_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match="a model is a name, a Model or an object with an async"):
        Agent("a", model=17)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="adapter is an object with an async method complete"):
        Model("x", adapter=object())  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="has an adapter and base_url"):
        Model("x", adapter=Scripted(), base_url="http://127.0.0.1:1/v1")
