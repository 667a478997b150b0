"""A job whose timers must not care what the wall clock says."""

import asyncio
import time
from typing import Any

from mainspring import Agent, Context, Engine, Model, Tool
from tests.e2e import effects
from tests.e2e.worker import emit

# A session's tool fails so often before it works.
FAILURES = 2


def clock_agent(job: dict[str, Any]) -> Agent[str]:
    """An agent whose tool fails at first, and so waits for timers."""

    async def flaky(ctx: Context) -> str:
        """Work at the third attempt."""
        record = {"session": ctx.session, "effect_id": ctx.effect_id, "attempt": ctx.attempt}
        await asyncio.to_thread(effects.leave, job["effects"], record)
        if ctx.attempt <= FAILURES:
            raise OSError("not yet")
        return "at last"

    model = Model("scripted", base_url=job["base_url"], api_key="none")
    return Agent("clock", model=model, tools=[Tool(flaky, effect="keyed", retry=FAILURES)])


async def clock(job: dict[str, Any]) -> None:
    """Starts sessions, or takes them up, and waits for their ends; tells what time it is."""
    agent = clock_agent(job)
    async with Engine(job["store"], agents=[agent]) as engine:
        emit("open", time_s=time.time(), resumed=len(engine.resumed))
        runs = list(engine.resumed) or [
            await engine.start(agent, each, session=each) for each in job["sessions"]
        ]
        emit("results", texts=[await run.result() for run in runs])
