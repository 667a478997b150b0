"""Forks, replays, states of the past, pruning, pinned agents and draining."""

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mainspring import Agent, AgentError, Engine, EngineError, MainspringError, SessionError, tool
from mainspring._native import JournalReader
from mainspring.events import (
    InputReceived,
    ModelCallFinished,
    SessionForked,
    ToolCallFinished,
)
from mainspring.testing import Request, ScriptedModel, Step, call, calls, say, wait_for

ran: list[str] = []


@tool(effect="read")
def look(at: str) -> str:
    """Look at something."""
    ran.append(at)
    return f"seen {at}"


def step(request: Request) -> Step:
    """Looks at what the user says, then answers with what was seen and who asks."""
    if request.assistant_count == 0:
        user = next(m for m in request.messages if m["role"] == "user")["content"]
        said = user if isinstance(user, str) else user[0]["text"]
        return calls(call("look", at=said), call("look", at="door"))
    told = [m["content"] for m in request.messages if m["role"] == "tool"]
    return say(f"{request.body['model']}: {', '.join(told)}")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder}/s.db"


def test_a_fork_shares_the_first_events_and_goes_on_from_there(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(models={"small": step, "large": step}) as model:
            agent = Agent("a", model=model.model("small"), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "shelf")
                first = await run.result()
                log = await engine.log(run.session)
                seen = next(e for e in log if isinstance(e, ToolCallFinished))
                other = await run.fork(at=seen.seq, edit="seen a mouse")
                assert await other.result() == first.replace("seen shelf", "seen a mouse")
                large = await run.fork(at=1, model=model.model("large"))
                assert (await large.result()).startswith("large: seen shelf")
                edited = await run.fork(at=1, edit="window", new_session="edited")
                assert "seen window" in await edited.result()
                asked = next(e for e in log if isinstance(e, ModelCallFinished))
                retold = await run.fork(at=asked.seq, edit="let me look")
                assert await retold.result() == first
                for each in (other, large, edited, retold):
                    forked = await engine.log(each.session)
                    shared = next(e.seq for e in forked if isinstance(e, SessionForked))
                    assert forked[:shared] == log[:shared]
                    assert (await engine.replay(each.session)).identical
                info = {i.session: i for i in await engine.sessions()}["edited"]
                assert (info.parent, info.shared_count) == (run.session, 2)
                assert await engine.log(run.session) == log
                again = await edited.fork(input="and now?", new_session="again")
                assert "seen window" in await again.result()

    asyncio.run(main())
    assert ran.count("shelf") == 3  # the run, the fork for another model, the one retold
    assert ran.count("window") == 1


def test_what_cannot_be_forked_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(step) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "shelf", session="s")
                await run.result()
                last = (await engine.log("s"))[-1].seq
                for arguments, code, text in (
                    ({"at": last + 1}, "agent_invalid", f"at event {last + 1}, last {last}"),
                    ({"at": 2, "edit": "x"}, "agent_invalid", "event 2 of session"),
                    ({"at": 3, "input": "x"}, "agent_invalid", "has a turn under way"),
                    ({"new_session": "s"}, "journal_conflict", "exists already"),
                    ({"new_session": "a b"}, "session_invalid_id", "is not valid"),
                ):
                    options: dict[str, Any] = dict(arguments)
                    with pytest.raises(MainspringError) as caught:
                        await run.fork(**options)
                    assert caught.value.code == code
                    assert text in caught.value.message
                with pytest.raises(SessionError, match="not in the journal"):
                    await engine.fork("nobody", agent)
                with pytest.raises(TypeError, match="an agent has no colour"):
                    await run.fork(colour="red")
                assert len(await engine.sessions()) == 1

    asyncio.run(main())


def test_the_state_of_the_past_is_what_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(step) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "shelf", session="s")
                await run.result()
                log = await engine.log("s")
                at = next(e.seq for e in log if isinstance(e, InputReceived))
                past = await engine.state("s", at=at)
                assert [m["role"] for m in past["messages"]] == ["user"]
                assert past["phase"] == "Stepping"
                roles = [m["role"] for m in (await engine.state("s"))["messages"]]
                assert roles == ["user", "assistant", "tool", "tool", "assistant"]
                with pytest.raises(SessionError, match="not in the journal"):
                    await engine.state("nobody")

    asyncio.run(main())


