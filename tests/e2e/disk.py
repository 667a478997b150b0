"""Jobs on a small disk of their own: a tmpfs in a mount namespace that nobody else sees.

Invariant: nothing is mounted outside of the process's own namespace, which `Worker(within=APART)`
makes. Start reading at `small_disk`.
"""

import asyncio
import ctypes
import os
from pathlib import Path
from typing import Any

from mainspring import Engine, JournalError, MainspringError, Run
from tests.e2e import worker
from tests.e2e.worker import emit

# A process with a root's rights over its own mounts, whoever runs the tests.
APART = ("unshare", "--user", "--map-root-user", "--mount")

_MS_RDONLY, _MS_REMOUNT = 1, 32
_libc = ctypes.CDLL(None, use_errno=True)


def mount(folder: str, options: str) -> None:
    """Mounts a tmpfs."""
    _mount(b"none", folder, b"tmpfs", 0, options)


def remount(folder: str, options: str, *, read_only: bool = False) -> None:
    """Changes a mounted tmpfs."""
    _mount(None, folder, None, _MS_REMOUNT | (_MS_RDONLY if read_only else 0), options)


def _mount(source: bytes | None, folder: str, kind: bytes | None, flags: int, options: str) -> None:
    if _libc.mount(source, folder.encode(), kind, flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), folder)


async def small_disk(job: dict[str, Any]) -> None:
    """Sessions on a disk that fills up and is then made larger, while their engine stays open."""
    mount(job["folder"], f"size={job['bytes']}")
    agent = worker.make_agent(job)
    ended: dict[str, str] = {}
    acked: list[str] = []
    full = asyncio.Event()
    larger = asyncio.Event()

    async with Engine(job["store"], agents=[agent]) as engine:

        async def drive(session: str) -> None:
            run = None
            try:
                run = await engine.start(agent, session, session=session)
                acked.append(session)
                ended[session] = await run.result()
                return
            except MainspringError as error:
                ended[session] = error.code
                full.set()
            await larger.wait()
            if run is not None:
                # The engine takes up again by itself what it had to drop.
                ended[session] = await _taken_up(run)
                return
            known = {each.session for each in await engine.sessions(limit=1000)}
            assert session not in known, "it was refused and is there all the same"
            run = await engine.start(agent, session, session=session)
            ended[session] = await run.result()

        drives = [asyncio.create_task(drive(session)) for session in job["sessions"]]
        await full.wait()
        emit("full", acked=list(acked), ended=dict(ended))
        remount(job["folder"], "size=1g")
        larger.set()
        await asyncio.gather(*drives)
    copy_out(job)
    emit("ended", ended=ended)


async def _taken_up(run: Run[str]) -> str:
    """The answer of a session that was dropped, once the engine has taken it up and ended it."""
    while True:
        try:
            async for _ in run.events():
                pass
            return await run.result()
        except JournalError:
            # It was taken up when there was no room yet, and dropped once more.
            continue


async def read_only_disk(job: dict[str, Any]) -> None:
    """Takes up what an earlier process left on a disk, which is read-only at first.

    The kernel makes no file system read-only that a process writes on, so that process is gone.
    """
    mount(job["folder"], "size=64m")
    emit("killed", code=await asyncio.to_thread(_die_working, job))
    remount(job["folder"], "", read_only=True)
    agent = worker.make_agent(job)
    try:
        async with Engine(job["store"], agents=[agent]):
            emit("refused", code="")
    except JournalError as error:
        emit("refused", code=error.code)
    remount(job["folder"], "")
    async with Engine(job["store"], agents=[agent]) as engine:
        results = [await run.result() for run in engine.resumed]
    copy_out(job)
    emit("ended", results=results)


def _die_working(job: dict[str, Any]) -> int:
    """Runs sessions in a process that dies of it; gives how it ended."""
    pid = os.fork()
    if pid == 0:
        asyncio.run(_work_until_killed(job))
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


async def _work_until_killed(job: dict[str, Any]) -> None:
    agent = worker.make_agent(job)
    async with Engine(job["store"]) as engine:
        runs = [await engine.start(agent, each, session=each) for each in job["sessions"]]
        # All are acknowledged, so none may be missing.
        worker.die_after(job["dies_after"])
        await asyncio.gather(*(run.result() for run in runs))


def copy_out(job: dict[str, Any]) -> None:
    """Copies the store to where the test can read it."""
    path = Path(job["store"].removeprefix("sqlite:///"))
    for file in path.parent.glob(f"{path.name}*"):
        (Path(job["copy"]) / file.name).write_bytes(file.read_bytes())
