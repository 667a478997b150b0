"""The demonstration on its scripted models: the agent, its tools, its check, and a crash.

Invariant: the repository is a small one made here, so that every number is known.
"""

import asyncio
import json
import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mainspring import AgentError, Answer, Engine, Event, Tool, ToolError
from mainspring.demo import Check, default_question, repository, scripted
from mainspring.events import AnswerRejected, ModelCallFinished, RouteDecided
from mainspring.models import ToolCall

COMMAND = [sys.executable, "-m", "mainspring.cli"]
QUESTION = (
    "How many lines has a.md, what does b.md say about ports, and what does the last commit say?"
)
STORE = "sqlite:///.mainspring/mainspring.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.md").write_text("one\ntwo\nthree\n")
    (tmp_path / "b.md").write_text("# Ports\nThe server listens on two ports, 80 and 443.\n")
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "Add two pages"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_demo(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "demo", "--question", QUESTION, *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environ}
    )


def sessions_and_log() -> tuple[Any, list[Event]]:
    async def read() -> tuple[Any, list[Event]]:
        async with Engine(STORE) as engine:
            (session,) = await engine.sessions()
            return session, await engine.log(session.session)

    return asyncio.run(read())


def test_fast_mode_says_first_that_no_model_is_asked_and_answers_from_real_results(
    project: Path,
) -> None:
    done = run_demo("--fast")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "scripted model: no real model is asked; --fast was given"
    assert done.stdout.splitlines() == [
        "From a script, not from a model:",
        "- a.md has 3 lines",
        "- b.md: | line 1: # Ports | line 2: The server listens on two ports, 80 and 443.",
        "- the last commit says: Add two pages",
    ]
    assert "it says that a.md has 4 lines, it has 3" in done.stderr
    assert lines[-2].startswith("look at it: mainspring show ")
    assert lines[-1].endswith(" sessions")


def test_three_calls_run_in_one_step_and_the_larger_model_takes_over(project: Path) -> None:
    assert run_demo("--fast").returncode == 0
    session, log = sessions_and_log()
    assert (session.agent, session.origin) == ("demo", "mainspring.demo:scripted")
    assert [event.model for event in log if isinstance(event, RouteDecided)] == [
        "scripted-small",
        "scripted-large",
    ]
    assert [event.action for event in log if isinstance(event, AnswerRejected)] == ["escalate"]
    kinds = [event.kind for event in log if event.kind.startswith("tool_call")]
    assert kinds == ["tool_call_started"] * 3 + ["tool_call_finished"] * 3


