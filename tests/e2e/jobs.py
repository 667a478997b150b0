"""A process that runs one job after the other, each in a fork of its own.

Invariant: a job begins in a process that has imported everything and opened nothing, so that a test
can afford a hundred of them. Start reading at `serve`; `_support.Worker` is the other side.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from tests.e2e import clock, disk, shared, worker
from tests.e2e.worker import emit

# prctl(2): the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1

JOBS: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "one": worker.one,
    "load": worker.load,
    "hold": worker.hold,
    "mcp": worker.mcp,
    "read_only": worker.read_only,
    "full_disk": worker.full_disk,
    "small_disk": disk.small_disk,
    "read_only_disk": disk.read_only_disk,
    "clock": clock.clock,
    "own": shared.own,
    "approve_often": shared.approve_often,
    "approve_and_die": shared.approve_and_die,
}


def serve() -> None:
    """Takes one job for each line of standard input, until it ends."""
    _die_with_parent()
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_child(job)
        _, status = os.waitpid(pid, 0)
        emit("exit", child=pid, code=os.waitstatus_to_exitcode(status))


def _die_with_parent() -> None:
    """Ends this process with the one that began it, also when that one is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_child(job: dict[str, Any]) -> None:
    code = 1
    try:
        _die_with_parent()
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
