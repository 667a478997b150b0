"""Trouble with the place where the journal is: it is full, read-only, slow; each passes.

What was acknowledged is there afterwards, and every session goes on to its end.
"""

import contextlib
import functools
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.testing import ScriptedModel
from tests.e2e import worker
from tests.e2e._support import ANSWER, Worker, check_all, work_step
from tests.e2e.disk import APART
from tests.e2e.effects import EffectServer
from tests.e2e.postgres import Postgres, Proxy, job_of, kill
from tests.e2e.test_owners import CALLS_PER_EFFECT, EFFECT_COUNT, sharing

# How long a slow store takes for an answer; a lease is far longer, a test's patience too.
LATENCY_S = 1.0


class Apart:
    """A worker with mounts of its own, a model and a counting server."""

    def __init__(self, folder: Path, model: ScriptedModel, effects: EffectServer) -> None:
        self.folder = folder
        self.model = model
        self.effects = effects
        (folder / "disk").mkdir()
        (folder / "copy").mkdir()
        store = f"sqlite:///{folder}/disk/one.db"
        self.job: dict[str, Any] = job_of(
            store, model.base_url, effects.url, folder=f"{folder}/disk", copy=f"{folder}/copy"
        )

    def check(self, sessions: list[str]) -> None:
        """Asserts what must hold of all the sessions."""
        store = f"sqlite:///{self.folder}/copy/one.db"
        by_session = self.effects.by_session()
        count = check_all(store, by_session, self.model.requests, CALLS_PER_EFFECT)
        assert count == len(sessions)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    step = functools.partial(work_step, calls_per_effect=CALLS_PER_EFFECT)
    with ScriptedModel(step) as model, EffectServer() as effects:
        yield Apart(tmp_path, model, effects)


@pytest.mark.parametrize("size", ["600k", "900k"])
def test_a_disk_that_is_full_and_then_larger_loses_nothing(apart: Apart, size: str) -> None:
    sessions = [f"s-{number:03}" for number in range(60)]
    with Worker(within=APART) as process:
        process.begin("small_disk", **apart.job, bytes=size, sessions=sessions)
        full = process.wait_for("full")
        assert set(full["ended"].values()) - {ANSWER} <= {"journal_full", "journal_io"}
        ended = process.wait_for("ended")["ended"]
        assert process.exit_code() == 0, process.lines
    assert ended == dict.fromkeys(sessions, ANSWER)
    apart.check(sessions)


def test_a_disk_that_is_read_only_for_a_while_keeps_everything(apart: Apart) -> None:
    sessions = [f"s-{number:03}" for number in range(20)]
    with Worker(within=APART) as process:
        process.begin("read_only_disk", **apart.job, sessions=sessions, dies_after=20)
        assert process.wait_for("killed")["code"] == -signal.SIGKILL
        assert process.wait_for("refused")["code"] == "journal_read_only"
        results = process.wait_for("ended")["results"]
        assert process.exit_code() == 0, process.lines
    assert set(results) == {ANSWER}
    apart.check(sessions)


def test_a_file_that_another_program_has_locked_for_seconds_delays_and_loses_nothing(
    tmp_path: Path,
) -> None:
    sessions = [f"s-{number:03}" for number in range(20)]
    path = tmp_path / "one.db"
    marks = {20, 100}
    with sharing(f"sqlite:///{path}") as shared, Worker() as process:

        def look(seen: int, _: int) -> None:
            if seen in marks:
                threading.Thread(target=_hold_lock, args=(path,)).start()

        shared.effects.on_effect = look
        job = {**shared.job, "sessions": sessions, "on_loop": False}
        pid = process.begin("load", **job)
        process.wait_for("known")
        kill(pid, worker.GO)
        assert process.exit_code() == 0, process.lines
        assert shared.check() == len(sessions)
        assert shared.effects.repeated() == 0


def _hold_lock(path: Path) -> None:
    """Holds SQLite's lock for writers for a while."""
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        threading.Event().wait(2 * LATENCY_S)
        connection.execute("ROLLBACK")


def test_a_database_that_takes_seconds_for_each_answer_delays_and_repeats_nothing(
    postgres: Postgres,
) -> None:
    store = postgres.database()
    with Proxy(postgres.port) as proxy, sharing(store) as shared:
        owner = shared.own(store=proxy.url(store), lease_s=20 * LATENCY_S)
        proxy.delay_s = LATENCY_S
        # Few, since each is read on its own when it is taken up.
        shared.submitted(4).finish()
        assert shared.check() == 4
        assert shared.effects.repeated() == 0
        assert shared.effects.count == 4 * EFFECT_COUNT
        proxy.delay_s = 0.0
        kill(shared.pids[owner], signal.SIGTERM)
        assert owner.exit_code() == 0
