"""The engine: turns, tools, sessions, what ends a turn early, and what a closed engine leaves."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Context,
    Engine,
    EngineError,
    JournalError,
    LimitError,
    Limits,
    MainspringError,
    ModelError,
    Outcome,
    Run,
    SessionCancelled,
    SessionError,
    tool,
)
from mainspring.events import ToolCallLate, ToolCallStarted
from mainspring.testing import ScriptedModel, call, calls, fail, hang, say, wait_for


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'journal.db'}"


async def refused(
    work: Awaitable[object], *, kind: type[MainspringError], code: str
) -> MainspringError:
    with pytest.raises(kind) as caught:
        await work
    assert caught.value.code == code
    assert type(caught.value) is kind
    return caught.value


def tool_texts(model: ScriptedModel, *, request: int = -1) -> list[str]:
    messages = model.requests[request].messages
    return [message["content"] for message in messages if message["role"] == "tool"]


def run_with(model: ScriptedModel, *tools: Any, limits: Limits | None = None) -> str:
    return Agent("a", model=model.model(), tools=tools, limits=limits).run_sync("go")


@tool(effect="read")
async def double(x: int) -> int:
    """Double a number."""
    return 2 * x


@tool
def failing(x: int) -> int:
    """Fail."""
    raise ValueError(f"no {x}")


# One line from input to answer.


def test_an_agent_runs_without_an_event_loop_and_inside_one() -> None:
    with ScriptedModel([calls(call("double", x=4)), say("it is 8")]) as model:
        agent = Agent("a", instructions="Count.", model=model.model(), tools=[double])
        assert agent.run_sync("twice 4?") == "it is 8"
        assert tool_texts(model) == ["8"]
        assert asyncio.run(agent.run("twice 4?")) == "it is 8"


def test_run_sync_says_what_to_write_inside_a_loop() -> None:
    agent = Agent("a", model="openai:gpt-5.4-mini")

    async def inside() -> str:
        return agent.run_sync("x")

    with pytest.raises(RuntimeError) as caught:
        asyncio.run(inside())
    assert str(caught.value) == (
        "run_sync was called while an event loop is running in this thread\n"
        "hint: write `await agent.run(...)` instead"
    )


def test_a_session_is_reported_and_listed() -> None:
    async def main() -> None:
        with ScriptedModel(
            [say("hello", usage={"input_tokens": 7, "output_tokens": 2, "cached_tokens": 3})]
        ) as model:
            agent = Agent("greeter", model=model.model())
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "hi", session="s-1", origin="shop:greeter")
                assert (run.session, run.first_seq, repr(run)) == ("s-1", 0, "Run('s-1')")
                assert await run.result() == "hello"
                report = await engine.report("s-1")
                assert report == await run.report()
                assert (report.session, report.status, report.text) == ("s-1", "finished", "hello")
                assert (report.input_tokens, report.output_tokens) == (7, 2)
                assert (report.cached_tokens, report.steps, report.error) == (3, 1, None)
                (info,) = await engine.sessions()
                assert (info.session, info.status, info.agent) == ("s-1", "finished", "greeter")
                assert (info.origin, info.epoch, info.event_count) == ("shop:greeter", 1, 6)
                assert info.created_us <= info.updated_us
                other = await engine.start(agent, "hi")
                await other.result()
                listed = [info.session for info in await engine.sessions()]
                assert listed == [other.session, "s-1"]
                assert [i.session for i in await engine.sessions(limit=1)] == [other.session]
                later = await engine.sessions(before=other.session)
                assert [info.session for info in later] == ["s-1"]
                assert await engine.sessions(status="failed") == []
                kinds = [event.kind for event in await engine.log("s-1")]
                assert kinds == [
                    "session_started",
                    "input_received",
                    "route_decided",
                    "model_call_started",
                    "model_call_finished",
                    "session_finished",
                ]
                tail = await engine.log("s-1", from_seq=4)
                assert [event.kind for event in tail] == kinds[4:]

    asyncio.run(main())


def test_a_follow_up_turn_sees_the_history() -> None:
    async def main() -> None:
        with ScriptedModel([calls(call("double", x=1)), say("two"), say("four")]) as model:
            agent = Agent("a", instructions="Count.", model=model.model(), tools=[double])
            async with Engine("memory:") as engine:
                first = await engine.start(agent, "1?")
                assert await first.result() == "two"
                second = await engine.start(agent, "2?", session=first.session)
                assert await second.result() == "four"
                assert second.first_seq == len(await engine.log(first.session, from_seq=0)) - 6
            assert [(m["role"], m["content"]) for m in model.requests[-1].messages] == [
                ("system", "Count."),
                ("user", "1?"),
                ("assistant", None),
                ("tool", "2"),
                ("assistant", "two"),
                ("user", "2?"),
            ]

    asyncio.run(main())


def test_an_input_may_hold_parts() -> None:
    async def main() -> None:
        with ScriptedModel([say("a cat")]) as model:
            agent = Agent("a", model=model.model())
            parts = [
                {"type": "text", "text": "what is it?"},
                {"type": "image", "url": "data:image/png;base64,AAAA"},
            ]
            async with Engine("memory:") as engine:
                run = await engine.start(agent, parts)
                assert await run.result() == "a cat"
            assert model.requests[0].messages == [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                }
            ]

    asyncio.run(main())


# Tools.


def test_async_tools_of_one_step_run_at_the_same_time() -> None:
    met: dict[str, asyncio.Event] = {}

    @tool
    async def meet(me: str, other: str) -> str:
        """Wait for the other."""
        met.setdefault(me, asyncio.Event()).set()
        await met.setdefault(other, asyncio.Event()).wait()
        return f"{me} met {other}"

    both = calls(call("meet", me="a", other="b"), call("meet", me="b", other="a"))
    with ScriptedModel([both, say("done")]) as model:
        assert run_with(model, meet) == "done"
        assert tool_texts(model) == ["a met b", "b met a"]


def test_sync_tools_of_one_step_run_in_threads_at_the_same_time() -> None:
    barrier = threading.Barrier(3)

    @tool
    def meet() -> bool:
        """Wait for the others."""
        barrier.wait()
        return threading.current_thread() is threading.main_thread()

    with ScriptedModel([calls(*[call("meet")] * 3), say("done")]) as model:
        assert run_with(model, meet) == "done"
        assert tool_texts(model) == ["false"] * 3


def test_a_tool_learns_about_its_call() -> None:
    seen: list[Context] = []

    @tool(timeout_s=9)
    def look(x: int, ctx: Context) -> str:
        """Look."""
        seen.append(ctx)
        return "ok"

    async def main() -> None:
        with ScriptedModel([calls(call("look", x=1), call("look", x=2)), say("done")]) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                await run.result()
                first, second = sorted(seen, key=lambda ctx: ctx.call_id)
                assert (first.session, first.tool, first.attempt) == (run.session, "look", 1)
                assert (first.call_id, second.call_id) == ("call_0_0", "call_0_1")
                assert first.deadline_s == 9.0
                log = await engine.log(run.session)
                assert [e.effect_id for e in log if isinstance(e, ToolCallStarted)] == [
                    first.effect_id,
                    second.effect_id,
                ]
                assert first.effect_id != second.effect_id

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [True, False])
def test_a_retried_tool_keeps_its_effect_id(is_async: bool) -> None:
    seen: list[Context] = []

    def flaky(ctx: Context) -> str:
        """Fail twice."""
        seen.append(ctx)
        if ctx.attempt < 3:
            raise ConnectionError("later")
        return "at last"

    async def flaky_async(ctx: Context) -> str:
        return flaky(ctx)

    made = tool(name="flaky", effect="read", retry=2)(flaky_async if is_async else flaky)
    with ScriptedModel([calls(call("flaky")), say("done")]) as model:
        assert run_with(model, made) == "done"
        assert tool_texts(model) == ["at last"]
    assert [ctx.attempt for ctx in seen] == [1, 2, 3]
    assert len({ctx.effect_id for ctx in seen}) == 1


def test_a_tool_without_retry_runs_once() -> None:
    with ScriptedModel([calls(call("failing", x=3)), say("sorry")]) as model:
        assert run_with(model, failing) == "sorry"
        assert tool_texts(model) == ['Error: tool "failing" raised ValueError: no 3']


def test_what_goes_wrong_with_a_tool_is_a_result_for_the_model() -> None:
    step = calls(
        call("double", x=1),
        call("failing", x=1),
        call("double", x="one"),
        call("missing"),
        call("double", x=2),
        call("failing", x=2),
        call("double", x=3),
    )
    with ScriptedModel([step, say("done")]) as model:
        assert run_with(model, double, failing) == "done"
        assert tool_texts(model) == [
            "2",
            'Error: tool "failing" raised ValueError: no 1',
            'Error: the arguments of tool "double" do not fit: at /x: "one" is not of type '
            '"integer"',
            'Error: there is no tool "missing", the tools are: double, failing',
            "4",
            'Error: tool "failing" raised ValueError: no 2',
            "6",
        ]


def test_a_slow_async_tool_is_stopped_and_the_model_is_told() -> None:
    stopped: list[bool] = []

    @tool(timeout_s=0.01)
    async def slow() -> str:
        """Never end."""
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)
        return "never"

    with ScriptedModel([calls(call("slow"), call("double", x=1)), say("done")]) as model:
        assert run_with(model, slow, double) == "done"
        late, good = tool_texts(model)
        ran, hint = late.split("\n")
        assert ran.startswith('Error: tool "slow" ran ')
        assert ran.endswith(" s, limit 0.01 s")
        assert hint == "hint: raise the tool's timeout_s, or let it return partial results"
        assert good == "2"
    assert stopped == [True]


def test_the_result_of_a_given_up_thread_is_recorded_as_late() -> None:
    go = threading.Event()
    runs: list[Run[str]] = []
    late: list[ToolCallLate] = []

    @tool(timeout_s=0.01)
    def slow() -> str:
        """End late."""
        go.wait()
        return "too late"

    @tool(effect="read")
    async def release() -> str:
        """Let the other end, and wait until that is known."""
        go.set()
        async for event in runs[0].events():
            if isinstance(event, ToolCallLate):
                late.append(event)
                break
        return "released"

    async def main() -> None:
        with ScriptedModel([calls(call("slow")), calls(call("release")), say("done")]) as model:
            agent = Agent("a", model=model.model(), tools=[slow, release])
            async with Engine("memory:") as engine:
                runs.append(await engine.start(agent, "go"))
                assert await runs[0].result() == "done"
            given_up, released = tool_texts(model)
            assert given_up.startswith('Error: tool "slow" ran ')
            assert released == "released"

    asyncio.run(main())
    assert [(event.call, event.attempt, event.text) for event in late] == [(0, 1, "too late")]


def test_a_tool_that_cancels_itself_is_a_failed_call() -> None:
    @tool
    async def quitter() -> str:
        """Give up."""
        raise asyncio.CancelledError

    with ScriptedModel([calls(call("quitter")), say("done")]) as model:
        assert run_with(model, quitter) == "done"
        assert tool_texts(model) == ["Error: the tool was cancelled from within"]


def test_a_result_that_is_no_json_is_a_failed_call() -> None:
    @tool
    async def odd() -> Any:
        """Give an object that JSON has no form for."""
        return threading.Lock()

    with ScriptedModel([calls(call("odd")), say("done")]) as model:
        assert run_with(model, odd) == "done"
        assert tool_texts(model) == [
            'Error: tool "odd" returned lock, which cannot be written as JSON: type lock is not '
            "supported\nhint: return text, or builtins, dataclasses, TypedDicts, msgspec.Structs "
            "or pydantic models"
        ]


# Ends that are no answer.


def test_a_limit_ends_the_turn_and_the_next_turn_goes_on() -> None:
    async def main() -> None:
        script = [calls(call("double", x=1)), calls(call("double", x=2)), say("late")]
        with ScriptedModel(script) as model:
            limits = Limits(steps_max=2)
            agent = Agent("a", model=model.model(), tools=[double], limits=limits)
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                error = await refused(run.result(), kind=LimitError, code="limit_steps")
                assert str(error) == (
                    "the turn used 2 steps, limit 2\nhint: raise Limits.steps_max"
                )
                assert error.details == {"session": run.session}
                assert (await run.report()).status == "failed"
                again = await engine.start(agent, "go on", session=run.session)
                assert await again.result() == "late"

    asyncio.run(main())


def test_a_model_that_refuses_ends_the_turn_with_its_error() -> None:
    with ScriptedModel([fail(401, "bad key")]) as model:
        with pytest.raises(ModelError) as caught:
            run_with(model)
        assert caught.value.code == "model_auth"
        # What the server says beside the status is left out: it may repeat the key.
        assert "answered with status 401 (invalid_api_key)\nhint: " in str(caught.value)
        assert "bad key" not in str(caught.value)


def test_a_cancelled_model_call_ends_the_turn() -> None:
    async def main() -> None:
        with ScriptedModel([hang()]) as model:
            agent = Agent("a", model=model.model())
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                await asyncio.to_thread(model.wait_for_requests, 1)
                await run.cancel("changed my mind")
                error = await refused(run.result(), kind=SessionCancelled, code="cancelled")
                assert str(error) == f"session {run.session} was cancelled: changed my mind"
                report = await run.report()
                assert (report.status, report.text) == ("cancelled", "changed my mind")
                await refused(run.cancel(), kind=SessionError, code="session_not_open")

    asyncio.run(main())


def test_cancelling_stops_tools_and_gives_every_call_an_outcome() -> None:
    async def main() -> None:
        running, stopped = asyncio.Event(), asyncio.Event()

        @tool
        async def endless() -> str:
            """Never end."""
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
            return "never"

        script = [calls(call("endless"), call("double", x=1)), say("after")]
        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), tools=[endless, double])
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                await running.wait()
                await run.cancel()
                await stopped.wait()
                await refused(run.result(), kind=SessionCancelled, code="cancelled")
                again = await engine.start(agent, "and now?", session=run.session)
                assert await again.result() == "after"
            assert tool_texts(model)[0] == (
                'Error: tool "endless" was stopped: the session was cancelled'
            )

    asyncio.run(main())


def test_giving_up_the_wait_for_a_result_leaves_the_session_running() -> None:
    async def main() -> None:
        answer = threading.Event()
        with ScriptedModel([wait_for(answer, then=say("still here"))]) as model:
            agent = Agent("a", model=model.model())
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                await asyncio.to_thread(model.wait_for_requests, 1)
                waiting = asyncio.ensure_future(run.result())
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert (await engine.sessions())[0].status == "open"
                answer.set()
                assert await run.result() == "still here"
            assert model.request_count == 1

    asyncio.run(main())


# Sessions that cannot be had.


def test_a_busy_or_unknown_session_is_refused() -> None:
    async def main() -> None:
        with ScriptedModel([hang()]) as model:
            agent = Agent("a", model=model.model())
            async with Engine("memory:", sessions_max=1, shard_count=1) as engine:
                await engine.start(agent, "go", session="s")
                again = engine.start(agent, "go", session="s")
                await refused(again, kind=SessionError, code="session_busy")
                busy = engine.resume("s", agent)
                await refused(busy, kind=SessionError, code="session_busy")
                full = await refused(
                    engine.start(agent, "go"), kind=EngineError, code="engine_overloaded"
                )
                assert full.retryable
                for work in (engine.log("t"), engine.report("t")):
                    await refused(work, kind=SessionError, code="session_not_found")
                bad = engine.start(agent, "go", session="no spaces")
                await refused(bad, kind=SessionError, code="session_invalid_id")

    asyncio.run(main())


def test_an_input_or_agent_that_cannot_be_used_is_refused() -> None:
    async def main() -> None:
        agent = Agent("a", model="openai:gpt-5.4-mini", limits=Limits(input_bytes_max=3))
        async with Engine("memory:") as engine:
            await refused(engine.start(agent, "go"), kind=ModelError, code="model_auth")
            with ScriptedModel([say("x")]) as model:
                small = Agent("a", model=model.model(), limits=Limits(input_bytes_max=3))
                await refused(engine.start(small, "four"), kind=AgentError, code="agent_invalid")
                odd = engine.start(small, [{"type": "sound"}])
                await refused(odd, kind=AgentError, code="agent_invalid")
                assert await (await engine.start(small, "go")).result() == "x"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("store", "code"),
    [("mongo://x", "journal_url_invalid"), ("sqlite:////no/such/folder/j.db", "journal_io")],
)
def test_a_store_that_cannot_be_opened_is_refused(store: str, code: str) -> None:
    async def main() -> None:
        async with Engine(store):
            pass

    with pytest.raises(JournalError) as caught:
        asyncio.run(main())
    assert caught.value.code == code


def test_a_store_has_one_engine_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel([say("x")]) as model:
            agent = Agent("a", model=model.model())
            one, two = Engine(store_in(tmp_path)), Engine(f"sqlite:///{tmp_path / 'other.db'}")
            async with one, two:
                runs = [await engine.start(agent, "go") for engine in (one, two)]
                assert [await run.result() for run in runs] == ["x", "x"]
                assert [i.session for i in await one.sessions()] == [runs[0].session]
                assert [i.session for i in await two.sessions()] == [runs[1].session]
                with pytest.raises(JournalError) as caught:
                    await Engine(store_in(tmp_path)).__aenter__()
                assert caught.value.code == "journal_locked"

    asyncio.run(main())


# Closing and going on.


def test_a_closed_engine_says_so() -> None:
    async def main() -> None:
        with ScriptedModel([hang()]) as model:
            agent = Agent("a", model=model.model())
            engine = Engine("memory:")
            await refused(engine.start(agent, "go"), kind=EngineError, code="engine_closed")
            async with engine:
                with pytest.raises(RuntimeError, match="the engine is open already"):
                    await engine.__aenter__()
                run = await engine.start(agent, "go")
                waiting = asyncio.ensure_future(run.result())
                await asyncio.to_thread(model.wait_for_requests, 1)
            await refused(waiting, kind=EngineError, code="engine_closed")
            await refused(run.result(), kind=EngineError, code="engine_closed")
            await refused(run.cancel(), kind=EngineError, code="engine_closed")
            await refused(engine.sessions(), kind=EngineError, code="engine_closed")
            await engine.close()

    asyncio.run(main())


def test_a_reopened_engine_finishes_what_was_under_way(tmp_path: Path) -> None:
    ran: list[str] = []

    async def main() -> None:
        blocked = asyncio.Event()
        release = False

        @tool(effect="idempotent")
        async def step(name: str, ctx: Context) -> str:
            """Take a step."""
            ran.append(f"{name} {ctx.attempt} {ctx.effect_id}")
            if name == "b" and not release:
                blocked.set()
                await asyncio.Event().wait()
            return name

        script = [calls(call("step", name="a")), calls(call("step", name="b")), say("done")]
        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), tools=[step])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "go")
                await blocked.wait()
            assert model.request_count == 2
            release = True
            other = Agent("other", model=model.model())
            async with Engine(store_in(tmp_path), agents=[other, agent]) as engine:
                (resumed,) = engine.resumed
                assert resumed.session == run.session
                assert await resumed.result() == "done"
                log = await engine.log(run.session)
                assert [e.seq for e in log] == list(range(len(log)))
                assert [e.kind for e in log if "epoch" in e.kind] == ["epoch_taken"]
                ended = engine.resume(run.session, agent)
                await refused(ended, kind=SessionError, code="session_not_open")
                missing = engine.resume("nobody", agent)
                await refused(missing, kind=SessionError, code="session_not_found")
            assert model.request_count == 3
            async with Engine(store_in(tmp_path), agents=[agent]) as engine:
                assert engine.resumed == []

    asyncio.run(main())
    assert [line.split()[:2] for line in ran] == [["a", "1"], ["b", "1"], ["b", "2"]]
    assert ran[1].split()[2] == ran[2].split()[2] != ran[0].split()[2]


def test_an_unsafe_tool_is_not_run_again_after_a_restart(tmp_path: Path) -> None:
    ran: list[str] = []

    async def main() -> None:
        running = asyncio.Event()

        @tool
        async def pay() -> str:
            """Pay."""
            ran.append("pay")
            running.set()
            await asyncio.Event().wait()
            return "paid"

        with ScriptedModel([calls(call("pay")), say("please look")]) as model:
            agent = Agent("a", model=model.model(), tools=[pay])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "go")
                await running.wait()
            async with Engine(store_in(tmp_path)) as engine:
                resumed = await engine.resume(run.session, agent)
                (waiting,) = await resumed.pending()
                assert (waiting.tool, waiting.approval, waiting.attempt) == ("pay", None, 1)
                await resumed.resolve(waiting, Outcome.failed("the bank does not know"))
                assert await resumed.result() == "please look"
            (told,) = tool_texts(model)
            assert "the bank does not know" in told

    asyncio.run(main())
    assert ran == ["pay"]


def test_a_changed_agent_is_refused_if_asked_to(tmp_path: Path) -> None:
    async def main() -> None:
        answer = threading.Event()
        with ScriptedModel([wait_for(answer, then=say("done"))]) as model:
            agent = Agent("a", instructions="one", model=model.model())
            changed = Agent("a", instructions="two", model=model.model())
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "go")
            answer.set()
            async with Engine(store_in(tmp_path)) as engine:
                strict = engine.resume(run.session, changed, on_change="refuse")
                await refused(strict, kind=AgentError, code="agent_changed")
                resumed = await engine.resume(run.session, changed)
                assert await resumed.result() == "done"
            assert model.requests[-1].messages[0]["content"] == "two"

    asyncio.run(main())


FORKED = """
import asyncio, os, sys
from mainspring import Agent, Engine, EngineError
from mainspring.testing import ScriptedModel, say

