"""The wall clock jumps by an hour, forwards and back, while sessions run and leases are held.

Timers and leases follow clocks that do not jump: nobody loses a session, everything that waits for
a time goes on, once, and nothing waits for an hour. The clock is that of the processes alone, moved
by a library that the test compiles.
"""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.events import (
    EpochTaken,
    SessionFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallStarted,
)
from mainspring.testing import Request, ScriptedModel, Step, call, calls, fail, say
from tests.e2e._support import Logs, Worker
from tests.e2e.clock import FAILURES
from tests.e2e.effects import EffectServer
from tests.e2e.postgres import Postgres, job_of, kill
from tests.e2e.test_owners import EFFECT_COUNT, sharing

HOUR_S = 3600
# Where the clock goes, one after the other.
JUMPS_S = (HOUR_S, 0, -HOUR_S, HOUR_S, -HOUR_S, 0)
SESSION_COUNT = 40


class Clock:
    """A wall clock for other processes."""

    def __init__(self, folder: Path) -> None:
        library = folder / "clock.so"
        source = Path(__file__).with_name("clock.c")
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        self._file = folder / "offset"
        self.set(0)
        self.env = {"LD_PRELOAD": str(library), "MAINSPRING_TEST_CLOCK": str(self._file)}

    def set(self, offset_s: int) -> None:
        """Makes it jump."""
        new = self._file.with_suffix(".new")
        new.write_text(str(offset_s))
        new.rename(self._file)

    def jump_at(self, effects: EffectServer, *, every: int) -> None:
        """Makes it jump after every so many effects."""

        def look(seen: int, _: int) -> None:
            if seen % every == 0:
                self.set(JUMPS_S[(seen // every) % len(JUMPS_S)])

        effects.on_effect = look


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def outside() -> Iterator[tuple[ScriptedModel, EffectServer]]:
    """A model that is away at first, then calls a tool, then answers; and the tool's server."""

    def step(request: Request) -> Step:
        if request.attempt == 1:
            return fail(503)
        return say("done") if request.assistant_count else calls(call("flaky"))

    with ScriptedModel(step) as model, EffectServer() as effects:
        yield model, effects


def check_timers(store: str, effects: EffectServer, *, owners: int) -> None:
    """Asserts that every session ended after exactly the attempts it was to make."""
    with Logs(store) as logs:
        for session in logs.sessions():
            events = [event for _, event in logs.of(session)]
            kinds = Counter(type(event) for event in events)
            assert isinstance(events[-1], SessionFinished)
            assert kinds[ToolCallStarted] == FAILURES + 1, session
            assert (kinds[ToolCallFailed], kinds[ToolCallFinished]) == (FAILURES, 1)
            assert kinds[EpochTaken] == owners - 1
            assert logs.divergence(session) is None
    ran = Counter((record["session"], record["attempt"]) for record in effects.records)
    assert set(ran.values()) == {1}


def test_timers_fire_once_whatever_the_wall_clock_does(
    tmp_path: Path, clock: Clock, outside: tuple[ScriptedModel, EffectServer]
) -> None:
    model, effects = outside
    store = f"sqlite:///{tmp_path}/one.db"
    sessions = [f"s-{number:03}" for number in range(SESSION_COUNT)]
    clock.jump_at(effects, every=10)
    with Worker(env=clock.env) as process:
        process.begin("clock", **job_of(store, model.base_url, effects.url, sessions=sessions))
        assert process.exit_code() == 0, process.lines
        (results,) = process.said("results")
    assert results["texts"] == ["done"] * SESSION_COUNT
    check_timers(store, effects, owners=1)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S], ids=["forwards", "back"])
def test_sessions_that_waited_when_their_process_died_wait_no_hour_after_a_jump(
    tmp_path: Path, clock: Clock, outside: tuple[ScriptedModel, EffectServer], jump_s: int
) -> None:
    model, effects = outside
    store = f"sqlite:///{tmp_path}/one.db"
    sessions = [f"s-{number:03}" for number in range(SESSION_COUNT)]
    job = job_of(store, model.base_url, effects.url, sessions=sessions)
    with Worker(env=clock.env) as process:
        pid = process.begin("clock", **job)
        # All have called their tool once, and some wait to do so again.
        effects.wait_for(SESSION_COUNT)
        kill(pid)
        assert process.exit_code() == -signal.SIGKILL
        clock.set(jump_s)
        process.begin("clock", **job)
        opened = process.wait_for("open")
        assert abs(opened["time_s"] - time.time() - jump_s) < HOUR_S / 2
        assert process.exit_code() == 0, process.lines
        (results,) = process.said("results")
    assert results["texts"] == ["done"] * opened["resumed"]
    with Logs(store) as logs:
        assert set(logs.sessions().values()) == {"finished"}


def test_leases_change_hands_by_no_jump_of_the_wall_clock(postgres: Postgres, clock: Clock) -> None:
    with sharing(postgres.database()) as shared:
        owners = [shared.own(env=clock.env, lease_s=2.0) for _ in range(2)]
        clock.jump_at(shared.effects, every=20)
        shared.submitted(SESSION_COUNT).finish()
        assert shared.check() == SESSION_COUNT
        # Submitted, then taken by one owner, and by no other.
        assert {log[-1][0] for log in shared.logs().values()} == {2}
        assert shared.effects.repeated() == 0
        assert shared.effects.count == SESSION_COUNT * EFFECT_COUNT
        for owner in owners:
            kill(shared.pids[owner], signal.SIGTERM)
            assert owner.exit_code() == 0
