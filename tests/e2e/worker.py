"""A process to be killed: runs one job after the other, each in a fork of its own.

Owns the agents of the kill tests and the jobs that run them. Invariant: a job begins in a process
that has imported everything and opened nothing, so that a test can afford a hundred of them. Start
reading at `serve`; `_support.Worker` is the other side.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mainspring import Agent, Context, Engine, JournalError, Mcp, Model, tool

STEP_COUNT = 3
EFFECTS = ("read", "idempotent", "keyed", "unsafe")
CALLS_PER_EFFECT = 3
# Lets a job go on.
GO = signal.SIGUSR1
# The user without rights, on every Linux.
NOBODY = 65534

# Where tools leave a line for every time they ran; set once by `make_agent`.
_effects_path = ""
# Which tool call ends its process, and whether before or after its effect: (line, before).
_death: tuple[int, bool] | None = None
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
    line = {
        "session": ctx.session,
        "tool": name,
        "call_id": ctx.call_id,
        "effect_id": ctx.effect_id,
        "attempt": ctx.attempt,
    }
    # One write to a file that is only appended to: the line is whole or missing.
    file = os.open(_effects_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)
    if _death == (position, False):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{name} done"


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


@tool(effect="unsafe")
async def unsafe_it(ctx: Context) -> str:
    """Send something."""
    return _ran_once(ctx, "unsafe_it")


def make_agent(job: dict[str, Any]) -> Agent[str]:
    """The agent of the kill tests, for a model server and a file of effects."""
    global _effects_path
    _effects_path = job["effects"]
    model = Model("scripted", base_url=job["base_url"], api_key="none")
    return Agent(
        "worker",
        instructions="Do it.",
        model=model,
        tools=[read_it, idempotent_it, keyed_it, unsafe_it],
    )


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


JOBS: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "one": one,
    "load": load,
    "hold": hold,
    "mcp": mcp,
    "read_only": read_only,
    "full_disk": full_disk,
}


def serve() -> None:
    """Takes one job for each line of standard input, until it ends."""
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_child(job)
        _, status = os.waitpid(pid, 0)
        emit("exit", child=pid, code=os.waitstatus_to_exitcode(status))


def _be_child(job: dict[str, Any]) -> None:
    code = 1
    try:
        emit("begun")
        asyncio.run(_run(job))
        code = 0
    except BaseException as error:
        emit("raised", text=f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


async def _run(job: dict[str, Any]) -> None:
    await JOBS[job["job"]](job)


if __name__ == "__main__":
    serve()
