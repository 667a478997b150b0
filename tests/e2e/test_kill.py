"""kill -9 at every point of a run: the session goes on and finishes, and repeats nothing.

The write at which a process dies is chosen exactly: the kernel ends a process that writes past
its file-size limit (SIGXFSZ), in the middle of that write and without any code of ours, and the
journal only ever appends to its write-ahead log. A death right after a write, before anything
follows from it, cannot be told from outside from one in front of what follows: a tool, or a request
to the model; those deaths are SIGKILLs.
"""

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring import Engine, Outcome
from mainspring.testing import Request, ScriptedModel, Step, wait_for
from tests.e2e import worker
from tests.e2e._support import (
    ANSWER,
    Traces,
    Worker,
    check_session,
    kill_model,
    read_log,
    session_of,
    steps_recorded,
    work_step,
)

# Of a write-ahead log: https://sqlite.org/fileformat2.html#the_write_ahead_log
WAL_HEAD_BYTES = 32
FRAME_HEAD_BYTES = 24
# More than a run has, so that a run that never ends is noticed.
DEATHS_MAX = 400


class Bench:
    """A worker, and one empty store for each case."""

    def __init__(self, folder: Path, worker_process: Worker) -> None:
        self.folder = folder
        self.worker = worker_process
        self.traces = Traces(folder / "traces")
        self._template = folder / "template.db"
        asyncio.run(self._make_template())
        head = self._template.read_bytes()[:18]
        self.frame_bytes = FRAME_HEAD_BYTES + int.from_bytes(head[16:18], "big")

    async def _make_template(self) -> None:
        async with Engine(f"sqlite:///{self._template}"):
            pass

    def job(self, session: str, model: ScriptedModel) -> dict[str, Any]:
        """What a job needs for a session in a store of its own."""
        path = self.folder / f"{session}.db"
        if not path.exists():
            shutil.copy(self._template, path)
        return {
            "store": f"sqlite:///{path}",
            "session": session,
            "effects": str(self.traces.path),
            "base_url": model.base_url,
        }

    def wal_bytes(self, *, frame: int, torn_bytes: int = 0) -> int:
        """The size of the write-ahead log at the beginning of a frame, or within it."""
        return WAL_HEAD_BYTES + frame * self.frame_bytes + torn_bytes

    def finish(self, job: dict[str, Any], model: ScriptedModel) -> None:
        """Resumes a session whose process is gone, and checks everything about it."""
        session, store = job["session"], job["store"]
        before = read_log(store, session)
        if self.worker.said("acked"):
            assert before, "an acknowledged start is not in the journal"
        asked = len(_requests(model, session))
        assert asyncio.run(_resume(job, is_new=not before)) == ANSWER
        log = read_log(store, session)
        assert [event for _, event in log[: len(before)]] == [event for _, event in before]
        again = _requests(model, session)[asked:]
        assert not steps_recorded(before) & {request.assistant_count for request in again}
        check_session(log, self.traces.of(session), _requests(model, session))


def _requests(model: ScriptedModel, session: str) -> list[Request]:
    return [request for request in model.requests if session_of(request) == session]


async def _resume(job: dict[str, Any], *, is_new: bool) -> str:
    agent = worker.make_agent(job)
    async with Engine(job["store"]) as engine:
        if is_new:
            run = await engine.start(agent, job["session"], session=job["session"])
        else:
            run = await engine.resume(job["session"], agent)
        return await run.result()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Worker() as worker_process:
        yield Bench(tmp_path, worker_process)


@pytest.mark.parametrize("torn_bytes", [0, 5000], ids=["before-the-write", "within-the-write"])
def test_a_process_killed_at_any_journal_write_loses_and_repeats_nothing(
    bench: Bench, torn_bytes: int
) -> None:
    with kill_model() as model:
        for frame in range(DEATHS_MAX):
            job = bench.job(f"frame-{frame}", model)
            limit = bench.wal_bytes(frame=frame, torn_bytes=torn_bytes)
            bench.worker.begin("one", **job, bytes_max=limit)
            code = bench.worker.exit_code()
            if code == 0:
                break
            assert code == -signal.SIGXFSZ, bench.worker.lines
            try:
                bench.finish(job, model)
            except BaseException as error:
                error.add_note(f"killed at frame {frame} of the write-ahead log")
                raise
        else:
            pytest.fail(f"the run did not end within {DEATHS_MAX} writes")
    # Every commit is one frame at least: the start, and for each step the answer and its results.
    assert frame > 1 + 2 * worker.STEP_COUNT


