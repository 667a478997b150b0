"""Whatever a tool does, its session goes on: the outcome is a result that the model reads.

Each test runs a real engine against the scripted model, which refuses a broken conversation.
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mainspring import Agent, Context, Engine, Limits, SessionCancelled, Tool, tool
from mainspring.events import (
    Event,
    SessionFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallLate,
    ToolCallStarted,
)
from mainspring.testing import Call, Request, ScriptedModel, call, calls, say
from tests.e2e._support import in_loop

# A deadline that is meant to pass.
SHORT_S = 0.05


async def run_calls(
    tools: Sequence[Tool[..., Any]],
    *asked: Call,
    limits: Limits | None = None,
    before_end: Callable[[], None] = lambda: None,
) -> tuple[list[Event], list[str]]:
    """Runs one step with these calls; gives the whole log, and the results as the model read them.

    Args:
        tools: The agent's tools.
        asked: What the model calls, in one step.
        limits: The agent's.
        before_end: Called when the turn has ended and before the log is read.
    """
    with ScriptedModel([calls(*asked), say("done")]) as model:
        agent = Agent("tools", model=model.model(), tools=tools, limits=limits)
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            assert await run.result() == "done"
            before_end()
            if any(each.timeout_s == SHORT_S and not each.is_async for each in tools):
                await _until_late(engine, run.session)
            log = await engine.log(run.session)
        return log, results(model.requests[-1])


def results(request: Request) -> list[str]:
    """The tool results in a request, in their order."""
    return [message["content"] for message in request.messages if message["role"] == "tool"]


async def _until_late(engine: Engine, session: str) -> None:
    # The event comes after the end of the turn, where nothing waits for events any more.
    while not of_kind(await engine.log(session), ToolCallLate):  # noqa: ASYNC110
        await asyncio.sleep(0)


def of_kind(log: Sequence[Event], kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in log if isinstance(event, kind)]


@tool(effect="read")
async def echo(text: str) -> str:
    """Say it back."""
    return text


@tool
async def raises(text: str) -> str:
    """Raise."""
    raise ValueError(text)


@in_loop
async def test_two_of_five_tools_raise_and_three_results_are_good() -> None:
    log, read = await run_calls(
        [echo, raises],
        call("echo", text="a"),
        call("raises", text="first"),
        call("echo", text="b"),
        call("raises", text="second"),
        call("echo", text="c"),
    )
    assert read == [
        "a",
        'Error: tool "raises" raised ValueError: first',
        "b",
        'Error: tool "raises" raised ValueError: second',
        "c",
    ]
    assert len(of_kind(log, ToolCallFinished)) == 3
    assert [each.error.code for each in of_kind(log, ToolCallFailed)] == ["tool_failed"] * 2
    assert isinstance(log[-1], SessionFinished)


@in_loop
async def test_an_async_tool_past_its_deadline_is_stopped_and_the_model_is_told() -> None:
    stopped = asyncio.Event()

    @tool(timeout_s=SHORT_S)
    async def slow() -> str:
        """Never end."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            raise
        return "never"

    log, read = await run_calls([slow, echo], call("slow"), call("echo", text="a"))
    await stopped.wait()
    (failed,) = of_kind(log, ToolCallFailed)
    assert failed.error.code == "tool_timeout"
    assert failed.error.message.startswith('tool "slow" ran 0.')
    assert failed.error.message.endswith(" s, limit 0.05 s")
    assert failed.error.hint == "raise the tool's timeout_s, or let it return partial results"
    assert read == [f"Error: {failed.error.message}\nhint: {failed.error.hint}", "a"]
    assert of_kind(log, ToolCallLate) == []


@in_loop
async def test_a_sync_tool_past_its_deadline_is_recorded_as_late_when_it_returns() -> None:
    go_on = threading.Event()

    @tool(timeout_s=SHORT_S)
    def slow() -> str:
        """Wait for the test."""
        go_on.wait()
        return "too late"

    log, read = await run_calls([slow], call("slow"), before_end=go_on.set)
    assert read[0].startswith('Error: tool "slow" ran 0.')
    (late,) = of_kind(log, ToolCallLate)
    assert (late.call, late.attempt, late.text, late.error) == (0, 1, "too late", None)


@in_loop
async def test_a_tool_that_blocks_the_event_loop_past_its_deadline_is_timed_out_all_the_same() -> (
    None
):
    @tool(timeout_s=SHORT_S)
    async def blocks(ctx: Context) -> str:
        """Block the loop for longer than the deadline."""
        until = time.monotonic() + 3 * ctx.deadline_s
        while time.monotonic() < until:
            pass
        return "too late"

    log, read = await run_calls([blocks], call("blocks"))
    assert read[0].startswith('Error: tool "blocks" ran 0.')
    assert [each.error.code for each in of_kind(log, ToolCallFailed)] == ["tool_timeout"]
    assert of_kind(log, ToolCallFinished) == []


