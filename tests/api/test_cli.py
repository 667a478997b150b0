"""The command line beside `run`: help, show, sessions, doctor, pipes, the live view."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.cli import COMMANDS, load_command
from mainspring.testing import ScriptedModel, call, calls, say, wait_for
from tests.api.cli_support import AGENTS, Desk, command, matches_snapshot

HELP_PAGES = (
    "run",
    "resume",
    "effects",
    "effects list",
    "effects approve",
    "effects deny",
    "effects resolve",
    "fork",
    "sessions",
    "show",
    "replay",
    "prune",
    "worker",
    "doctor",
)


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    script = [
        calls(call("look", path="a.txt"), text="let me look"),
        calls(call("boom", number=7)),
        say("all is well\x1b[2J", usage={"input_tokens": 9, "output_tokens": 3}),
    ]
    with ScriptedModel(script) as served:
        yield served


@pytest.fixture
def desk(tmp_path: Path, model: ScriptedModel) -> Desk:
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    return Desk(tmp_path, model.base_url)


def test_help_snapshot(desk: Desk) -> None:
    pages = [desk.run("--help"), *(desk.run(*page.split(), "--help") for page in HELP_PAGES)]
    assert {page.code for page in pages} == {0}
    matches_snapshot("cli_help.txt", "\n".join(page.out for page in pages))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_list_of_commands_says_what_each_command_says(name: str) -> None:
    loaded = load_command(COMMANDS[name])
    assert (loaded.help or "").strip().splitlines()[0] == COMMANDS[name].help


def test_help_loads_no_engine_and_no_rich(desk: Desk) -> None:
    code = (
        "import sys, contextlib\nfrom mainspring.cli import main\n"
        "sys.argv = ['mainspring', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "late = {'mainspring.engine', 'mainspring._native', 'rich', 'asyncio'}\n"
        "sys.exit(f'loaded: {late & set(sys.modules)}' if late & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=desk.env(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_version(desk: Desk) -> None:
    assert re.fullmatch(r"mainspring \d+\.\d+\.\d+\S*\n", desk.run("--version").out)


def test_no_arguments_is_wrong_use(desk: Desk) -> None:
    assert desk.run().code == 2


def test_show_snapshot(desk: Desk) -> None:
    assert desk.run("run", "bots:agent", "look around", "--session", "s1", "--no-stream").code == 0
    matches_snapshot("cli_show.txt", desk.shown(desk.run("show", "s1")))


def test_show_json_is_the_log(desk: Desk) -> None:
    desk.run("run", "bots:agent", "look around", "--session", "s1")
    done = desk.run("show", "last", "--json")
    events = [json.loads(row) for row in done.out.splitlines()]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert events[0]["kind"] == "session_started"
    assert events[0]["origin"] == "bots:agent"
    assert events[-1]["kind"] == "session_finished"


def test_a_session_is_found_by_the_beginning_of_its_id(desk: Desk) -> None:
    for name in ("blue-1", "blue-2", "red-1"):
        desk.run("run", "bots:agent", "go", "--session", name)
    assert desk.run("show", "red").out.startswith("session  red-1\n")
    assert desk.run("show", "last").out.startswith("session  red-1\n")
    done = desk.run("show", "blue")
    assert done.code == 1
    assert '2 sessions begin with "blue"' in done.err


def test_sessions_snapshot(desk: Desk) -> None:
    desk.run("run", "bots:agent", "go", "--session", "one")
    desk.run("run", "bots:Team.lead", "go", "--session", "two")
    listed = desk.run("sessions")
    cut = desk.run("sessions", "--limit", "1")
    none = desk.run("sessions", "--status", "failed")
    text = "\n".join(desk.shown(each) for each in (listed, cut, none))
    matches_snapshot("cli_sessions.txt", text)


def test_sessions_json(desk: Desk) -> None:
    desk.run("run", "bots:agent", "go", "--session", "one", "--store", "sqlite:///own.db")
    (listed,) = desk.run(
        "sessions", "--json", env={"MAINSPRING_STORE": "sqlite:///own.db"}
    ).document
    assert listed["session"] == "one"
    assert listed["status"] == "finished"
    assert listed["origin"] == "bots:agent"
    assert listed["created_us"] <= listed["updated_us"]


def test_a_store_is_read_beside_the_engine_that_writes_it(desk: Desk) -> None:
    held = threading.Event()
    with ScriptedModel([wait_for(held, then=say("done"))]) as served:
        own = Desk(desk.folder, served.base_url)
        process = own.start("run", "bots:agent", "go", "--session", "s")
        # The line is printed once the session is durable.
        assert process.stderr is not None
        assert process.stderr.readline() == "session s  agent looker\n"
        listed = own.run("sessions", "--json").document
        held.set()
        out, _ = process.communicate(timeout=60)
    assert [(each["session"], each["status"]) for each in listed] == [("s", "open")]
    assert out == "done\n"


def test_a_reader_that_goes_away_is_no_error(desk: Desk) -> None:
    desk.run("run", "bots:agent", "go", "--session", "s")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(["show", "s", "--json"]),
            cwd=desk.folder,
            env=desk.env(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_doctor_tries_everything_and_shows_no_key(desk: Desk) -> None:
    secret = "sk-doctor-5f0c"
    done = desk.run("doctor", "--json", env={"OPENAI_API_KEY": secret})
    assert done.code == 0
    assert secret not in done.out + done.err
    found = {each["name"]: each for each in done.document}
    assert {"python", "engine", "store", "cores", "files", "keys", "git"} <= set(found)
    assert found["keys"]["detail"] == "OPENAI_API_KEY set (not tried)"
    assert "fsync" in found["store"]["detail"]
    assert {each["state"] for each in done.document} <= {"ok", "warn", "fail"}
    assert all(each["cure"] for each in done.document if each["state"] != "ok")
    assert not list(desk.folder.glob(".mainspring*")), "the doctor leaves nothing behind"


def test_doctor_fails_where_no_store_can_be(desk: Desk) -> None:
    (desk.folder / "plain").write_text("")
    done = desk.run("doctor", "--store", "sqlite:///plain/x.db")
    assert done.code == 1
    assert re.search(r"^fail +store ", done.out, re.MULTILINE)


def on_terminal(desk: Desk, arguments: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Runs the command with standard error and output on a terminal, and gives what it drew."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(arguments),
        cwd=desk.folder,
        env=desk.env({"TERM": "xterm-256color", **env}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    drawn = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                chunk = os.read(ours, 65_536)
            except OSError:
                # Linux says so when the last program has let go of the terminal.
                break
            if not chunk:
                break
            drawn += chunk
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return process.returncode, drawn.decode()


def test_the_live_view_draws_on_a_terminal(desk: Desk) -> None:
    code, drawn = on_terminal(desk, ["run", "bots:agent", "go"], {})
    assert code == 0
    assert "\x1b[?25l" in drawn, "the cursor is hidden while the view is live"
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "and shown again"
    assert "\x1b[36mscripted" in drawn
    assert "the tool prints" in drawn
    # What the model wrote must not clear the person's screen.
    assert "\x1b[2J" not in drawn
    assert "all is well\ufffd[2J" in drawn


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_colours_gets_plain_lines(desk: Desk, env: dict[str, str]) -> None:
    code, drawn = on_terminal(desk, ["run", "bots:agent", "go"], env)
    assert code == 0
    assert "\x1b" not in drawn
    assert "step 0  scripted" in drawn
    code, shown = on_terminal(desk, ["show", "last"], env)
    assert code == 0
    assert "\x1b" not in shown
