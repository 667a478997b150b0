"""`mainspring worker` and `run --submit`: stored turns are run, and a signal drains."""

import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from mainspring.testing import ScriptedModel, call, calls, hang, say, wait_for
from tests.api.cli_support import AGENTS, Desk, matches_snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


def ready(desk: Desk, *arguments: str) -> "subprocess.Popen[str]":
    """Starts a worker, and waits until it is ready."""
    process = desk.start("worker", "bots:agent", "bots:waiter", *arguments)
    assert line(process).startswith("worker ready for looker, waiter")
    return process


def line(process: "subprocess.Popen[str]") -> str:
    """The next line of standard error that is not what a tool prints."""
    assert process.stderr is not None
    while (text := process.stderr.readline()) == "the tool prints\n":
        pass
    assert text, process.communicate()
    return text


def end(process: "subprocess.Popen[str]", sent: signal.Signals = signal.SIGTERM) -> None:
    """Tells a worker to end, and waits until it drains."""
    process.send_signal(sent)
    assert line(process).startswith("told to end; what runs has ")


def status(desk: Desk, session: str) -> str:
    listed = {each["session"]: each for each in desk.run("sessions", "--json").document}
    return str(listed[session]["status"])


def submit(desk: Desk, session: str, agent: str = "bots:agent") -> None:
    done = desk.run("run", agent, "go", "--session", session, "--submit")
    assert (done.code, done.out) == (0, f"{session}\n"), done.err


def test_a_submitted_turn_is_stored_and_not_run(folder: Path) -> None:
    with ScriptedModel([say("done")]) as served:
        desk = Desk(folder, served.base_url)
        done = desk.run("run", "bots:agent", "go", "--submit", "--json", "--session", "s1")
        assert (done.code, done.document["status"]) == (0, "open")
        assert served.requests == []
        told = desk.run("run", "bots:agent", "go", "--submit", "--session", "s2")
        assert told.err.endswith("a worker of the store runs it, or: mainspring resume s2\n")
        assert desk.run("resume", "s1").out == "done\n"
    assert "resumed  by owner 2\n" in desk.run("show", "s1").out


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_runs_what_was_submitted_until_it_is_told_to_end(
    folder: Path, sent: signal.Signals
) -> None:
    script = [calls(call("look", path="a.txt")), say("done")]
    with ScriptedModel(script) as served:
        desk = Desk(folder, served.base_url)
        submit(desk, "s1")
        submit(desk, "s2")
        process = ready(desk)
        while {status(desk, "s1"), status(desk, "s2")} != {"finished"}:
            assert process.poll() is None, process.communicate()
        end(process, sent)
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "drained: 0 finished, 0 parked, 0 cut\n"), err
    assert desk.run("resume", "s2").out == "done\n"


def test_a_step_under_way_ends_and_its_session_is_let_go_of(folder: Path) -> None:
    held = threading.Event()
    script = [wait_for(held, then=calls(call("look", path="a.txt"))), say("done")]
    with ScriptedModel(script) as served:
        desk = Desk(folder, served.base_url)
        submit(desk, "s1")
        process = ready(desk, "--drain-s", "600", "--json")
        until_asked(served, process)
        end(process)
        held.set()
        out, err = process.communicate()
        assert (process.returncode, json.loads(out)) == (
            0,
            {"finished": 0, "parked": 1, "cut": 0},
        ), err
        assert status(desk, "s1") == "open"
        assert desk.run("resume", "s1").out == "done\n"
        assert len(served.requests) == 2, "the recorded answer is not asked for again"


def test_what_does_not_end_in_time_is_cut_and_can_be_resumed(folder: Path) -> None:
    with ScriptedModel([hang()]) as served:
        desk = Desk(folder, served.base_url)
        submit(desk, "s1")
        process = ready(desk, "--drain-s", "0")
        until_asked(served, process)
        end(process)
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "drained: 0 finished, 0 parked, 1 cut\n"), err
    with ScriptedModel([say("done")]) as served:
        assert Desk(folder, served.base_url).run("resume", "s1").out == "done\n"


def test_a_worker_leaves_sessions_of_other_agents_alone(folder: Path) -> None:
    with ScriptedModel([say("done")]) as served:
        desk = Desk(folder, served.base_url)
        submit(desk, "s1", "bots:judge")
        submit(desk, "s2")
        process = ready(desk)
        while status(desk, "s2") != "finished":
            assert process.poll() is None, process.communicate()
        end(process)
        process.communicate()
    assert status(desk, "s1") == "open"
    assert [each.model for each in served.requests] == ["scripted"]


def test_a_changed_agent_is_refused_if_that_is_asked_for(folder: Path) -> None:
    with ScriptedModel([say("done")]) as served:
        desk = Desk(folder, served.base_url)
        submit(desk, "s1")
        bots = folder / "bots.py"
        bots.write_text(bots.read_text().replace('"Look."', '"Look well."'))
        refusing = ready(desk, "--on-change", "refuse")
        end(refusing)
        refusing.communicate()
        assert (status(desk, "s1"), served.requests) == ("open", [])
        pinning = ready(desk, "--on-change", "pin")
        while status(desk, "s1") != "finished":
            assert pinning.poll() is None, pinning.communicate()
        end(pinning)
        pinning.communicate()
    assert served.requests[0].messages[0]["content"] == "Look."


def until_asked(served: ScriptedModel, process: "subprocess.Popen[str]") -> None:
    tick = threading.Event()
    while not served.requests:
        assert process.poll() is None, process.communicate()
        tick.wait(0.01)


REFUSED = {
    "no_agent": ("worker",),
    "unknown_agent": ("worker", "bots:nobody"),
    "unknown_module": ("worker", "nowhere:agent"),
    "one_name_twice": ("worker", "bots:agent", "bots:Team.lead"),
    "drain_no_number": ("worker", "bots:agent", "--drain-s", "soon"),
    "drain_negative": ("worker", "bots:agent", "--drain-s", "-1"),
    "on_change_unknown": ("worker", "bots:agent", "--on-change", "guess"),
    "memory": ("worker", "bots:agent", "--store", "memory:"),
    "folder_missing": ("worker", "bots:agent", "--store", "sqlite:///no/such.db"),
    "submit_memory": ("run", "bots:agent", "go", "--submit", "--store", "memory:"),
}


def test_refused_workers_snapshot(folder: Path) -> None:
    desk = Desk(folder, "http://127.0.0.1:9/v1")
    shown = [
        f"== {name}: mainspring {' '.join(arguments)}\n{desk.shown(desk.run(*arguments))}"
        for name, arguments in REFUSED.items()
    ]
    matches_snapshot("cli_worker_refused.txt", "\n".join(shown))


def test_a_second_worker_of_a_file_is_refused(folder: Path) -> None:
    with ScriptedModel([say("done")]) as served:
        desk = Desk(folder, served.base_url)
        process = ready(desk)
        second = desk.run("worker", "bots:agent")
        end(process)
        process.communicate()
    assert (second.code, second.out) == (1, "")
    assert f"is in use by process {process.pid}" in second.err