@in_loop
async def test_cancelling_stops_async_tools_and_records_late_results_of_sync_ones() -> None:
    began = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    go_on = threading.Event()
    stopped: list[str] = []

    @tool
    async def waits() -> str:
        """Wait until stopped."""
        began.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append("waits")
            raise
        return "never"

    @tool
    def works() -> str:
        """Wait for the test."""
        loop.call_soon_threadsafe(began.release)
        go_on.wait()
        return "worked"

    with ScriptedModel([calls(call("waits"), call("works")), say("done")]) as model:
        agent = Agent("tools", model=model.model(), tools=[waits, works])
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            await began.acquire()
            await began.acquire()
            await run.cancel("enough")
            report = await run.report()
            go_on.set()
            await _until_late(engine, run.session)
            log = await engine.log(run.session)
            with pytest.raises(SessionCancelled) as caught:
                await run.result()
            asked = len(model.requests)
    assert stopped == ["waits"]
    assert (report.status, report.text) == ("cancelled", "enough")
    assert str(caught.value) == f"session {run.session} was cancelled: enough"
    assert asked == 1
    assert [each.kind for each in log][-5:] == [
        "cancel_requested",
        "tool_call_failed",
        "tool_call_failed",
        "session_cancelled",
        "tool_call_late",
    ]
    messages = [each.error.message for each in of_kind(log, ToolCallFailed)]
    assert messages == [
        'tool "waits" was stopped: the session was cancelled',
        'tool "works" was stopped: the session was cancelled',
    ]
    (late,) = of_kind(log, ToolCallLate)
    assert (late.call, late.text) == (1, "worked")


@in_loop
async def test_unknown_tools_and_bad_arguments_never_run_and_the_model_is_told_why() -> None:
    @tool
    def count(number: int) -> str:
        """Count."""
        raise AssertionError("it was not to be called")

    log, read = await run_calls(
        [count, echo],
        call("nothing"),
        call("count", number="many"),
        call("count"),
        call("count", number=1, more=2),
        Call("count", "{not json"),
        Call("count", "[1]"),
        call("echo", text="a"),
    )
    assert read == [
        'Error: there is no tool "nothing", the tools are: count, echo',
        'Error: the arguments of tool "count" do not fit: '
        'at /number: "many" is not of type "integer"',
        'Error: the arguments of tool "count" do not fit: "number" is a required property',
        'Error: the arguments of tool "count" do not fit: Additional properties are not allowed '
        "('more' was unexpected)",
        'Error: the arguments of tool "count" do not fit: not valid JSON '
        "(key must be a string at line 1 column 2): {not json",
        'Error: the arguments of tool "count" do not fit: [1] is not of type "object"',
        "a",
    ]
    assert [each.name for each in of_kind(log, ToolCallStarted)] == ["echo"]


@in_loop
async def test_the_middle_of_a_huge_result_is_cut_out_and_named() -> None:
    @tool(effect="read")
    async def huge() -> str:
        """Return much."""
        return "a" * 1_000_000 + "z" * 1_000_000

    log, read = await run_calls([huge], call("huge"), limits=Limits(tool_result_bytes_max=1000))
    assert read == ["a" * 500 + "\n[... 1999000 bytes cut ...]\n" + "z" * 500]
    assert [each.text for each in of_kind(log, ToolCallFinished)] == read


@in_loop
async def test_a_result_that_cannot_be_written_as_json_is_an_error_for_the_model() -> None:
    class Strange:
        """Nothing that JSON knows."""

    @tool
    def strange() -> Any:
        """Return something odd."""
        return Strange()

    @tool
    async def strange_too() -> Any:
        """Return something odd."""
        return {"odd": Strange()}

    log, read = await run_calls([strange, strange_too, echo], call("strange"), call("strange_too"))
    codes = [each.error.code for each in of_kind(log, ToolCallFailed)]
    assert codes == ["tool_result_invalid"] * 2
    assert all("Strange" in text for text in read), read