async def main():
    with ScriptedModel([say("done")]) as model:
        agent = Agent("a", model=model.model())
        async with Engine("memory:") as engine:
            await (await engine.start(agent, "go")).result()
            child = os.fork()
            if child == 0:
                try:
                    await engine.start(agent, "go")
                except EngineError as error:
                    print(error, flush=True)
                await engine.close()
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(await (await engine.start(agent, "go")).result())

asyncio.run(main())
"""


def test_a_forked_child_is_refused_and_leaves_its_parent_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == (
        "the engine belongs to another process: this one was forked from it\n"
        "hint: open an engine after the fork, or start processes by spawning\n7\ndone\n"
    )


def test_a_thousand_sessions_run_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        everybody = threading.Event()
        script = [wait_for(everybody, then=calls(call("double", x=3))), say("six")]
        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), tools=[double])
            async with Engine(store_in(tmp_path)) as engine:
                runs = await asyncio.gather(*[engine.start(agent, "go") for _ in range(1000)])
                assert len({run.session for run in runs}) == 1000
                await asyncio.to_thread(model.wait_for_requests, 1000)
                everybody.set()
                assert set(await asyncio.gather(*[run.result() for run in runs])) == {"six"}
                assert len(await engine.sessions(limit=1000)) == 1000
            assert model.request_count == 2000

    asyncio.run(main())


def test_a_cancel_after_the_turn_is_refused_while_a_late_tool_still_runs() -> None:
    gate = threading.Event()

    @tool(effect="read", timeout_s=0.05)
    def stuck(x: int) -> int:
        """Wait for the test."""
        gate.wait()
        return x

    async def main() -> str:
        with ScriptedModel([calls(call("stuck", x=1)), say("done")]) as model:
            async with Engine("memory:") as engine:
                run = await engine.start(Agent("a", model=model.model(), tools=[stuck]), "go")
                assert await run.result() == "done"
                try:
                    await run.cancel()
                except SessionError as error:
                    return error.code
                finally:
                    gate.set()
        return "accepted"

    assert asyncio.run(main()) == "session_not_open"
