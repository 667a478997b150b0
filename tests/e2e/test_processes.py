"""Two processes and one store, and what a killed process leaves behind."""

import asyncio
import os
import select
import signal
import socket
from pathlib import Path

import pytest

from mainspring import Engine, JournalError, Outcome
from mainspring.events import EffectUnknown, SessionFinished
from mainspring.testing import ScriptedModel, call, calls, say
from tests.e2e import worker
from tests.e2e._support import Worker, read_log

# Far more than a test needs; a test that waits this long has failed.
GONE_MS_MAX = 60_000


def _wait_until_gone(pid: int) -> None:
    """Waits for the end of a process that is not this one's child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    gone = poll.poll(GONE_MS_MAX)
    os.close(descriptor)
    assert gone, f"process {pid} is still there"


async def _open(store: str) -> None:
    async with Engine(store):
        pass


def test_a_store_belongs_to_one_process_until_that_process_is_gone(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/one.db"
    with Worker() as other:
        pid = other.begin("hold", store=store)
        other.wait_for("held")
        with pytest.raises(JournalError) as caught:
            asyncio.run(_open(store))
        assert caught.value.code == "journal_locked"
        assert caught.value.retryable
        assert str(caught.value) == (
            f"journal {tmp_path}/one.db is in use by process {pid}\n"
            "hint: end that process first, or open the journal for reading only"
        )
        os.kill(pid, signal.SIGKILL)
        assert other.exit_code() == -signal.SIGKILL
        asyncio.run(_open(store))


def test_a_store_that_this_process_has_open_is_refused_to_a_second_engine(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/one.db"

    async def twice() -> None:
        async with Engine(store):
            with pytest.raises(JournalError) as caught:
                await _open(store)
            assert caught.value.code == "journal_locked"
            assert str(os.getpid()) in caught.value.message
        await _open(store)

    asyncio.run(twice())


def test_the_processes_of_an_mcp_server_end_with_a_killed_engine(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mcp.db"
    with (
        ScriptedModel([calls(call("hold")), say("done")]) as model,
        socket.create_server(("127.0.0.1", 0)) as listener,
        Worker() as other,
    ):
        port = str(listener.getsockname()[1])
        job = {"store": store, "session": "family", "base_url": model.base_url, "port": port}
        pid = other.begin("mcp", **job)
        connection, _ = listener.accept()
        with connection, connection.makefile() as told:
            server, child = (int(text) for text in told.read().split())
        assert Path(f"/proc/{server}").exists()
        assert Path(f"/proc/{child}").exists()
        os.kill(pid, signal.SIGKILL)
        assert other.exit_code() == -signal.SIGKILL
        _wait_until_gone(server)
        _wait_until_gone(child)
        assert asyncio.run(_resume(job)) == "done"
    log = [event for _, event in read_log(store, "family")]
    (unknown,) = [event for event in log if isinstance(event, EffectUnknown)]
    assert (unknown.call, unknown.attempt) == (0, 1)
    assert isinstance(log[-1], SessionFinished)


async def _resume(job: dict[str, str]) -> str:
    async with Engine(job["store"]) as engine:
        run = await engine.resume(job["session"], worker.mcp_agent(job))
        # The server that knew is gone, so a person says what became of the call.
        (lost,) = await run.pending()
        await run.resolve(lost, Outcome.failed("it never answered"))
        return await run.result()