def test_a_changed_record_is_told_with_its_first_difference(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(step) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                await (await engine.start(agent, "shelf", session="s")).result()

    asyncio.run(main())
    path = tmp_path / "s.db"
    reader = JournalReader(store_in(tmp_path))
    assert reader.replay("s")[1] is None
    reader.close()
    raw = path.read_bytes()
    changed = raw.replace(b'"reason":"the only model"', b'"reason":"the best model"')
    assert changed != raw
    path.write_bytes(changed)
    reader = JournalReader(store_in(tmp_path))
    same, (seq, recorded, replayed, why) = reader.replay("s")
    reader.close()
    assert same == seq == 2
    assert "the best model" in recorded
    assert "the only model" in replayed
    assert why == "another event comes out"


def test_a_version_1_session_is_read_and_not_replayed(tmp_path: Path) -> None:
    fixture = Path(__file__).parent.parent / "fixtures" / "journal-v1.db"
    shutil.copy(fixture, tmp_path / "s.db")
    reader = JournalReader(store_in(tmp_path))
    heads = {head[0]: head[1] for head in reader.sessions(None, 10, None)}
    assert heads == {
        "finished": "finished",
        "bad-calls": "finished",
        "interrupted": "open",
        "cancelled": "cancelled",
    }
    assert len(reader.load("finished", 0)) == 18
    same, (seq, _, _, why) = reader.replay("finished")
    assert (same, seq) == (0, 0)
    assert why == "the session was recorded in event format 1, a replay follows format 3"
    reader.close()


def test_sessions_of_version_2_are_read_and_go_on(tmp_path: Path) -> None:
    fixture = Path(__file__).parent.parent / "fixtures" / "journal-v2.db"
    shutil.copy(fixture, tmp_path / "s.db")

    async def main() -> None:
        with ScriptedModel([say("late")]) as model:
            agent = Agent("clerk", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path), agents=[agent]) as engine:
                assert [run.session for run in engine.resumed] == ["open"]
                assert await engine.resumed[0].result() == "late"
                heads = {each.session: each.status for each in await engine.sessions()}
                assert heads == {
                    "open": "finished",
                    "failed": "failed",
                    "waiting": "waiting",
                    "fork": "finished",
                    "finished": "finished",
                }
                log = await engine.log("fork")
                assert [event.kind for event in log].count("session_forked") == 1

    asyncio.run(main())


def test_pruning_keeps_what_forks_share(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(step) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "shelf", session="parent")
                await run.result()
                fork = await run.fork(at=3, new_session="child")
                answer = await fork.result()
                log = await engine.log("child")
                kept = await engine.prune(older_than_s=3600)
                assert (kept.sessions, kept.events) == (0, 0)
                other = Agent("b", model=model.model(), tools=[look])
                await (await engine.start(other, "door", session="b")).result()
                counted = await engine.prune(older_than_s=0, agent="b", dry_run=True)
                assert counted.sessions == 1
                assert await engine.prune(older_than_s=0, agent="b") == counted
                with pytest.raises(SessionError, match="not in the journal"):
                    await engine.log("b")
                both = await engine.prune(older_than_s=0, statuses=["finished"])
                assert both.sessions == 2
                assert await engine.sessions() == []
                await (await engine.start(agent, "shelf", session="parent")).result()
                fork = await engine.fork("parent", agent, at=3, new_session="child")
                assert await fork.result() == answer
                again = await engine.log("child")
                assert [event.kind for event in again] == [event.kind for event in log]
                before = (await engine.compact()).bytes_before
                assert before > 0

    asyncio.run(main())


@pytest.mark.parametrize("on_change", ["continue", "pin", "refuse"])
def test_a_deploy_in_the_middle_of_a_turn_goes_as_asked(tmp_path: Path, on_change: str) -> None:
    async def main() -> None:
        answer = threading.Event()
        script = [wait_for(answer, then=say("done"))]
        with ScriptedModel(script) as model:
            old = Agent("a", instructions="one", model=model.model(), tools=[look])
            new = old.replace(instructions="two")
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(old, "go")
            answer.set()
            async with Engine(
                store_in(tmp_path),
                agents=[new],
                on_change=on_change,  # type: ignore[arg-type]
            ) as engine:
                if on_change == "refuse":
                    assert engine.resumed == []
                    with pytest.raises(AgentError, match="is not the one session"):
                        await engine.resume(run.session, new, on_change="refuse")
                    return
                (resumed,) = engine.resumed
                assert await resumed.result() == "done"
            told = model.requests[-1].messages[0]["content"]
            assert told == ("two" if on_change == "continue" else "one")

    asyncio.run(main())


