"""kill -9 at random, two hundred sessions at once, again and again; effects are counted outside.

Each death comes at a count of effects, drawn from a seed that a failure prints. The number of
deaths is bounded: `MAINSPRING_CRASH_ROUNDS`, or `make crash ROUNDS=n`, asks for more than a few.
"""

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e import worker
from tests.e2e._support import Worker
from tests.e2e.postgres import Postgres, kill
from tests.e2e.test_owners import EFFECT_COUNT, SESSION_COUNT, Shared, sharing

ROUNDS = int(os.environ.get("MAINSPRING_CRASH_ROUNDS", "3"))


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("MAINSPRING_TEST_SEED", random.randrange(2**32)))
    print(f"seed {seed}: set MAINSPRING_TEST_SEED to it to run this again")
    return random.Random(seed)


class Deaths:
    """Kills the process whose effect is at one of some counts."""

    def __init__(self, chance: random.Random) -> None:
        # Spread over the whole run, so that each death finds sessions in the midst of their work.
        total = SESSION_COUNT * EFFECT_COUNT
        self._marks = {total * (n + 1) // (ROUNDS + 1) + chance.randrange(9) for n in range(ROUNDS)}

    def look(self, seen: int, pid: int) -> None:
        """Kills at a mark; called with each effect."""
        if seen in self._marks:
            kill(pid)


def report(shared: Shared, deaths: int) -> None:
    """Says what happened, for whoever runs many rounds."""
    made, again = shared.effects.count, shared.effects.repeated()
    print(
        f"{deaths} deaths, {SESSION_COUNT} sessions, {made} effects, {again} repeated, "
        f"{SESSION_COUNT * EFFECT_COUNT - (made - again)} lost"
    )


def test_sessions_in_a_file_survive_every_death_of_their_process(
    tmp_path: Path, chance: random.Random
) -> None:
    with sharing(f"sqlite:///{tmp_path}/one.db") as shared, Worker() as process:
        shared.effects.on_effect = Deaths(chance).look
        sessions = [f"s-{number:03}" for number in range(SESSION_COUNT)]
        deaths, code = 0, -signal.SIGKILL
        while code != 0:
            pid = process.begin("load", **{**shared.job, "sessions": sessions, "on_loop": False})
            # Threads run the first tools as soon as the store is open.
            if process.reached("known"):
                kill(pid, worker.GO)
            code = process.exit_code()
            assert code in (0, -signal.SIGKILL), process.lines
            deaths += code != 0
        report(shared, deaths)
        assert deaths == ROUNDS
        assert shared.check() == SESSION_COUNT


class Reviver:
    """Begins the job of each process again whenever it was killed; a context manager."""

    def __init__(self, shared: Shared, **job: Any) -> None:
        self.deaths = 0
        self._shared = shared
        self._job = job
        self._owners = shared.owners(**job)
        self._threads = [
            threading.Thread(target=self._revive, args=(owner,)) for owner in self._owners
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for owner in self._owners:
            kill(self._shared.pids[owner], signal.SIGTERM)
        for thread in self._threads:
            thread.join()

    def _revive(self, owner: Worker) -> None:
        while owner.exit_code() == -signal.SIGKILL:
            self.deaths += 1
            self._shared.own(owner, sessions_max=SESSION_COUNT // 2, **self._job)


def test_sessions_of_two_processes_survive_every_death_of_one(
    postgres: Postgres, chance: random.Random
) -> None:
    with sharing(postgres.database()) as shared:
        shared.effects.on_effect = Deaths(chance).look
        with Reviver(shared, on_loop=False, lease_s=1.0) as reviver:
            shared.submitted(SESSION_COUNT).finish()
        report(shared, reviver.deaths)
        assert reviver.deaths == ROUNDS
        assert shared.check() == SESSION_COUNT