@in_loop
async def test_a_tool_that_wants_to_end_the_process_ends_only_its_call() -> None:
    @tool
    def leaves_thread() -> str:
        """Leave."""
        raise SystemExit(3)

    @tool
    def interrupts_thread() -> str:
        """Interrupt."""
        raise KeyboardInterrupt

    @tool
    async def leaves_task() -> str:
        """Leave."""
        raise SystemExit(3)

    log, read = await run_calls(
        [leaves_thread, interrupts_thread, leaves_task, echo],
        call("leaves_thread"),
        call("interrupts_thread"),
        call("leaves_task"),
        call("echo", text="a"),
    )
    assert read == [
        'Error: tool "leaves_thread" raised SystemExit: 3',
        'Error: tool "interrupts_thread" raised KeyboardInterrupt',
        'Error: tool "leaves_task" raised SystemExit: 3',
        "a",
    ]
    assert isinstance(log[-1], SessionFinished)


@in_loop
async def test_a_tool_that_cancels_itself_or_times_out_inside_gives_a_result() -> None:
    @tool
    async def gives_up() -> str:
        """Cancel itself."""
        raise asyncio.CancelledError

    @tool
    async def times_out() -> str:
        """Use a timeout of its own, and go on."""
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "went on"
        return "never"

    @tool
    async def times_out_loudly() -> str:
        """Use a timeout of its own, and let it out."""
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return "never"

    log, read = await run_calls(
        [gives_up, times_out, times_out_loudly],
        call("gives_up"),
        call("times_out"),
        call("times_out_loudly"),
    )
    assert read == [
        "Error: the tool was cancelled from within",
        "went on",
        'Error: tool "times_out_loudly" raised TimeoutError',
    ]
    codes = {each.error.code for each in of_kind(log, ToolCallFailed)}
    assert codes == {"cancelled", "tool_failed"}


@in_loop
async def test_what_a_call_sets_in_its_context_no_other_call_or_session_sees() -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")

    @tool(effect="read")
    async def in_task(name: str) -> str:
        """Set the mark."""
        seen = mark.get()
        mark.set(name)
        await asyncio.sleep(0)
        return f"{seen} then {mark.get()}"

    @tool(effect="read")
    def in_thread(name: str) -> str:
        """Set the mark."""
        seen = mark.get()
        mark.set(name)
        return f"{seen} then {mark.get()}"

    names = [f"n{number}" for number in range(8)]
    asked = [call(kind, name=name) for name in names for kind in ("in_task", "in_thread")]
    with ScriptedModel([calls(*asked), say("done")]) as model:
        agent = Agent("tools", model=model.model(), tools=[in_task, in_thread])
        # Few threads, so that each serves many calls.
        async with Engine("memory:", threads_max=2) as engine:
            runs = [await engine.start(agent, f"go {number}") for number in range(3)]
            await asyncio.gather(*(run.result() for run in runs))
        last = [request for request in model.requests if request.assistant_count == 1]
    assert len(last) == 3
    for request in last:
        assert results(request) == [f"clean then {name}" for name in names for _ in range(2)]
    assert mark.get() == "clean"


@in_loop
async def test_three_hundred_tools_run_at_once() -> None:
    count = 300
    together = asyncio.Barrier(count)

    @tool(effect="read")
    async def meet(number: int) -> int:
        """Return when all have come."""
        await together.wait()
        return number

    @tool(effect="read")
    def compute(number: int) -> int:
        """Count in a thread."""
        return -number

    asked = [call("meet", number=number) for number in range(count)]
    asked += [call("compute", number=number) for number in range(count)]
    log, read = await run_calls(
        [meet, compute], *asked, limits=Limits(tool_calls_per_step_max=2 * count)
    )
    assert read == [str(n) for n in range(count)] + [str(-n) for n in range(count)]
    assert len(of_kind(log, ToolCallFinished)) == 2 * count


@in_loop
async def test_calls_past_the_limit_of_a_step_do_not_run() -> None:
    log, read = await run_calls(
        [echo],
        *(call("echo", text=str(number)) for number in range(3)),
        limits=Limits(tool_calls_per_step_max=2),
    )
    assert read == ["0", "1", "Error: 3 tool calls in one answer, limit 2"]
    assert [each.error.code for each in of_kind(log, ToolCallFailed)] == ["tool_calls_too_many"]


@in_loop
async def test_a_tool_that_fails_is_tried_again_as_often_as_it_says_with_the_same_effect_id() -> (
    None
):
    seen: list[tuple[int, str]] = []

    @tool(effect="keyed", retry=2)
    async def flaky(ctx: Context) -> str:
        """Work at the third attempt."""
        seen.append((ctx.attempt, ctx.effect_id))
        if ctx.attempt < 3:
            raise OSError("not yet")
        return "at last"

    log, read = await run_calls([flaky], call("flaky"))
    assert read == ["at last"]
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({effect_id for _, effect_id in seen}) == 1
    assert all(each.retry_at_us is not None for each in of_kind(log, ToolCallFailed))
