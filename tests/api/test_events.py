"""The stream of a session's events: order, coming back, several watchers, late and slow ones."""

import asyncio
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from mainspring import Agent, Engine, Event, Limits, Run, tool
from mainspring.events import (
    InputReceived,
    ModelDelta,
    SessionFailed,
    ToolCallFinished,
    UnknownEvent,
    decode_event,
)
from mainspring.testing import ScriptedModel, call, calls, hang, say, wait_for


@tool(effect="read")
async def double(x: int) -> int:
    """Double a number."""
    return 2 * x


TWO_STEPS = [calls(call("double", x=1), call("double", x=2)), say("done")]
KINDS = [
    "session_started",
    "input_received",
    "route_decided",
    "model_call_started",
    "model_call_finished",
    "tool_call_started",
    "tool_call_started",
    "tool_call_finished",
    "tool_call_finished",
    "model_call_started",
    "model_call_finished",
    "session_finished",
]


async def seen(run: Run[str], *, after: int | None = None) -> list[Event]:
    return [event async for event in run.events(after=after)]


def test_events_come_in_order_and_are_what_the_log_holds() -> None:
    async def main() -> None:
        with ScriptedModel(TWO_STEPS) as model:
            agent = Agent("a", model=model.model(), tools=[double])
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                events = await seen(run)
                assert [event.kind for event in events] == KINDS
                assert [event.seq for event in events] == list(range(len(KINDS)))
                assert events == await engine.log(run.session)
                assert all(one.at <= two.at for one, two in pairwise(events))
                first = events[1]
                assert isinstance(first, InputReceived)
                assert first.text == "go"

    asyncio.run(main())


def test_a_watcher_breaks_off_and_comes_back() -> None:
    async def main() -> None:
        with ScriptedModel(TWO_STEPS) as model:
            agent = Agent("a", model=model.model(), tools=[double])
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                found: list[Event] = []
                while not found or found[-1].kind != "session_finished":
                    async for event in run.events(after=found[-1].seq if found else None):
                        found.append(event)
                        break
                assert found == await engine.log(run.session)
                assert await seen(run, after=found[-1].seq) == []
                assert await seen(run, after=found[-2].seq) == found[-1:]

    asyncio.run(main())


def test_watchers_do_not_disturb_each_other() -> None:
    async def main() -> None:
        go = threading.Event()
        with ScriptedModel([wait_for(go, then=TWO_STEPS[0]), say("done")]) as model:
            agent = Agent("a", model=model.model(), tools=[double])
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                early = [asyncio.ensure_future(seen(run)) for _ in range(3)]
                await asyncio.to_thread(model.wait_for_requests, 1)
                early.append(asyncio.ensure_future(seen(run, after=2)))
                go.set()
                one, two, three, tail = await asyncio.gather(*early)
                assert one == two == three == await engine.log(run.session)
                assert tail == one[3:]
                # And one that comes when all is over.
                assert await seen(run) == one

    asyncio.run(main())


def test_a_watcher_that_is_cancelled_leaves_the_rest_alone() -> None:
    async def main() -> None:
        go = threading.Event()
        with ScriptedModel([wait_for(go, then=say("done"))]) as model:
            agent = Agent("a", model=model.model())
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                gone, stays = (asyncio.ensure_future(seen(run)) for _ in range(2))
                await asyncio.to_thread(model.wait_for_requests, 1)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                go.set()
                assert (await stays)[-1].kind == "session_finished"

    asyncio.run(main())


def test_watchers_may_come_at_any_moment(tmp_path: Path) -> None:
    # With a real disk an append takes a while, and a watcher that comes meanwhile misses nothing.
    async def main() -> None:
        script = [*(calls(call("double", x=x)) for x in range(8)), say("done")]
        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), tools=[double])
            async with Engine(f"sqlite:///{tmp_path / 'journal.db'}") as engine:

                async def follow(turns: int) -> tuple[list[Event], list[Event]]:
                    run = await engine.start(agent, "go")
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    return await seen(run), await engine.log(run.session)

                for events, log in await asyncio.gather(*[follow(7 * n) for n in range(200)]):
                    assert events == log

    asyncio.run(main())