def test_a_session_finishes_though_every_process_that_runs_it_is_killed(bench: Bench) -> None:
    with kill_model() as model:
        job = bench.job("again", model)
        died_at = []
        frame = 0
        for _ in range(DEATHS_MAX):
            is_new = not read_log(job["store"], "again")
            # A few frames further each time: enough for one commit, and seldom for two.
            frame += 4
            limit = bench.wal_bytes(frame=frame)
            bench.worker.begin("one", **job, resume=not is_new, bytes_max=limit)
            if bench.worker.exit_code() == 0:
                break
            assert not bench.worker.said("raised"), bench.worker.lines
            died_at.append(frame)
        else:
            pytest.fail(f"the session did not finish within {DEATHS_MAX} processes")
        log = read_log(job["store"], "again")
        check_session(log, bench.traces.of("again"), _requests(model, "again"))
    assert len(died_at) > worker.STEP_COUNT
    assert log[-1][0] > worker.STEP_COUNT


@pytest.mark.parametrize("before", [True, False], ids=["before-its-effect", "after-its-effect"])
def test_a_process_killed_inside_a_tool_repeats_only_what_may_be_repeated(
    bench: Bench, *, before: bool
) -> None:
    count = len(worker.EFFECTS) * worker.CALLS_PER_EFFECT
    with kill_model() as model:
        for position in (*range(count), 2 * count, 3 * count - 1):
            job = bench.job(f"tool-{position}", model)
            bench.worker.begin("one", **job, death=[position, before])
            assert bench.worker.exit_code() == -signal.SIGKILL
            try:
                bench.finish(job, model)
            except BaseException as error:
                error.add_note(f"killed inside tool run {position}")
                raise


def test_without_a_function_to_ask_a_person_says_what_became_of_an_unsafe_tool(
    bench: Bench,
) -> None:
    decided = 0
    with kill_model() as model:
        for position in range(len(worker.EFFECTS) * worker.CALLS_PER_EFFECT):
            job = {**bench.job(f"person-{position}", model), "person": True}
            bench.worker.begin("one", **job, death=[position, position % 2 == 0])
            assert bench.worker.exit_code() == -signal.SIGKILL
            session = job["session"]
            decided += asyncio.run(_decide(job, bench.traces))
            log = read_log(job["store"], session)
            check_session(log, bench.traces.of(session), _requests(model, session))
    assert decided > 0


async def _decide(job: dict[str, Any], traces: Traces) -> int:
    """Resumes a session and says what became of its lost calls; gives how many there were."""
    made = {trace["effect_id"] for trace in traces.of(job["session"])}
    async with Engine(job["store"]) as engine:
        run = await engine.resume(job["session"], worker.make_agent(job))
        lost = await run.pending()
        for each in lost:
            assert each.approval is None
            done = Outcome.done(f"{each.tool} done")
            outcome = done if each.effect_id in made else Outcome.not_done()
            await run.resolve(each, outcome, by="a person")
        assert await run.result() == ANSWER
    return len(lost)


def test_a_process_killed_while_a_model_answers_asks_that_model_again_and_no_other(
    bench: Bench,
) -> None:
    held: dict[str, threading.Event] = {}

    def answer(request: Request) -> Step:
        event = held.get(f"{session_of(request)} {request.assistant_count}")
        step = work_step(request)
        return step if event is None else wait_for(event, then=step)

    with ScriptedModel(answer) as model:
        for step in range(worker.STEP_COUNT + 1):
            job = bench.job(f"model-{step}", model)
            event = held[f"model-{step} {step}"] = threading.Event()
            asked = model.request_count
            pid = bench.worker.begin("one", **job)
            model.wait_for_requests(asked + step + 1)
            os.kill(pid, signal.SIGKILL)
            assert bench.worker.exit_code() == -signal.SIGKILL
            event.set()
            bench.finish(job, model)
            steps = [each.assistant_count for each in _requests(model, job["session"])]
            assert steps == sorted([*range(worker.STEP_COUNT + 1), step])
