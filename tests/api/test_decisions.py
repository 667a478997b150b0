"""What waits for a person: approvals, and calls whose process ended. Each is decided once."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Context,
    Engine,
    MainspringError,
    Outcome,
    Run,
    SessionCancelled,
    SessionError,
    Tool,
    ToolError,
    tool,
)
from mainspring.events import (
    ApprovalDecided,
    ApprovalRequested,
    EffectResolved,
    EffectUnknown,
    ToolCallStarted,
)
from mainspring.testing import Request, ScriptedModel, Step, call, calls, say


class Till:
    """A tool with real effects, and how often each was run."""

    def __init__(self) -> None:
        self.paid: list[tuple[int, float, str]] = []
        self.hold: asyncio.Event | None = None
        self.began = asyncio.Event()

    def refund(self, **options: Any) -> Tool[..., Any]:
        @tool(name="refund", **options)
        async def refund(order: int, amount: float, ctx: Context) -> str:
            """Refund an order."""
            self.paid.append((order, amount, ctx.effect_id))
            self.began.set()
            if self.hold is not None:
                await self.hold.wait()
            return f"refunded {amount}"

        return refund


def model_step(request: Request) -> Step:
    """Two refunds, then the answer."""
    if request.assistant_count == 0:
        return calls(call("refund", order=1, amount=50.0), call("refund", order=2, amount=500.0))
    return say("done")


def one_refund(request: Request) -> Step:
    return calls(call("refund", order=1, amount=50.0)) if not request.assistant_count else say("ok")


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))  # type: ignore[arg-type]

    run.__name__ = test.__name__
    return run


def store_in(folder: Path, name: str = "s") -> str:
    return f"sqlite:///{folder}/{name}.db"


async def first_request(run: Run[Any]) -> ApprovalRequested:
    async for event in run.events():
        if isinstance(event, ApprovalRequested):
            return event
    raise AssertionError("nobody was asked")


async def kinds_of(engine: Engine, session: str) -> list[str]:
    return [event.kind for event in await engine.log(session)]


async def refused(waiting: Awaitable[Any], code: str) -> MainspringError:
    with pytest.raises(MainspringError) as caught:
        await waiting
    assert caught.value.code == code, caught.value
    return caught.value


async def status_of(engine: Engine, session: str) -> str:
    (info,) = [each for each in await engine.sessions() if each.session == session]
    return info.status


@in_loop
async def test_only_the_calls_that_a_policy_picks_wait_and_a_person_may_edit_them(
    tmp_path: Path,
) -> None:
    till = Till()
    refund = till.refund(effect="unsafe", approve=lambda a: a["amount"] > 100)
    with ScriptedModel(model_step) as model:
        agent = Agent("a", model=model.model(), tools=[refund])
        async with Engine(store_in(tmp_path)) as engine:
            run = await engine.start(agent, "go")
            asked = await first_request(run)
            assert asked.call == 1
            (waiting,) = await run.pending()
            assert (waiting.tool, waiting.approval) == ("refund", asked.approval)
            assert waiting.arguments == '{"order": 2, "amount": 500.0}'
            wrong = await refused(
                run.approve(asked, edit={"amount": "lots"}), "tool_arguments_invalid"
            )
            assert isinstance(wrong, ToolError)
            await run.approve(asked, edit={"amount": 90.0}, by="ann")
            assert await run.result() == "done"
            (decided,) = [
                e for e in await engine.log(run.session) if isinstance(e, ApprovalDecided)
            ]
            assert (decided.decision, decided.by) == ("granted", "ann")
            assert (await engine.replay(run.session)).identical
    assert [paid[:2] for paid in till.paid] == [(1, 50.0), (2, 90.0)]


@in_loop
async def test_a_policy_that_raises_means_that_a_person_is_asked(tmp_path: Path) -> None:
    till = Till()

    async def broken(arguments: dict[str, Any]) -> bool:
        raise RuntimeError(arguments["no such"])

    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=broken)])
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            asked = await first_request(run)
            assert till.paid == []
            await run.approve(asked)
            assert await run.result() == "ok"
    assert len(till.paid) == 1


@in_loop
async def test_a_hundred_answers_to_one_request_count_as_one(tmp_path: Path) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine(store_in(tmp_path)) as engine:
            run = await engine.start(agent, "go")
            asked = await first_request(run)
            answers = [run.approve(asked) for _ in range(50)]
            answers += [run.deny(asked, "no") for _ in range(50)]
            ends = await asyncio.gather(*answers, return_exceptions=True)
            assert ends.count(None) == 1
            used = [end for end in ends if isinstance(end, SessionError)]
            assert {error.code for error in used} == {"approval_used"}
            assert len(used) == 99
            assert await run.result() == "ok"
    assert len(till.paid) == 1


@in_loop
async def test_a_refusal_is_told_to_the_model(tmp_path: Path) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            await run.deny(await first_request(run), "not this one")
            assert await run.result() == "ok"
        told = [m["content"] for m in model.requests[-1].messages if m["role"] == "tool"]
    assert told == ['Error: tool "refund" was not run, a person refused it: not this one']
    assert till.paid == []


@in_loop
async def test_a_waiting_session_survives_its_process_and_any_engine_takes_the_decision(
    tmp_path: Path,
) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine(store_in(tmp_path)) as engine:
            run = await engine.start(agent, "go", session="w")
            asked = await first_request(run)
        async with Engine(store_in(tmp_path)) as engine:
            assert await status_of(engine, "w") == "waiting"
            (waiting,) = await engine.pending()
            assert (waiting.session, waiting.approval) == ("w", asked.approval)
            await refused(engine.approve("w", 0, approval="another"), "approval_used")
            await refused(engine.approve("w", 7), "approval_used")
            await engine.approve("w", 0, by="bob")
            await refused(engine.deny("w", 0), "approval_used")
            assert await status_of(engine, "w") == "open"
        assert till.paid == []
        async with Engine(store_in(tmp_path), agents=[agent]) as engine:
            (resumed,) = engine.resumed
            assert await resumed.result() == "ok"
            assert (await engine.replay("w")).identical
    assert len(till.paid) == 1


@in_loop
async def test_an_approval_of_a_copied_file_is_asked_for_anew(tmp_path: Path) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine(store_in(tmp_path)) as engine:
            asked = await first_request(await engine.start(agent, "go", session="w"))
        shutil.copy(tmp_path / "s.db", tmp_path / "copy.db")
        for name, runs in (("s", True), ("copy", False)):
            async with Engine(store_in(tmp_path, name), agents=[agent]) as engine:
                answer = engine.approve("w", 0, approval=asked.approval)
                if runs:
                    await answer
                    assert (await engine.report("w")).text == "ok"
                else:
                    await refused(answer, "approval_used")
        assert len(till.paid) == 1
        async with Engine(store_in(tmp_path, "copy")) as engine:
            (anew,) = await engine.pending("w")
            assert anew.approval not in (None, asked.approval)


@in_loop
async def test_a_fork_asks_for_its_own_approval(tmp_path: Path) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine(store_in(tmp_path)) as engine:
            run = await engine.start(agent, "go")
            asked = await first_request(run)
            await run.approve(asked)
            assert await run.result() == "ok"
            log = await engine.log(run.session)
            (granted,) = [event.seq for event in log if isinstance(event, ApprovalDecided)]
            for at in (asked.seq, granted):
                other = await run.fork(at=at)
                anew = await first_request(other)
                assert anew.approval != asked.approval
                await refused(other.approve(0 if at < 0 else asked), "approval_used")
                await other.cancel()
    assert len(till.paid) == 1


@in_loop
async def test_a_waiting_session_can_be_cancelled(tmp_path: Path) -> None:
    till = Till()
    with ScriptedModel(one_refund) as model:
        agent = Agent("a", model=model.model(), tools=[till.refund(approve=True)])
        async with Engine(store_in(tmp_path)) as engine:
            run = await engine.start(agent, "go")
            asked = await first_request(run)
            await run.cancel("changed my mind")
            with pytest.raises(SessionCancelled, match="changed my mind"):
                await run.result()
            await refused(run.approve(asked), "approval_used")
            await refused(run.cancel(), "session_not_open")
            assert await run.pending() == []


async def _interrupted(folder: Path, agent: Agent[str], till: Till) -> str:
    """A session whose process ends while its tool runs."""
    till.hold = asyncio.Event()
    async with Engine(store_in(folder)) as engine:
        run = await engine.start(agent, "go")
        await till.began.wait()
    till.hold = None
    return run.session


@pytest.mark.parametrize("kind", ["done", "not_done", "failed"])
def test_a_person_says_what_became_of_a_call_whose_process_ended(tmp_path: Path, kind: str) -> None:
    outcomes = {
        "done": Outcome.done({"paid": 50}),
        "not_done": Outcome.not_done(),
        "failed": Outcome.failed("the bank does not know"),
    }
    told = {
        "done": '{"paid":50}',
        "not_done": "refunded 50.0",
        "failed": "Error: the bank does not know",
    }

    async def main() -> None:
        till = Till()
        with ScriptedModel(one_refund) as model:
            agent = Agent("a", model=model.model(), tools=[till.refund()])
            session = await _interrupted(tmp_path, agent, till)
            async with Engine(store_in(tmp_path)) as engine:
                run = await engine.resume(session, agent)
                (unknown,) = [e async for e in _until(run, EffectUnknown)]
                (waiting,) = await run.pending()
                assert (waiting.approval, waiting.attempt) == (None, 1)
                assert waiting.effect_id == till.paid[0][2]
                assert await status_of(engine, session) == "waiting"
                with pytest.raises(ValueError, match=r"use run\.resolve"):
                    await run.approve(waiting)
                with pytest.raises(ValueError, match="resolves nothing"):
                    await run.resolve(waiting, Outcome.undecided())
                ends = await asyncio.gather(
                    *(run.resolve(unknown, outcomes[kind], by="eve") for _ in range(20)),
                    return_exceptions=True,
                )
                assert ends.count(None) == 1
                assert await run.result() == "ok"
                assert (await engine.replay(session)).identical
            results = [m["content"] for m in model.requests[-1].messages if m["role"] == "tool"]
            assert results == [told[kind]]
        assert len(till.paid) == (2 if kind == "not_done" else 1)
        assert len({paid[2] for paid in till.paid}) == 1

    asyncio.run(main())


async def _until(run: Run[Any], kind: type[Any]) -> Any:
    async for event in run.events():
        if isinstance(event, kind):
            yield event
            return


@pytest.mark.parametrize("answer", ["done", "not_done", "undecided", "raises", "wrong"])
def test_a_tools_own_function_finds_out_what_became_of_its_call(
    tmp_path: Path, answer: str
) -> None:
    asked: list[tuple[dict[str, Any], str]] = []

    async def find_out(arguments: dict[str, Any], ctx: Context) -> Outcome:
        asked.append((arguments, ctx.effect_id))
        if answer == "raises":
            raise OSError("the bank is closed")
        if answer == "wrong":
            return "done"  # type: ignore[return-value]
        return {
            "done": Outcome.done("paid before"),
            "not_done": Outcome.not_done(),
            "undecided": Outcome.undecided("no trace"),
        }[answer]

    async def main() -> None:
        till = Till()
        with ScriptedModel(one_refund) as model:
            agent = Agent("a", model=model.model(), tools=[till.refund(reconcile=find_out)])
            session = await _interrupted(tmp_path, agent, till)
            async with Engine(store_in(tmp_path), agents=[agent]) as engine:
                (run,) = engine.resumed
                if answer not in ("done", "not_done"):
                    async for event in run.events():
                        if isinstance(event, EffectResolved):
                            assert event.outcome == "undecided"
                            break
                    await run.resolve(0, Outcome.done("looked it up"))
                assert await run.result() == "ok"
                started = [e for e in await engine.log(session) if isinstance(e, ToolCallStarted)]
                assert len(started) == len(till.paid) == (2 if answer == "not_done" else 1)
                assert (await engine.replay(session)).identical
        assert asked == [({"order": 1, "amount": 50.0}, till.paid[0][2])]

    asyncio.run(main())


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(TypeError, match='approve of tool "f" is a bool or a function, not str'):
        tool(name="f", approve="yes")(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match='reconcile of tool "f" is a function, not int'):
        tool(name="f", reconcile=1)(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(AgentError, match="has a reconcile function and effect 'read'"):
        tool(name="f", effect="read", reconcile=lambda a, c: Outcome.not_done())(lambda: None)
