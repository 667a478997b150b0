"""The demonstration on the real models; `make test-models` runs this, `make test` does not.

Invariant: what comes out is judged by its form, by the log and by the processes, never by how
clever it is: a small model may fail to answer, and then the demo must say so.
"""

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainspring import Answer, Engine, Event
from mainspring.demo import MODELS, Check
from mainspring.events import ModelCallFinished, RouteDecided
from mainspring.local import pull

QUESTION = (
    "How many lines has a.md, what does b.md say about ports, and what does the last commit say?"
)
STORE = "sqlite:///.mainspring/mainspring.db"
COMMAND = [sys.executable, "-m", "mainspring.cli", "demo", "--question", QUESTION]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in MODELS:
        pull(name)
    (tmp_path / "a.md").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.md").write_text("# Ports\nThe server listens on two ports, 80 and 443.\n")
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "Add two pages"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def session_and_log() -> tuple[Any, list[Event]]:
    async def read() -> tuple[Any, list[Event]]:
        async with Engine(STORE) as engine:
            (session,) = await engine.sessions()
            return session, await engine.log(session.session)

    return asyncio.run(read())


def children_of(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [os.pidfd_open(int(child)) for each in files for child in each.read_text().split()]


def wait_until_gone(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        select.select([descriptor], [], [])
        os.close(descriptor)


def check_log(log: list[Event], check: Check) -> None:
    routed = [event.model for event in log if isinstance(event, RouteDecided)]
    assert routed in ([MODELS[0]], list(MODELS))
    answers = [event for event in log if isinstance(event, ModelCallFinished)]
    assert all(each.usage.input_tokens > 0 and each.timing.total_us > 0 for each in answers)
    if log[-1].kind == "session_finished":
        last = answers[-1]
        answer = Answer(last.answer.text, (), routed[-1], last.step)
        assert check.problem(answer) is None
        assert any(event.kind == "tool_call_finished" for event in log)
    else:
        assert log[-1].kind == "session_failed"


def test_demo_asks_the_real_models_and_tells_how_it_ended(project: Path) -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert "scripted" not in done.stderr
    session, log = session_and_log()
    assert session.origin == "mainspring.demo:local"
    check_log(log, Check(project, QUESTION))
    assert (done.returncode == 0) == (session.status == "finished"), done.stderr
    assert bool(done.stdout.strip()) == (session.status == "finished")


def test_killed_demo_leaves_no_process_and_goes_on(project: Path) -> None:
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("  model "):
            assert line, "the demo ended before a model answered"
        descriptors = children_of(process.pid)
        process.kill()
    # Two model servers and the MCP server.
    assert len(descriptors) >= 3
    wait_until_gone(descriptors)
    _, before = session_and_log()

    subprocess.run([*COMMAND[:3], "resume", "last"], check=False)
    _, after = session_and_log()
    assert after[: len(before)] == before
    # Whoever resumes does not know the question.
    check_log(after, Check(project))
