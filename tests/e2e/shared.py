"""What a process does that shares its store with others: owns sessions, drains, decides.

Invariant: nothing here decides when something happens to the process; the test does, by signals.
Start reading at `own`.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from mainspring import (
    Agent,
    Context,
    Engine,
    JournalError,
    MainspringError,
    Model,
    Outcome,
    Tool,
)
from tests.e2e import effects, worker
from tests.e2e.worker import emit

# Asks a process whether it is there.
PING = signal.SIGUSR2


async def own(job: dict[str, Any]) -> None:
    """Owns sessions of the kill tests' agent until SIGTERM, then drains.

    `stop_at` stops this process right after its n-th effect: on the event loop, where all its tools
    run, so that none is half-way. `PING` is answered once the store and the loop have gone round.
    """
    agent = worker.make_agent(job)
    if job.get("stop_at") is not None:
        worker.stop_after(job["stop_at"])
    loop = asyncio.get_running_loop()
    async with Engine(
        job["store"],
        agents=[agent],
        lease_s=job.get("lease_s"),
        sessions_max=job.get("sessions_max"),
    ) as engine:
        answers: set[asyncio.Task[None]] = set()

        async def answer() -> None:
            await engine.sessions(limit=1)
            emit("pong")

        loop.add_signal_handler(PING, lambda: answers.add(loop.create_task(answer())))
        emit("owns", resumed=len(engine.resumed))
        report = await engine.serve(within_s=job.get("within_s", 60.0))
        emit("drained", finished=report.finished, parked=report.parked, cut=report.cut)


def approval_agent(job: dict[str, Any]) -> Agent[str]:
    """The agent that pays, once a person has approved it."""

    async def pay(ctx: Context) -> str:
        """Pay."""
        if job.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        record = {"session": ctx.session, "effect_id": ctx.effect_id, "attempt": ctx.attempt}
        await asyncio.to_thread(effects.leave, job["effects"], record)
        return "paid"

    async def find_out(arguments: dict[str, Any], ctx: Context) -> Outcome:
        made = await asyncio.to_thread(effects.was_left, job["effects"], ctx.effect_id)
        return Outcome.done("paid") if made else Outcome.not_done()

    model = Model("scripted", base_url=job["base_url"], api_key="none")
    return Agent("payer", model=model, tools=[Tool(pay, approve=True, reconcile=find_out)])


@contextlib.asynccontextmanager
async def opened(store: str, agents: list[Agent[Any]]) -> AsyncIterator[Engine]:
    """Opens a store, again and again while another process has it."""
    while True:
        engine = Engine(store, agents=agents)
        try:
            await engine.__aenter__()
            break
        except JournalError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0)
    try:
        yield engine
    finally:
        await engine.close()


async def approve_often(job: dict[str, Any]) -> None:
    """Approves one request so many times at once; goes on with the session if it may."""
    # Inherited by every thread, so before there are any.
    signal.pthread_sigmask(signal.SIG_BLOCK, {worker.GO})
    emit("ready")
    signal.sigwait({worker.GO})
    async with opened(job["store"], [approval_agent(job)]) as engine:
        answers = Counter(
            await asyncio.gather(
                *(
                    approve_once(engine, job["session"], job["approval"])
                    for _ in range(job["count"])
                )
            )
        )
        report = await engine.report(job["session"])
        emit("answers", counts=dict(answers), status=report.status)


async def approve_once(engine: Engine, session: str, approval: str | None) -> str:
    """Approves a request; gives what came of it, `granted` or an error's code."""
    try:
        await engine.approve(session, 0, approval=approval, by="somebody")
    except MainspringError as error:
        return error.code
    return "granted"


async def approve_and_die(job: dict[str, Any]) -> None:
    """Grants a request and dies once that is durable: at once, or in front of the effect."""
    agent = approval_agent(job)
    async with Engine(job["store"]) as engine:
        if not job.get("dies"):
            await engine.approve(job["session"], 0, approval=job["approval"])
            os.kill(os.getpid(), signal.SIGKILL)
        run = await engine.resume(job["session"], agent)
        await run.approve(0)
        await run.result()
