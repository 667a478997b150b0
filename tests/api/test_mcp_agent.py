"""Agents with MCP servers: which tools a model gets, what it reads, and servers that die."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mainspring import Agent, AgentError, Engine, Event, Mcp, McpError, Outcome, tool
from mainspring.events import ToolCallFailed
from mainspring.testing import Script, ScriptedModel, call, calls, say

NOTES = Path(__file__).parent / "servers" / "notes.py"
GIT = Path(sys.executable).parent / "mcp-server-git"


def notes(folder: Path, **options: Any) -> Mcp:
    return Mcp([sys.executable, str(NOTES), str(folder)], name="notes", **options)


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


async def run(
    script: Script, tools: list[Any], *, session: str | None = None
) -> tuple[list[str], list[dict[str, Any]], list[Event]]:
    """What the model read of the tools' results, which tools it was offered, and the log."""
    with ScriptedModel(script) as model:
        agent = Agent("a", model=model.model(), tools=tools)
        async with Engine("memory:") as engine:
            started = await engine.start(agent, "go", session=session)
            await started.result()
            texts = [m["content"] for m in model.requests[-1].messages if m["role"] == "tool"]
            offered = [each["function"] for each in model.requests[0].tools]
            return texts, offered, await engine.log(started.session)


def test_a_model_calls_the_tools_of_a_server(tmp_path: Path) -> None:
    script = [
        calls(call("read_note", name="first"), call("write_note", name="x", text="abc")),
        calls(call("read_note", name="x")),
        say("done"),
    ]
    texts, offered, _ = asyncio.run(run(script, [notes(tmp_path)]))
    assert texts == ["buy milk", "x has 3 characters", "abc"]
    assert [each["name"] for each in offered] == [
        "read_note",
        "write_note",
        "die",
        "variable",
        "wait",
        "wait_read",
    ]
    assert offered[0] == {
        "name": "read_note",
        "description": "Read a note.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    }
    assert starts(tmp_path) == 1


def test_tools_are_chosen_and_renamed(tmp_path: Path) -> None:
    @tool(effect="read")
    async def read_note(name: str) -> str:
        """Read my own note."""
        return f"mine: {name}"

    server = notes(tmp_path, tools=["read.note"], prefix="other_")
    script = [calls(call("read_note", name="x"), call("other_read_note", name="first")), say("ok")]
    texts, offered, _ = asyncio.run(run(script, [read_note, server]))
    assert texts == ["mine: x", "buy milk"]
    assert [each["name"] for each in offered] == ["read_note", "other_read_note"]


def test_two_servers_with_one_tool_name_need_a_prefix(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel([say("x")]) as model:
            two = [notes(tmp_path), notes(tmp_path, env={"A": "b"})]
            async with Engine("memory:") as engine:
                with pytest.raises(AgentError) as caught:
                    await engine.start(Agent("a", model=model.model(), tools=two), "go")
                assert str(caught.value) == (
                    'agent "a" has two tools of the name "read_note", each needs its own\n'
                    "hint: name one with @tool(name=...), or set a prefix with Mcp(prefix=...)"
                )
                missing = notes(tmp_path, tools=["forget"])
                with pytest.raises(AgentError) as caught:
                    await engine.start(Agent("a", model=model.model(), tools=[missing]), "go")
                assert caught.value.message == (
                    'mcp server "notes" has no tool "forget", '
                    "it has read.note, write.note, die, variable, wait, wait.read"
                )

    asyncio.run(main())


def test_a_server_gets_the_variables_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "hidden")
    script = [
        calls(call("variable", name="GIVEN"), call("variable", name="SECRET_OF_THE_PARENT")),
        say("done"),
    ]
    texts, _, _ = asyncio.run(run(script, [notes(tmp_path, env={"GIVEN": "yes"})]))
    assert texts == ["yes", "not set"]


def test_an_error_of_a_server_is_a_result_for_the_model(tmp_path: Path) -> None:
    script = [
        calls(
            call("read_note", name="nothing"), call("read_note"), call("read_note", name="first")
        ),
        say("done"),
    ]
    texts, _, _ = asyncio.run(run(script, [notes(tmp_path)]))
    assert texts == [
        "Error: there is no note 'nothing'",
        'Error: the arguments of tool "read_note" do not fit: "name" is a required property',
        "buy milk",
    ]


def test_a_server_that_dies_in_a_call_is_started_again_for_the_next(tmp_path: Path) -> None:
    script = [calls(call("die", name="boredom")), calls(call("read_note", name="first")), say("ok")]
    texts, _, log = asyncio.run(run(script, [notes(tmp_path)]))
    (failed,) = [event for event in log if isinstance(event, ToolCallFailed)]
    assert failed.error.code == "mcp_exited"
    assert "dying of boredom" in texts[0]
    assert texts[0].startswith("Error: ")
    assert texts[1] == "buy milk"
    assert starts(tmp_path) == 2


# What the server says of each tool decides whether a call that was lost with its process is made
# again; `wait` never answers, so that the engine is closed in the middle of it.
@pytest.mark.parametrize(
    ("name", "effect", "attempts"),
    [("wait_read", None, 2), ("wait", None, 1), ("wait", "idempotent", 2)],
)
def test_annotations_decide_whether_a_lost_call_is_made_again(
    tmp_path: Path, name: str, effect: Any, attempts: int
) -> None:
    async def main() -> None:
        store = f"sqlite:///{tmp_path / 'journal.db'}"
        server = notes(tmp_path, tools=["wait", "wait.read"], effect=effect)
        with ScriptedModel([calls(call(name, name="x")), say("done")]) as model:
            agent = Agent("a", model=model.model(), tools=[server])
            async with Engine(store) as engine:
                run = await engine.start(agent, "go")
                async for event in run.events():
                    if event.kind == "tool_call_started":
                        break
            (tmp_path / "answers").touch()
            async with Engine(store, agents=[agent]) as engine:
                resumed = engine.resumed[0]
                if attempts == 1:
                    (lost,) = await resumed.pending()
                    await resumed.resolve(lost, Outcome.failed("it did not answer"))
                assert await resumed.result() == "done"
                log = await engine.log(run.session)
            assert [event.kind for event in log].count("tool_call_started") == attempts
            (text,) = [m["content"] for m in model.requests[-1].messages if m["role"] == "tool"]
            assert text.startswith("x" if attempts == 2 else "Error: it did not answer")

    asyncio.run(main())


def test_a_server_that_cannot_be_started_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with ScriptedModel([say("x")]) as model:
            async with Engine("memory:") as engine:
                for server in (Mcp([str(tmp_path / "nothing")]), Mcp([sys.executable, "-c", ""])):
                    agent = Agent("a", model=model.model(), tools=[server])
                    with pytest.raises(McpError) as caught:
                        await engine.start(agent, "go")
                    assert caught.value.code == "mcp_start_failed"
                assert await engine.sessions() == []

    asyncio.run(main())


def test_sessions_of_an_engine_share_a_server(tmp_path: Path) -> None:
    async def main() -> None:
        script = [calls(call("read_note", name="first")), say("done")]
        with ScriptedModel(script) as model:
            agents = [
                Agent(name, model=model.model(), tools=[notes(tmp_path)]) for name in ("a", "b")
            ]
            async with Engine("memory:") as engine:
                runs = await asyncio.gather(*[engine.start(a, "go") for a in agents * 20])
                assert {await run.result() for run in runs} == {"done"}

    asyncio.run(main())
    assert starts(tmp_path) == 1


def test_the_reference_git_server_works(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "a.txt").write_text("hello\n")
    git("add", "a.txt")
    git("commit", "--quiet", "--message", "say hello")
    server = Mcp([str(GIT)], tools=["git_log", "git_status"])
    path = str(tmp_path)
    script = [calls(call("git_log", repo_path=path), call("git_status", repo_path=path)), say("ok")]
    (log, status), offered, _ = asyncio.run(run(script, [server]))
    assert [each["name"] for each in offered] == ["git_status", "git_log"]
    assert "say hello" in log
    assert "nothing to commit, working tree clean" in status