def test_json_is_one_document(project: Path) -> None:
    done = run_demo("--fast", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "finished"
    assert "- a.md has 3 lines" in document["output"]


def test_a_machine_where_nothing_can_be_pulled_runs_on_the_script_and_says_why(
    project: Path,
) -> None:
    # A folder that no user can make.
    done = run_demo(MAINSPRING_CACHE="/dev/null/cache")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("scripted model: no real model is asked; ")
    assert "cache" in first or "not installed" in first
    assert "- a.md has 3 lines" in done.stdout


def test_a_killed_demo_goes_on_and_repeats_no_recorded_step(project: Path) -> None:
    command = [*COMMAND, "demo", "--fast", "--question", QUESTION]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "check   rejected" not in (line := process.stderr.readline()):
            assert line, "the demo ended before its first answer was rejected"
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        found = {int(child) for each in children for child in each.read_text().split()}
        descriptors = [os.pidfd_open(child) for child in found]
        process.kill()
    assert descriptors, "the MCP server is a child"
    for descriptor in descriptors:
        # Readable once the child has ended: it does not outlive the killed demo.
        select.select([descriptor], [], [])
        os.close(descriptor)

    (_, before) = sessions_and_log()
    assert before[-1].kind != "session_finished"

    resumed = subprocess.run(
        [*COMMAND, "resume", "last"], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "- a.md has 3 lines" in resumed.stdout
    (_, after) = sessions_and_log()
    assert after[: len(before)] == before
    counts = Counter(event.kind for event in after)
    assert counts["tool_call_started"] == counts["tool_call_finished"] == 3
    finished = [event.step for event in after if isinstance(event, ModelCallFinished)]
    assert finished == [0, 1, 2]


def test_outside_of_a_repository_the_demo_says_where_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_demo("--fast")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f'error: the demo answers questions about a git repository, "{tmp_path}" is in none',
        "hint: go to a folder of one that has commits",
    ]


def test_repository_is_the_root_above_a_folder(project: Path) -> None:
    (project / "deep" / "er").mkdir(parents=True)
    assert repository(project / "deep" / "er") == project
    with pytest.raises(AgentError):
        repository(Path("/proc"))


def test_default_question_is_about_files_that_are_there(project: Path) -> None:
    assert default_question(project) == "What is the message of the last commit?"
    (project / "README.md").write_text("x\n")
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    assert default_question(project) == (
        "What is the message of the last commit, and how many lines has README.md?"
    )


def said(text: str, *, step: int = 1) -> Answer:
    return Answer(text, (), "m", step)


def called(*paths: str) -> Answer:
    return Answer("", tuple(ToolCall("count_lines", {"path": path}) for path in paths), "m", 0)


NAMED = "a.md and b.md: "
VERDICTS: dict[str, tuple[Answer, str | None]] = {
    "right": (said(NAMED + "a.md has 3 lines, commit 'Add two pages'"), None),
    "two calls": (called("a.md", "b.md"), None),
    "empty": (said(" \n"), "the answer is empty"),
    "no sentence": (said("3 lines"), 'it says only "3 lines", a sentence was asked for'),
    "no tool": (said(NAMED, step=0), "it answered before it used any tool"),
    "same call twice": (
        called("a.md", "a.md"),
        "it called count_lines twice with the same arguments",
    ),
    "no such file": (called("c.md"), 'it asked for "c.md", which is no file of the repository'),
    "outside": (
        called("/etc/passwd"),
        'it asked for "/etc/passwd", which is no file of the repository',
    ),
    "left out": (
        said("a.md has 3 lines"),
        "the question asks about b.md, the answer does not name it",
    ),
    "wrong count": (said(NAMED + "`a.md` has 5 lines"), "it says that a.md has 5 lines, it has 3"),
    "wrong count, turned": (
        said(NAMED + "there are 12 lines in the b.md"),
        "it says that b.md has 12 lines, it has 2",
    ),
    "quoted right": (said(NAMED + "it says 'The server listens on two ports'"), None),
    "quoted wrong": (
        said(NAMED + 'the commit says "Add three pages"'),
        'it quotes "Add three pages", which neither a named file nor a late commit says',
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_check_finds_what_can_be_shown_to_be_wrong(project: Path, case: str) -> None:
    answer, problem = VERDICTS[case]
    assert Check(project, QUESTION).problem(answer) == problem


def test_check_without_the_question_asks_for_no_part_of_it(project: Path) -> None:
    assert Check(project).problem(said("a.md has 3 lines")) is None
    assert Check(project).problem(said("a.md has 4 lines")) is not None


async def ask(name: str, **arguments: str) -> Any:
    with scripted() as agent:
        (tool,) = [each for each in agent.tools if isinstance(each, Tool) and each.name == name]
        result = tool(**arguments)
        return await result if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/hostname", "link.txt"])
def test_tools_stay_in_the_repository(project: Path, path: str) -> None:
    (project.parent / "secret.txt").write_text("secret\n")
    (project / "link.txt").symlink_to("../secret.txt")
    for name, more in (("count_lines", {}), ("find_text", {"text": "s"})):
        with pytest.raises(ToolError, match="is outside of the repository"):
            asyncio.run(ask(name, path=path, **more))
