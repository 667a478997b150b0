"""Types that a checker must infer for the engine and its runs; checked, never run."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

from mainspring import Agent, Engine, Event, MainspringError, Report, Run, SessionInfo
from mainspring.engine import run, run_sync
from mainspring.events import Failure, ModelCallFinished, ModelDelta, ToolCallFinished, Usage

TEXT = Agent("a", model="gpt-5.4")


@dataclass
class Receipt:
    amount: float


TYPED = Agent("b", model="gpt-5.4", output=Receipt)


async def check_results(engine: Engine) -> None:
    text = await engine.start(TEXT, "hi")
    assert_type(text, Run[str])
    assert_type(await text.result(), str)
    assert_type(await text.result(Receipt), Receipt)
    assert_type(await text.result(list[int]), list[int])
    typed = await engine.start(TYPED, [{"type": "text", "text": "hi"}], session="s", origin="m:a")
    assert_type(typed, Run[Receipt])
    assert_type(await typed.result(), Receipt)
    assert_type(await typed.result(int), int)
    resumed = await engine.resume("s", TYPED, on_change="refuse")
    assert_type(resumed, Run[Receipt])
    assert_type(engine.resumed, list[Run[Any]])


async def check_events(started: Run[str]) -> None:
    assert_type(started.events(), AsyncIterator[Event])
    async for event in started.events(after=3):
        assert_type(event.kind, str)
        assert_type(event.seq, int)
        if isinstance(event, ModelDelta):
            assert_type(event.text, str)
        elif isinstance(event, ToolCallFinished):
            assert_type(event.duration_us, int)
        elif isinstance(event, ModelCallFinished):
            assert_type(event.usage, Usage)
            assert_type(event.cost_usd, float | None)


async def check_sessions(engine: Engine, failure: Failure) -> None:
    assert_type(await engine.sessions(status="open", limit=3), list[SessionInfo])
    assert_type(await engine.log("s", from_seq=2), list[Event])
    report = await engine.report("s")
    assert_type(report, Report)
    assert_type(report.error, MainspringError | None)
    assert_type(failure.exception(session="s"), MainspringError)


async def check_lines() -> None:
    assert_type(await run(TYPED, "hi"), Receipt)
    assert_type(run_sync(TEXT, "hi", store="memory:"), str)
    async with Engine("memory:", agents=[TEXT, TYPED], durability="normal") as engine:
        assert_type(engine, Engine)


async def check_refused(engine: Engine, started: Run[str]) -> None:
    Engine("memory:", durability="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await engine.start("a", "hi")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await engine.sessions(status="done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    started.events(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
