"""What a process to be killed does: the agents of the kill tests, and jobs that run them.

Invariant: a tool leaves its trace outside of the process, and dies only where a job says so. Start
reading at `one`; `jobs.py` runs the jobs, `_support.Worker` is the other side.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mainspring import Agent, Context, Engine, JournalError, Mcp, Model, Outcome, Tool, tool
from tests.e2e import effects

STEP_COUNT = 3
EFFECTS = ("read", "idempotent", "keyed", "unsafe")
CALLS_PER_EFFECT = 3
# Lets a job go on.
GO = signal.SIGUSR1
# The user without rights, on every Linux.
NOBODY = 65534

# Where tools leave a trace of every time they ran: a file, or a server's URL; set by `make_agent`.
_effects = ""
# Which tool call ends its process, and whether before or after its effect: (line, before).
_death: tuple[int, bool] | None = None
# After which tool call the process stops, until somebody lets it go on.
_stop: int | None = None
_lock = threading.Lock()
_ran = 0


def _ran_once(ctx: Context, name: str) -> str:
    """Leaves the trace of one run of a tool, and dies there if this is the run to die in."""
    global _ran
    with _lock:
        position = _ran
        _ran += 1
    if _death == (position, True):
        os.kill(os.getpid(), signal.SIGKILL)
    record = {
        "session": ctx.session,
        "tool": name,
        "call_id": ctx.call_id,
        "effect_id": ctx.effect_id,
        "attempt": ctx.attempt,
        "pid": os.getpid(),
    }
    effects.leave(_effects, record)
    if _death == (position, False):
        os.kill(os.getpid(), signal.SIGKILL)
    if position == _stop:
        os.kill(os.getpid(), signal.SIGSTOP)
    return f"{name} done"


def die_after(count: int) -> None:
    """Makes this process die after so many more effects."""
    global _death
    with _lock:
        _death = (_ran + count, False)


def stop_after(position: int) -> None:
    """Makes this process stop right after the effect of its tool call at this position."""
    global _stop
    _stop = position


@tool(effect="read")
async def read_it(ctx: Context) -> str:
    """Read something."""
    return _ran_once(ctx, "read_it")


@tool(effect="idempotent")
def idempotent_it(ctx: Context) -> str:
    """Set something."""
    return _ran_once(ctx, "idempotent_it")


@tool(effect="keyed")
def keyed_it(ctx: Context) -> str:
    """Pay something."""
    return _ran_once(ctx, "keyed_it")


def find_out(arguments: dict[str, Any], ctx: Context) -> Outcome:
    """What became of a call of an unsafe tool, as its traces tell."""
    if effects.was_left(_effects, ctx.effect_id):
        return Outcome.done(f"{ctx.tool} done")
    return Outcome.not_done()


async def unsafe_it(ctx: Context) -> str:
    """Send something."""
    return _ran_once(ctx, "unsafe_it")


def make_agent(job: dict[str, Any]) -> Agent[str]:
    """The agent of the kill tests, for a model server and a place for effects.

    With `person` in the job, nothing but a person can tell what became of the unsafe tool; with
    `on_loop` all tools run on the event loop, so that no two are under way at once.
    """
    global _effects
    _effects = job["effects"]
    model = Model("scripted", base_url=job["base_url"], api_key="none")
    reconcile = None if job.get("person") else find_out
    tools: list[Tool[..., Any]] = [read_it, idempotent_it, keyed_it]
    if job.get("on_loop"):
        tools = [read_it, _on_loop(idempotent_it), _on_loop(keyed_it)]
    tools.append(Tool(unsafe_it, reconcile=reconcile))
    return Agent("worker", instructions="Do it.", model=model, tools=tools)


def _on_loop(threaded: Tool[..., str]) -> Tool[..., Any]:
    async def run(ctx: Context) -> str:
        return threaded(ctx)

    name, description = threaded.name, threaded.description
    return Tool(run, name=name, description=description, effect=threaded.effect)


def emit(event: str, **fields: Any) -> None:
    """Tells the test something, as one line."""
    line = json.dumps({"event": event, "pid": os.getpid(), **fields})
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


async def one(job: dict[str, Any]) -> None:
    """One session, started or resumed; `bytes_max` makes the kernel end this process at a write."""
    global _death
    agent = make_agent(job)
    if job.get("death") is not None:
        _death = (job["death"][0], job["death"][1])
    async with Engine(job["store"]) as engine:
        if job.get("bytes_max") is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            limits = (job["bytes_max"], resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if job.get("resume"):
            run = await engine.resume(job["session"], agent)
        else:
            run = await engine.start(agent, job["session"], session=job["session"])
        emit("acked", session=job["session"])
        emit("result", text=await run.result())
        # What closing folds in is not part of the run.
        limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def load(job: dict[str, Any]) -> None:
    """Many sessions at once: those that were interrupted, and those that are missing.

    The missing ones are started, and the tools of the others run, once the test sends `GO`.
    """
    # Before there are threads, which inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
    agent = make_agent(job)
    async with Engine(job["store"], agents=[agent], durability="normal") as engine:
        known = {info.session for info in await engine.sessions(limit=1000)}
        emit("known", sessions=sorted(known))
        # Stops the event loop too, so that the test is ready before anything can end.
        signal.sigwait({GO})
        runs = list(engine.resumed)

        # A few at a time, so that a death can find some started and some not.
        few = asyncio.Semaphore(8)

        async def start(session: str) -> None:
            async with few:
                runs.append(await engine.start(agent, session, session=session))
            emit("acked", session=session)

        missing = [session for session in job["sessions"] if session not in known]
        await asyncio.gather(*(start(session) for session in missing))
        await asyncio.gather(*(run.result() for run in runs))


async def hold(job: dict[str, Any]) -> None:
    """Keeps a store open until the test is over."""
    async with Engine(job["store"]):
        emit("held")
        await asyncio.Event().wait()


async def mcp(job: dict[str, Any]) -> None:
    """One session with an MCP server, whose call never returns."""
    agent = mcp_agent(job)
    async with Engine(job["store"]) as engine:
        run = await engine.start(agent, job["session"], session=job["session"])
        emit("acked", session=job["session"])
        await run.result()


def mcp_agent(job: dict[str, Any]) -> Agent[str]:
    """The agent with the MCP server beside this file."""
    server = Mcp(
        [sys.executable, str(Path(__file__).with_name("mcp_server.py"))],
        env={"TELL_PORT": job["port"]},
        name="family",
    )
    model = Model("scripted", base_url=job["base_url"], api_key="none")
    return Agent("parent", model=model, tools=[server])


async def read_only(job: dict[str, Any]) -> None:
    """Opens a store as a user who may not write it."""
    if os.geteuid() == 0:
        # The rights of files do not bind root.
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        async with Engine(job["store"]):
            emit("result", text="opened")
    except JournalError as error:
        emit("failed", code=error.code, text=str(error))


async def full_disk(job: dict[str, Any]) -> None:
    """A session whose journal can grow no more; then, with room again, the same session."""
    agent = make_agent(job)
    async with Engine(job["store"]) as engine:
        # Python ignores SIGXFSZ, so the write fails, as on a full disk.
        limits = (job["bytes_max"], resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        failure = None
        try:
            run = await engine.start(agent, job["session"], session=job["session"])
            emit("acked", session=job["session"])
            emit("result", text=await run.result())
        except Exception as error:
            failure = error
        limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if failure is not None:
            emit("failed", code=getattr(failure, "code", ""), text=str(failure))
        if await engine.sessions():
            run = await engine.resume(job["session"], agent)
        else:
            run = await engine.start(agent, job["session"], session=job["session"])
        emit("result", text=await run.result())
