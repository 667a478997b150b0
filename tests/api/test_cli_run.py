"""`mainspring run` and `resume`: answers, JSON, errors, interruption."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.testing import ScriptedModel, call, calls, fail, hang, say, say_json, wait_for
from tests.api.cli_support import AGENTS, Desk, Done, matches_snapshot

LOOK = calls(
    call("look", path="a.txt"),
    call("boom", number=7),
    call("look", path=5),
    call("nothing"),
    call("look", path="b.txt"),
    text="let me look",
)


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    scripts = {
        "scripted": [LOOK, say("all is well", usage={"input_tokens": 90, "output_tokens": 3})],
        "small": [say("no")],
        "large": [say("yes, because it fits")],
    }
    with ScriptedModel(models=scripts) as served:
        yield served


@pytest.fixture
def desk(tmp_path: Path, model: ScriptedModel) -> Desk:
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    return Desk(tmp_path, model.base_url)


def desk_with(desk: Desk, served: ScriptedModel) -> Desk:
    return Desk(desk.folder, served.base_url)


def last_events(desk: Desk) -> list[dict[str, object]]:
    shown = desk.run("show", "last", "--json")
    return [json.loads(row) for row in shown.out.splitlines()]


def test_run_prints_the_answer_alone_on_standard_output(desk: Desk) -> None:
    done = desk.run("run", "bots:agent", "look around")
    assert (done.code, done.out) == (0, "all is well\n")
    assert "the tool prints" in done.err
    assert "\x1b" not in done.err
    assert (desk.folder / ".mainspring" / ".gitignore").read_text() == "*\n"


def test_run_lines_snapshot(desk: Desk) -> None:
    done = desk.run("run", "bots:agent", "look around", "--session", "s1", "--no-stream")
    # Calls that run side by side end in any order.
    head, tail = done.err.split("side by side\n")
    rows = tail.splitlines(keepends=True)
    tools = sorted(row for row in rows if row.startswith("  tool "))
    others = [row for row in rows if not row.startswith("  tool ") and "prints" not in row]
    text = head.replace("the tool prints\n", "") + "side by side\n" + "".join(tools + others)
    matches_snapshot("cli_run.txt", desk.shown(Done(done.code, done.out, text)))


def test_run_json_is_one_document(desk: Desk) -> None:
    done = desk.run("run", "bots:agent", "look around", "--json", "--session", "s2")
    assert done.code == 0
    assert done.document["usage"].pop("input_tokens") > 90
    assert done.document | {"usage": None} == {
        "session": "s2",
        "status": "finished",
        "output": "all is well",
        "usage": None,
        "cost_usd": None,
        "steps": 2,
        "error": None,
    }


def test_run_json_gives_a_typed_answer_as_a_value(desk: Desk) -> None:
    with ScriptedModel([say_json({"good": True, "why": "it holds"})]) as served:
        own = desk_with(desk, served)
        done = own.run("run", "bots:judge", "judge it", "--json", "--session", "j")
        again = own.run("resume", "j", "--json")
    assert done.document["output"] == {"good": True, "why": "it holds"}
    assert again.document == done.document


def test_a_file_and_an_attribute_path_name_an_agent(desk: Desk, tmp_path: Path) -> None:
    assert desk.run("run", "bots.py:agent", "go").out == "all is well\n"
    assert desk.run("run", "bots:Team.lead", "go").out == "all is well\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = desk.run("run", str(desk.folder / "bots.py") + ":agent", "go", folder=elsewhere)
    assert done.out == "all is well\n"


def test_a_factory_makes_an_agent_and_its_end_is_waited_for(desk: Desk) -> None:
    done = desk.run("run", "bots:opened", "go")
    assert (done.code, done.out) == (0, "all is well\n")
    assert done.err.startswith("opened\nsession ")
    assert done.err.endswith("closed\n")


def test_a_session_takes_a_second_turn(desk: Desk) -> None:
    with ScriptedModel([say("one"), say("two")]) as served:
        own = desk_with(desk, served)
        assert own.run("run", "bots:agent", "first", "--session", "s").out == "one\n"
        assert own.run("run", "bots:agent", "second", "--session", "s").out == "two\n"


def test_input_comes_from_a_pipe(desk: Desk) -> None:
    assert desk.run("run", "bots:agent", "-", told="what is in the pipe").code == 0
    assert last_events(desk)[1]["content"] == [{"type": "text", "text": "what is in the pipe"}]


def test_the_assistant_answers_on_a_named_server(desk: Desk) -> None:
    arguments = ("--base-url", desk.url, "--model", "large")
    done = desk.run("run", "is it so?", *arguments)
    assert (done.code, done.out) == (0, "yes, because it fits\n")
    started = last_events(desk)[0]
    assert started["origin"] == f"builtin:assistant --model large --base-url {desk.url}"


def test_models_of_the_command_line_replace_the_agents_own(desk: Desk) -> None:
    done = desk.run("run", "bots:agent", "go", "--base-url", desk.url, "--model", "large")
    assert done.out == "yes, because it fits\n"


def test_a_refused_answer_goes_to_the_next_model(desk: Desk) -> None:
    done = desk.run("run", "bots:routed", "go")
    assert done.out == "yes, because it fits\n"
    assert "rejected, next model: too short" in done.err


def test_the_key_of_the_environment_is_used_and_never_kept(desk: Desk) -> None:
    with ScriptedModel([say("hello")], api_key="sk-test-71c1") as served:
        arguments = ("--base-url", served.base_url, "--model", "any", "--api-key-env", "MY_KEY")
        done = desk.run("run", "hi there", *arguments, env={"MY_KEY": "sk-test-71c1"})
    assert (done.code, done.out) == (0, "hello\n")
    for path in (desk.folder / ".mainspring").iterdir():
        assert b"sk-test-71c1" not in path.read_bytes()


REFUSED = {
    "missing_module": ("run", "nowhere:agent", "go"),
    "missing_file": ("run", "nowhere.py:agent", "go"),
    "no_attribute_given": ("run", "bots", "go"),
    "missing_attribute": ("run", "bots:nobody", "go"),
    "factory_raises": ("run", "bots:broken", "go"),
    "not_an_agent": ("run", "bots:number", "go"),
    "no_module_name": ("run", "a-b c:agent", "go"),
    "input_missing": ("run", "bots:agent"),
    "input_empty": ("run", "bots:agent", " "),
    "module_raises": ("run", "raises:agent", "go"),
    "module_syntax": ("run", "syntax.py:agent", "go"),
    "module_imports_missing": ("run", "imports:agent", "go"),
    "module_exits": ("run", "exits:agent", "go"),
    "module_bad_agent": ("run", "bad:agent", "go"),
    "no_model": ("run", "what now?"),
    "base_url_alone": ("run", "what now?", "--base-url", "http://127.0.0.1:9/v1"),
    "unknown_model": ("run", "what now?", "--model", "nosuch"),
    "store_folder_missing": ("run", "bots:agent", "go", "--store", "sqlite:///no/such.db"),
    "store_unknown_kind": ("run", "bots:agent", "go", "--store", "mysql://secret@host/db"),
    "session_id_invalid": ("run", "bots:agent", "go", "--session", "no good"),
    "resume_unknown": ("resume", "nobody"),
    "show_unknown": ("show", "nobody"),
    "show_memory": ("show", "last", "--store", "memory:"),
    "sessions_no_store": ("sessions", "--store", "sqlite:///none.db"),
    "unknown_command": ("launch",),
    "unknown_option": ("sessions", "--colour"),
}


def test_refused_use_snapshot(desk: Desk) -> None:
    modules = {
        "raises.py": "x = 1\nraise RuntimeError('boom')\n",
        "syntax.py": "def f(:\n",
        "imports.py": "import nosuchpackage\n",
        "exits.py": "raise SystemExit(3)\n",
        "bad.py": "from mainspring import Agent\nagent = Agent('has space', model='gpt-5.4')\n",
    }
    for name, text in modules.items():
        (desk.folder / name).write_text(text, encoding="utf-8")
    assert desk.run("run", "bots:agent", "go").code == 0
    shown = [
        f"== {name}: mainspring {' '.join(arguments)}\n{desk.shown(desk.run(*arguments))}"
        for name, arguments in REFUSED.items()
    ]
    matches_snapshot("cli_refused.txt", "\n".join(shown))


def test_json_of_a_run_that_cannot_begin(desk: Desk) -> None:
    done = desk.run("run", "bots:nobody", "go", "--json")
    assert done.code == 1
    assert done.document["session"] is None
    assert done.document["status"] == "failed"
    assert done.document["error"]["code"] == "agent_invalid"
    assert done.err.startswith("error: ")


def test_a_failed_run_says_why_and_exits_1(desk: Desk) -> None:
    with ScriptedModel([fail(401, "bad key")]) as served:
        own = desk_with(desk, served)
        done = own.run("run", "bots:agent", "go", "--session", "f")
        again = own.run("resume", "f", "--json")
        shown = own.run("show", "f")
    assert (done.code, done.out) == (1, "")
    assert "error: " in done.err
    assert "look at it: mainspring show f" in done.err
    assert again.code == 1
    assert again.document["error"]["code"] == "model_auth"
    assert "failed" in shown.out


def test_a_read_only_folder_is_told(desk: Desk) -> None:
    (desk.folder / ".mainspring").write_text("a file where the folder should be")
    done = desk.run("run", "bots:agent", "go")
    assert done.code == 1
    assert "cannot be made" in done.err
    assert "hint: " in done.err


def test_debug_shows_the_traceback(desk: Desk) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mainspring.cli", "run", "nowhere:agent", "go"],
        cwd=desk.folder,
        env=desk.env({"MAINSPRING_DEBUG": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def until_there(path: Path, process: "subprocess.Popen[str]") -> None:
    """Waits for a file that the tool writes when it runs."""
    tick = threading.Event()
    while not path.exists():
        assert process.poll() is None, process.communicate()
        tick.wait(0.01)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_can_be_resumed(desk: Desk, sent: signal.Signals) -> None:
    began = desk.folder / "began"
    with ScriptedModel([calls(call("wait", path=str(began))), say("late but well")]) as served:
        own = desk_with(desk, served)
        process = own.start("run", "bots:waiter", "go", "--session", "w")
        until_there(began, process)
        busy = own.run("run", "bots:agent", "go")
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert "interrupted; go on with: mainspring resume w" in err
        listed = own.run("sessions", "--status", "open", "--json")
        assert [each["session"] for each in listed.document] == ["w"]
        # The tool would wait for ever once more. This agent has no such tool, so nothing says what
        # a repetition would do, and a person is asked.
        asked = own.run("resume", "w", "bots:agent")
        assert (asked.code, asked.out) == (3, "")
        assert own.run("effects", "resolve", "w", "--failed", "it is gone").code == 0
        done = own.run("resume", "w", "bots:agent")
    assert (done.code, done.out) == (0, "late but well\n")
    assert busy.code == 1
    assert f"is in use by process {process.pid}" in busy.err
    assert "hint: wait until it ends" in busy.err


def test_resume_finds_the_agent_and_its_models_by_the_origin(desk: Desk, tmp_path: Path) -> None:
    held = threading.Event()
    with ScriptedModel(models={"held": [wait_for(held, then=say("after all"))]}) as served:
        arguments = ("--base-url", served.base_url, "--model", "held", "--session", "h")
        process = desk.start("run", "bots.py:agent", "go", *arguments)
        while not served.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        held.set()
        done = desk.run("resume", "last")
    assert (done.code, done.out) == (0, "after all\n")


def test_a_finished_session_is_not_run_again(desk: Desk, model: ScriptedModel) -> None:
    desk.run("run", "bots:agent", "go", "--session", "done")
    asked = len(model.requests)
    again = desk.run("resume", "done")
    assert (again.code, again.out) == (0, "all is well\n")
    assert "has ended already; nothing is run" in again.err
    assert len(model.requests) == asked


def test_a_session_of_a_program_needs_its_agent_named(desk: Desk) -> None:
    script = "\n".join(
        (
            "import asyncio, os, bots",
            "from mainspring import Engine",
            "async def main():",
            "    async with Engine('sqlite:///own.db') as engine:",
            "        await engine.start(bots.waiter, 'go', session='p')",
            "asyncio.run(main())",
        )
    )
    with ScriptedModel([hang()]) as served:
        env = desk_with(desk, served).env()
        subprocess.run([sys.executable, "-c", script], cwd=desk.folder, env=env, check=True)
    done = desk.run("resume", "p", "--store", "sqlite:///own.db")
    assert done.code == 1
    assert 'session "p" was started by a program, not from a module' in done.err
    named = desk.run("resume", "p", "bots:agent", "--store", "sqlite:///own.db")
    assert (named.code, named.out) == (0, "all is well\n")