def test_a_pinned_agent_needs_what_it_had(tmp_path: Path) -> None:
    async def main() -> None:
        answer = threading.Event()
        with ScriptedModel([wait_for(answer, then=say("done"))]) as model:
            old = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(old, "go")
            answer.set()
            async with Engine(store_in(tmp_path)) as engine:
                without = old.replace(tools=[])
                with pytest.raises(AgentError, match='has no tool "look" any more'):
                    await engine.resume(run.session, without, on_change="pin")
                elsewhere = old.replace(model=model.model("other"))
                with pytest.raises(AgentError, match='has no model "scripted" any more'):
                    await engine.resume(run.session, elsewhere, on_change="pin")
                resumed = await engine.resume(run.session, old, on_change="pin")
                assert await resumed.result() == "done"

    asyncio.run(main())


def test_a_drain_ends_steps_and_lets_go_between_them(tmp_path: Path) -> None:
    async def main() -> None:
        tools_began, go = asyncio.Event(), asyncio.Event()

        @tool(effect="unsafe")
        async def pay() -> str:
            """Pay."""
            ran.append("pay")
            tools_began.set()
            await go.wait()
            return "paid"

        def answer(request: Request) -> Step:
            return calls(call("pay")) if request.assistant_count == 0 else say("done")

        with ScriptedModel(answer) as model:
            agent = Agent("a", model=model.model(), tools=[pay])
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.start(agent, "go")
                await tools_began.wait()
                draining = asyncio.ensure_future(engine.drain(60))
                ended = asyncio.ensure_future(run.result())
                # The drain has begun once it refuses a second one.
                with pytest.raises(EngineError, match="shutting down"):
                    await asyncio.ensure_future(engine.drain(60))
                assert not draining.done()
                go.set()
                report = await draining
                assert (report.finished, report.parked, report.cut) == (0, 1, 0)
                for refused in (ended, engine.start(agent, "too late")):
                    with pytest.raises(EngineError, match="shutting down"):
                        await refused
            async with Engine(store_in(tmp_path), agents=[agent]) as engine:
                (resumed,) = engine.resumed
                assert await resumed.result() == "done"
            assert model.request_count == 2

    asyncio.run(main())
    assert ran == ["pay"]


def test_a_drain_whose_time_is_up_cuts_what_still_runs(tmp_path: Path) -> None:
    async def main() -> None:
        began = asyncio.Event()

        @tool(effect="read")
        async def wait() -> str:
            """Wait."""
            began.set()
            await asyncio.Event().wait()
            return "never"

        with ScriptedModel([calls(call("wait"))]) as model:
            agent = Agent("a", model=model.model(), tools=[wait])
            async with Engine(store_in(tmp_path)) as engine:
                await engine.start(agent, "go", session="s")
                await began.wait()
                report = await engine.drain(0.05)
                assert (report.finished, report.parked, report.cut) == (0, 0, 1)
                (info,) = await engine.sessions()
                assert info.status == "open"

    asyncio.run(main())


def test_a_submitted_turn_is_run_by_whoever_claims_it(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel(step) as model:
            agent = Agent("a", model=model.model(), tools=[look])
            async with Engine(store_in(tmp_path)) as engine:
                submitted = await engine.submit(agent, "shelf", session="s")
                assert submitted.session == "s"
                kinds = [event.kind for event in await engine.log("s")]
                assert kinds == ["session_started", "input_received"]
            async with Engine(store_in(tmp_path), agents=[agent]) as engine:
                (run,) = engine.resumed
                assert "seen shelf" in await run.result()
                later = await engine.submit(agent, "window")
                assert "seen window" in await later.result()
                assert (await engine.replay(later.session)).identical

    asyncio.run(main())
