"""`mainspring fork`, `replay` and `show --at`: from any point on, and as of any point."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.testing import Request, ScriptedModel, Step, call, calls, fail, say
from tests.api.cli_support import AGENTS, Desk, matches_snapshot


def answers(request: Request) -> Step:
    """Says what it was told, after it has looked."""
    told = [each["content"] for each in request.messages if each["role"] in ("user", "tool")]
    if len(told) == 1:
        return calls(call("look", path="a.txt"))
    return say(f"{request.model}: {' / '.join(str(each) for each in told)}")


@pytest.fixture
def served() -> Iterator[ScriptedModel]:
    with ScriptedModel(models={"scripted": answers, "large": answers}) as model:
        yield model


@pytest.fixture
def desk(tmp_path: Path, served: ScriptedModel) -> Desk:
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    desk = Desk(tmp_path, served.base_url)
    done = desk.run("run", "bots:agent", "look around", "--session", "s1", "--no-stream")
    assert (done.code, done.out) == (0, "scripted: look around / a.txt is fine\n"), done.err
    return desk


def kinds(desk: Desk, session: str, *options: str) -> list[str]:
    shown = desk.run("show", session, "--json", *options)
    return [json.loads(row)["kind"] for row in shown.out.splitlines()]


def seq_of(desk: Desk, kind: str) -> str:
    """The position of the first event of a kind in the session s1."""
    return str(kinds(desk, "s1").index(kind))


def test_a_fork_goes_on_from_the_event_with_other_words(desk: Desk, served: ScriptedModel) -> None:
    before = kinds(desk, "s1")
    asked = len(served.requests)
    at = seq_of(desk, "tool_call_finished")
    edit = ("--at", at, "--edit", "a.txt is torn")
    done = desk.run("fork", "s1", *edit, "--session", "f1")
    assert (done.code, done.out) == (0, "scripted: look around / a.txt is torn\n"), done.err
    assert "forked  from s1, edited: a.txt is torn\n" in done.err
    assert len(served.requests) == asked + 1, "what was recorded is not asked for again"
    assert kinds(desk, "s1") == before
    (listed,) = [each for each in desk.run("sessions", "--json").document if each["parent"]]
    assert (listed["session"], listed["parent"], listed["shared_count"]) == (
        "f1",
        "s1",
        int(at) + 1,
    )
    assert listed["origin"] == "bots:agent"


def test_a_fork_takes_another_model(desk: Desk) -> None:
    at = seq_of(desk, "tool_call_finished")
    options = ("--at", at, "--model", "large", "--base-url", desk.url)
    done = desk.run("fork", "last", *options, "--json")
    assert done.code == 0
    assert done.document["output"] == "large: look around / a.txt is fine"
    assert done.document["status"] == "finished"
    assert done.document["session"] != "s1"


def test_a_fork_at_an_input_asks_something_else(desk: Desk) -> None:
    done = desk.run("fork", "s1", "bots.py:agent", "--at", "1", "--edit", "look closely")
    assert done.out == "scripted: look closely / a.txt is fine\n"


def test_a_fork_at_the_end_of_a_turn_takes_the_next_input(desk: Desk) -> None:
    done = desk.run("fork", "s1", "--input", "and now?", "--session", "f2")
    assert done.out == "scripted: look around / a.txt is fine / and now?\n"
    assert desk.run("fork", "f2", "--input", "then?").out.endswith(" / and now? / then?\n")


def test_an_edited_answer_is_the_answer_of_the_fork(desk: Desk) -> None:
    at = str(len(kinds(desk, "s1")) - 2)
    done = desk.run("fork", "s1", "--at", at, "--edit", "it is well", "--session", "f1", "--json")
    assert done.document["output"] == "it is well"
    again = desk.run("resume", "f1")
    assert (again.code, again.out) == (0, "it is well\n")


def test_show_and_replay_of_a_fork_snapshot(desk: Desk) -> None:
    at = seq_of(desk, "tool_call_finished")
    edit = ("--at", at, "--edit", "a.txt is torn")
    assert desk.run("fork", "s1", *edit, "--session", "f1", "--no-stream").code == 0
    steps = (
        ("show", "f1"),
        ("replay", "f1"),
        ("show", "s1", "--at", "4"),
        ("show", "f1", "--at", str(int(at) + 1)),
        ("replay", "s1", "--json"),
    )
    shown = [f"$ mainspring {' '.join(each)}\n{desk.shown(desk.run(*each))}" for each in steps]
    matches_snapshot("cli_fork.txt", "\n".join(shown))


def test_show_at_prints_the_events_up_to_there_as_json(desk: Desk) -> None:
    whole = kinds(desk, "s1")
    assert kinds(desk, "s1", "--at", "3") == whole[:4]
    assert kinds(desk, "s1", "--at", str(len(whole) - 1)) == whole


def test_replay_finds_an_event_that_was_changed_in_the_store(desk: Desk) -> None:
    path = desk.folder / ".mainspring" / "mainspring.db"
    with sqlite3.connect(path) as file:
        query = "SELECT body FROM log WHERE instr(body, ?)"
        ((body,),) = file.execute(query, (b"the only model",))
        changed = bytes(body).replace(b"the only model", b"for no reason.")
        file.execute("UPDATE log SET body = ? WHERE body = ?", (changed, body))
    file.close()
    done = desk.run("replay", "s1")
    assert done.code == 1
    rows = done.out.splitlines()
    assert rows[:2] == ["2 events came out the same", rows[1]]
    assert rows[1].startswith("event 2 differs: ")
    assert "for no reason." in rows[2]
    assert "the only model" in rows[3]
    told = desk.run("replay", "s1", "--json")
    found: dict[str, Any] = told.document
    assert (told.code, found["identical"], found["event_count"]) == (1, False, 2)
    assert found["divergence"]["seq"] == 2
    assert "for no reason." in found["divergence"]["recorded"]


def test_a_fork_of_a_turn_that_failed_tries_again(desk: Desk) -> None:
    with ScriptedModel([fail(401, "bad key")]) as broken:
        own = Desk(desk.folder, broken.base_url)
        assert own.run("run", "bots:agent", "look", "--session", "s2").code == 1
    done = desk.run("fork", "s2", "--at", "1")
    assert done.out == "scripted: look / a.txt is fine\n"


REFUSED = {
    "fork_unknown": ("fork", "nobody"),
    "fork_past_the_end": ("fork", "s1", "--at", "99"),
    "fork_negative": ("fork", "s1", "--at", "-1"),
    "fork_no_number": ("fork", "s1", "--at", "x"),
    "fork_nothing_to_run": ("fork", "s1"),
    "fork_before_the_turn": ("fork", "s1", "--at", "0"),
    "fork_nothing_to_edit": ("fork", "s1", "--at", "2", "--edit", "x"),
    "fork_input_in_a_turn": ("fork", "s1", "--at", "3", "--input", "x"),
    "fork_id_in_use": ("fork", "s1", "--at", "1", "--session", "s1"),
    "fork_unknown_agent": ("fork", "s1", "bots:nobody", "--at", "1"),
    "fork_base_url_alone": ("fork", "s1", "--at", "1", "--base-url", "http://127.0.0.1:9/v1"),
    "fork_no_store": ("fork", "s1", "--store", "sqlite:///none.db"),
    "show_past_the_end": ("show", "s1", "--at", "99"),
    "show_no_number": ("show", "s1", "--at", "x"),
    "replay_unknown": ("replay", "nobody"),
    "replay_memory": ("replay", "last", "--store", "memory:"),
}


def test_refused_forks_snapshot(desk: Desk) -> None:
    shown = [
        f"== {name}: mainspring {' '.join(arguments)}\n{desk.shown(desk.run(*arguments))}"
        for name, arguments in REFUSED.items()
    ]
    matches_snapshot("cli_fork_refused.txt", "\n".join(shown))
    assert [each["session"] for each in desk.run("sessions", "--json").document] == ["s1"]


def test_a_refused_fork_is_a_document_with_json(desk: Desk) -> None:
    done = desk.run("fork", "s1", "--at", "99", "--json")
    assert done.code == 1
    assert done.document["error"]["code"] == "agent_invalid"
    assert done.err.startswith("error: ")