def test_a_stored_session_is_watched_from_another_engine(tmp_path: Path) -> None:
    async def main() -> None:
        store = f"sqlite:///{tmp_path / 'journal.db'}"
        blocked, go = asyncio.Event(), asyncio.Event()

        @tool(effect="read")
        async def wait() -> str:
            """Wait."""
            blocked.set()
            await go.wait()
            return "waited"

        with ScriptedModel([calls(call("wait")), say("done")]) as model:
            agent = Agent("a", model=model.model(), tools=[wait])
            async with Engine(store) as engine:
                run = await engine.start(agent, "go")
                await blocked.wait()
                before = await engine.log(run.session)
            go.set()
            async with Engine(store, agents=[agent]) as engine:
                (resumed,) = engine.resumed
                assert resumed.first_seq == len(before)
                rest = await seen(resumed)
                assert [event.kind for event in rest] == [
                    "epoch_taken",
                    "tool_call_started",
                    "tool_call_finished",
                    "model_call_started",
                    "model_call_finished",
                    "session_finished",
                ]
                assert await seen(resumed, after=-1) == before + rest
                assert await engine.log(run.session) == before + rest

    asyncio.run(main())


def test_a_turns_events_end_with_the_turn() -> None:
    async def main() -> None:
        with ScriptedModel([say("one"), say("two")]) as model:
            agent = Agent("a", model=model.model())
            async with Engine("memory:") as engine:
                first = await engine.start(agent, "go")
                await first.result()
                second = await engine.start(agent, "go on", session=first.session)
                await second.result()
                log = await engine.log(first.session)
                assert await seen(first) == log[: second.first_seq]
                assert await seen(second) == log[second.first_seq :]

    asyncio.run(main())


def test_a_slow_watcher_gets_everything() -> None:
    async def main() -> None:
        count = 1200
        many = calls(*[call("double", x=x) for x in range(count)])
        with ScriptedModel([many, say("done")]) as model:
            limits = Limits(tool_calls_per_step_max=count)
            agent = Agent("a", model=model.model(), tools=[double], limits=limits)
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                stream = run.events()
                events = [await anext(stream)]
                # It sees the first event, and the next ones only when all is over.
                await run.result()
                events += [event async for event in stream]
                assert [event.seq for event in events] == list(range(2 * count + 8))
                assert events == await engine.log(run.session)
                texts = [event.text for event in events if isinstance(event, ToolCallFinished)]
                assert sorted(texts, key=int) == [str(2 * x) for x in range(count)]

    asyncio.run(main())


def test_a_quick_watcher_gets_a_large_step_whole() -> None:
    async def main() -> None:
        count = 600
        many = calls(*[call("double", x=x) for x in range(count)])
        with ScriptedModel([many, say("done")]) as model:
            limits = Limits(tool_calls_per_step_max=count)
            agent = Agent("a", model=model.model(), tools=[double], limits=limits)
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                events = await seen(run)
                assert [event.seq for event in events] == list(range(2 * count + 8))

    asyncio.run(main())


def test_a_streamed_answer_is_seen_while_it_is_written() -> None:
    async def main() -> None:
        text = "This is what the model says, piece by piece."
        with ScriptedModel([hang(after_chars=20, of=say(text))]) as model:
            agent = Agent("a", model=model.model(stream=True))
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                written, kinds = "", []
                async for event in run.events():
                    kinds.append(event.kind)
                    if isinstance(event, ModelDelta):
                        assert (event.seq, event.step, event.attempt) == (-1, 0, 1)
                        written += event.text
                        if written == text[:20]:
                            await run.cancel("seen enough")
                assert written == text[:20]
                assert kinds[-2:] == ["cancel_requested", "session_cancelled"]
                stored = [event.kind for event in await engine.log(run.session)]
                assert stored == [kind for kind in kinds if kind != "model_delta"]

    asyncio.run(main())


def test_a_failed_turn_ends_its_stream() -> None:
    async def main() -> None:
        with ScriptedModel([calls(call("double", x=1)), say("late")]) as model:
            limits = Limits(steps_max=1)
            agent = Agent("a", model=model.model(), tools=[double], limits=limits)
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                events = await seen(run)
                last = events[-1]
                assert isinstance(last, SessionFailed)
                assert last.error.code == "limit_steps"
                raised = last.error.exception(session=run.session)
                with pytest.raises(type(raised)) as caught:
                    await run.result()
                assert str(caught.value) == str(raised)

    asyncio.run(main())


def test_an_event_of_a_newer_version_keeps_its_text() -> None:
    text = '{"kind":"mind_changed","why":"new"}'
    event = decode_event(4, 1_000_000, text)
    assert event == UnknownEvent(
        seq=4, at_us=1_000_000, stored_kind="mind_changed", data={"why": "new"}
    )
    assert event.at.isoformat() == "1970-01-01T00:00:01+00:00"
