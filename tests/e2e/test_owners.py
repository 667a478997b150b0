"""Processes that share a PostgreSQL store: one dies, stops or leaves, and the others go on.

The test submits sessions and waits for them as a third process would; effects are counted by a
server outside. What happens to a process happens at a count of effects, drawn from a seed that a
failure prints; never at a time.
"""

import asyncio
import functools
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from mainspring import Engine
from mainspring.events import EffectUnknown, Event
from mainspring.testing import ScriptedModel
from tests.e2e import worker
from tests.e2e._support import ANSWER, Logs, Worker, check_all, work_step
from tests.e2e.effects import EffectServer
from tests.e2e.postgres import Postgres, Proxy, job_of, kill
from tests.e2e.shared import PING

SESSION_COUNT = 200
# Of each kind in each of three steps.
CALLS_PER_EFFECT = 1
EFFECT_COUNT = worker.STEP_COUNT * len(worker.EFFECTS) * CALLS_PER_EFFECT
ROUNDS = 3


class Shared:
    """A store, a model and a counting server, and processes that own the store's sessions."""

    def __init__(self, store: str, model: ScriptedModel, effects: EffectServer) -> None:
        self.store = store
        self.model = model
        self.effects = effects
        self.job = job_of(store, model.base_url, effects.url, on_loop=True)
        self.pids: dict[Worker, int] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """Ends all processes."""
        # A stopped process is not waited for by the one that forked it.
        for process, pid in self.pids.items():
            if not process.said("exit"):
                kill(pid)
        self._stack.close()

    def own(
        self,
        process: Worker | None = None,
        *,
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Worker:
        """A process that owns sessions, once it is there: a new one, or one whose job has ended."""
        if process is None:
            process = self._stack.enter_context(Worker(env=env))
        self.pids[process] = process.begin("own", **{**self.job, **more})
        process.reached("owns")
        return process

    def submitted(self, count: int, prefix: str = "s") -> "Submitted":
        """Sessions that are stored, for whoever owns them."""
        return Submitted(self, [f"{prefix}-{number:03}" for number in range(count)])

    def kill_at(self, count: int, how: signal.Signals = signal.SIGKILL) -> list[int]:
        """Sends the process whose effect is the n-th of all a signal; it is listed then."""
        sent: list[int] = []

        def look(seen: int, pid: int) -> None:
            if seen == count:
                kill(pid, how)
                sent.append(pid)

        self.effects.on_effect = look
        return sent

    def owners(self, **more: Any) -> list[Worker]:
        """Two processes of which neither takes all sessions at once."""
        return [self.own(sessions_max=SESSION_COUNT // 2, **more) for _ in range(2)]

    def check(self) -> int:
        """Asserts what must hold of all sessions; says how many there are."""
        return check_all(
            self.store, self.effects.by_session(), self.model.requests, CALLS_PER_EFFECT
        )

    def logs(self) -> dict[str, list[tuple[int, Event]]]:
        """All logs."""
        with Logs(self.store) as logs:
            return {session: logs.of(session) for session in logs.sessions()}


class Submitted:
    """Sessions that were submitted, with somebody who waits for their ends in a thread."""

    def __init__(self, shared: Shared, sessions: list[str]) -> None:
        self._shared = shared
        self._sessions = sessions

    def finish(self) -> None:
        """Submits them and waits for the ends of all of them."""
        assert asyncio.run(self._finish()) == [ANSWER] * len(self._sessions)

    async def _finish(self) -> list[str]:
        agent = worker.make_agent(self._shared.job)
        async with Engine(self._shared.store) as engine:
            runs = await asyncio.gather(
                *(engine.submit(agent, session, session=session) for session in self._sessions)
            )
            return list(await asyncio.gather(*(run.result() for run in runs)))


@contextmanager
def sharing(store: str) -> Iterator[Shared]:
    """A model and a counting server for a store."""
    step = functools.partial(work_step, calls_per_effect=CALLS_PER_EFFECT)
    with ScriptedModel(step) as model, EffectServer() as effects:
        shared = Shared(store, model, effects)
        try:
            yield shared
        finally:
            shared.close()


@pytest.fixture
def shared(postgres: Postgres) -> Iterator[Shared]:
    with sharing(postgres.database()) as made:
        yield made


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("MAINSPRING_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed}: set MAINSPRING_TEST_SEED to it to run this again")
    return random.Random(seed)


def test_one_of_two_owners_is_killed_and_the_other_finishes_everything(
    shared: Shared, chance: random.Random
) -> None:
    owners = shared.owners()
    killed = shared.kill_at(chance.randrange(1, SESSION_COUNT * EFFECT_COUNT // 2))
    shared.submitted(SESSION_COUNT).finish()
    dies, stays = sorted(owners, key=lambda each: shared.pids[each] not in killed)
    assert dies.exit_code() == -signal.SIGKILL
    kill(shared.pids[stays], signal.SIGTERM)
    assert stays.exit_code() == 0
    assert stays.said("drained")[0]["cut"] == 0
    assert shared.check() == SESSION_COUNT
    print(f"{shared.effects.count} effects, {shared.effects.repeated()} repeated")


def test_an_owner_that_was_stopped_starts_and_writes_nothing_once_another_took_over(
    shared: Shared, chance: random.Random
) -> None:
    count = 40
    stays = shared.own(lease_s=1.0, sessions_max=count // 2)
    stopped: Worker | None = None
    for number in range(ROUNDS):
        stop_at = chance.randrange(count * EFFECT_COUNT // 4)
        # It stops by itself, between two tools: what is half-way can still arrive.
        stopped = shared.own(stopped, lease_s=1.0, stop_at=stop_at)
        shared.submitted(count, f"r{number}").finish()
        before, effects = shared.logs(), shared.effects.count
        pid = shared.pids[stopped]
        kill(pid, signal.SIGCONT)
        for _ in range(3):
            kill(pid, PING)
            stopped.wait_for("pong")
        assert shared.effects.count == effects
        assert shared.logs() == before
        kill(pid, signal.SIGTERM)
        assert stopped.exit_code() == 0, stopped.lines
        assert shared.effects.count == effects
    assert shared.check() == ROUNDS * count
    assert not stays.said("exit")


def test_an_owner_that_is_told_to_end_cuts_nothing_and_the_other_goes_on_at_once(
    shared: Shared, chance: random.Random
) -> None:
    # With such a lease nobody gets a session that was not let go of.
    owners = shared.owners(lease_s=3600.0)
    at = chance.randrange(1, SESSION_COUNT * EFFECT_COUNT // 2)
    told = shared.kill_at(at, signal.SIGTERM)
    shared.submitted(SESSION_COUNT).finish()
    leaves, stays = sorted(owners, key=lambda each: shared.pids[each] not in told)
    assert leaves.exit_code() == 0
    assert leaves.said("drained")[0]["cut"] == 0
    assert shared.check() == SESSION_COUNT
    assert shared.effects.repeated() == 0
    assert shared.effects.count == SESSION_COUNT * EFFECT_COUNT
    assert unknown_count(shared) == 0
    kill(shared.pids[stays], signal.SIGTERM)
    assert stays.exit_code() == 0


def unknown_count(shared: Shared) -> int:
    """How many tool calls had to be asked about."""
    logs = shared.logs().values()
    return sum(isinstance(event, EffectUnknown) for log in logs for _, event in log)


def test_a_database_that_crashes_under_load_loses_nothing_and_repeats_only_what_was_under_way(
    chance: random.Random,
) -> None:
    with Postgres() as server, sharing(server.database()) as shared:
        shared.owners()
        marks = chance.sample(range(1, SESSION_COUNT * EFFECT_COUNT), ROUNDS)
        with restarting(shared, server, marks):
            shared.submitted(SESSION_COUNT).finish()
        assert shared.check() == SESSION_COUNT
        print(f"{shared.effects.count} effects, {shared.effects.repeated()} repeated")


@contextmanager
def restarting(shared: Shared, server: Postgres, marks: list[int]) -> Iterator[None]:
    """Restarts the server at these counts of effects, from a thread of its own."""
    due = threading.Semaphore(0)

    def look(seen: int, _: int) -> None:
        if seen in marks:
            due.release()

    def restart() -> None:
        for _ in marks:
            due.acquire()
            server.restart()

    shared.effects.on_effect = look
    thread = threading.Thread(target=restart)
    thread.start()
    yield
    thread.join()


def test_connections_that_break_under_load_lose_nothing_and_repeat_nothing(
    postgres: Postgres, chance: random.Random
) -> None:
    store = postgres.database()
    with Proxy(postgres.port) as proxy, sharing(store) as shared:
        shared.owners(store=proxy.url(store))
        total = SESSION_COUNT * EFFECT_COUNT
        marks = set(chance.sample(range(1, total), 20))
        dropped = 0

        def look(seen: int, _: int) -> None:
            nonlocal dropped
            if seen in marks:
                dropped += proxy.drop()

        shared.effects.on_effect = look
        shared.submitted(SESSION_COUNT).finish()
        assert dropped > 0
        assert shared.check() == SESSION_COUNT
        assert shared.effects.repeated() == 0
        assert shared.effects.count == total
