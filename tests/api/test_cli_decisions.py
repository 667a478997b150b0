"""`mainspring effects`, and runs that wait for a person: exit code 3, the list, the decisions."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.testing import ScriptedModel, call, calls, say, wait_for
from tests.api.cli_support import Desk, matches_snapshot

AGENTS = '''
import os
import signal

from mainspring import Agent, Model, Outcome, tool

model = Model("scripted", base_url=os.environ["SCRIPTED_URL"])


def note(text):
    with open("done.txt", "a") as file:
        file.write(text + "\\n")


@tool(approve=True)
def refund(order: int) -> str:
    """Refund an order."""
    note(f"refund {order}")
    return f"order {order} is refunded"


@tool(approve=lambda arguments: arguments["amount"] > 10)
async def pay(amount: int) -> str:
    """Pay."""
    note(f"pay {amount}")
    return f"paid {amount}"


@tool
def ship(order: int) -> str:
    """Ship an order; the first process that tries is killed in the middle."""
    first = not os.path.exists("done.txt")
    note(f"ship {order}")
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"order {order} is shipped"


@tool(reconcile=lambda arguments, ctx: Outcome.undecided("the carrier is closed"))
def send(order: int) -> str:
    """Send an order, and be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


agent = Agent("shop", model=model, tools=[refund, pay, ship, send])
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def served() -> Iterator[ScriptedModel]:
    scripts = {
        "scripted": [calls(call("pay", amount=50), call("refund", order=7)), say("all is settled")],
        "one": [calls(call("refund", order=7)), say("refunded")],
        "ship": [calls(call("ship", order=7)), say("shipped")],
        "send": [calls(call("send", order=7)), say("sent")],
    }
    with ScriptedModel(models=scripts) as model:
        yield model


@pytest.fixture
def desk(folder: Path, served: ScriptedModel) -> Desk:
    return Desk(folder, served.base_url)


def begin(desk: Desk, session: str, script: str = "one") -> None:
    """Runs a turn until it waits."""
    done = desk.run("run", "shop:agent", "go", "--session", session, *model(desk, script))
    assert (done.code, done.out) == (3, ""), done.err


def model(desk: Desk, script: str) -> tuple[str, ...]:
    return ("--base-url", desk.url, "--model", script)


def begin_and_die(desk: Desk, session: str, script: str) -> None:
    """Runs a turn whose process is killed by its tool, and resumes it until it waits."""
    done = desk.run("run", "shop:agent", "go", "--session", session, *model(desk, script))
    assert done.code == -9
    done = desk.run("resume", session)
    assert (done.code, done.out) == (3, ""), done.err


def effects(desk: Desk, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = desk.run("effects", *arguments, "--json").document
    return found


def read_by_model(served: ScriptedModel) -> list[str]:
    """The tool results in the last request."""
    return [each["content"] for each in served.requests[-1].messages if each["role"] == "tool"]


def did(desk: Desk) -> list[str]:
    """What the tools have done."""
    path = desk.folder / "done.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_a_run_that_waits_and_goes_on_snapshot(desk: Desk) -> None:
    steps = [
        ("run", "shop:agent", "go", "--session", "s1", "--no-stream"),
        ("sessions", "--status", "waiting"),
        ("effects",),
        ("show", "s1"),
        ("effects", "approve", "s1", "0", "--by", "ann"),
        ("effects", "deny", "s1", "--message", "too late"),
        ("effects",),
        ("resume", "s1"),
        ("show", "s1"),
        ("replay", "s1"),
    ]
    shown = [f"$ mainspring {' '.join(each)}\n{settled(desk, *each)}" for each in steps]
    matches_snapshot("cli_waits.txt", "\n".join(shown))
    assert did(desk) == ["pay 50"]


def settled(desk: Desk, *arguments: str) -> str:
    """A command's outcome; the requests of one answer are asked for in any order."""
    rows = desk.shown(desk.run(*arguments)).splitlines()
    asked = [idx for idx, row in enumerate(rows) if row.startswith("  tool    asks")]
    for idx, row in zip(asked, sorted(rows[idx] for idx in asked), strict=True):
        rows[idx] = row
    return "\n".join(rows)


def test_json_of_a_run_that_waits(desk: Desk) -> None:
    done = desk.run("run", "shop:agent", "go", "--session", "s1", "--json", *model(desk, "one"))
    assert done.code == 3
    assert done.document | {"usage": None} == {
        "session": "s1",
        "status": "waiting",
        "output": None,
        "usage": None,
        "cost_usd": None,
        "steps": 1,
        "error": None,
    }
    (waiting,) = effects(desk)
    assert {name: waiting[name] for name in ("session", "call", "kind", "tool", "attempt")} == {
        "session": "s1",
        "call": 0,
        "kind": "approval",
        "tool": "refund",
        "attempt": 0,
    }
    assert waiting["arguments"] == {"order": 7}
    assert waiting["approval"] != waiting["effect_id"]
    again = desk.run("resume", "s1", "--json")
    assert (again.code, again.document["status"]) == (3, "waiting")
    assert effects(desk) == [waiting], "the request is still the same"


def test_an_approved_call_runs_once_with_the_arguments_of_the_decision(
    desk: Desk, served: ScriptedModel
) -> None:
    begin(desk, "s1")
    told = desk.run("effects", "approve", "s1", "--arguments", '{"order": 8}', "--by", "ann")
    assert (told.code, told.out) == (0, "")
    assert told.err == (
        'approved with {"order": 8}: call 0 of session s1, refund(order=7)\n'
        "go on with: mainspring resume s1\n"
    )
    assert did(desk) == [], "it runs when the session is resumed"
    again = desk.run("effects", "approve", "s1")
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith('error: no call of session "s1" waits for approval\n')
    done = desk.run("resume", "s1")
    assert (done.code, done.out) == (0, "refunded\n")
    assert did(desk) == ["refund 8"]
    assert read_by_model(served) == ["order 8 is refunded"]
    assert "granted refund(order=7)  by ann: runs as refund(order=8)" in desk.run("show", "s1").out


def test_arguments_that_do_not_fit_are_refused_and_the_request_stays_open(desk: Desk) -> None:
    begin(desk, "s1")
    wrong = desk.run("effects", "approve", "s1", "--arguments", '{"order": "x"}')
    assert wrong.code == 1
    assert wrong.err == (
        'error: the edited arguments do not fit: at /order: "x" is not of type "integer"\n'
    )
    assert desk.run("effects", "approve", "s1").code == 0
    assert desk.run("resume", "s1").code == 0
    assert did(desk) == ["refund 7"]


def test_a_denied_call_is_not_run_and_the_model_reads_why(
    desk: Desk, served: ScriptedModel
) -> None:
    begin(desk, "s1")
    assert desk.run("effects", "deny", "s1", "0", "--message", "not today").code == 0
    assert desk.run("resume", "s1").out == "refunded\n"
    assert did(desk) == []
    (told,) = read_by_model(served)
    assert "a person refused it: not today" in told


@pytest.mark.parametrize(
    ("options", "read", "done"),
    [
        (("--done", "it was shipped"), "it was shipped", ["ship 7"]),
        (("--failed", "the parcel is lost"), "the parcel is lost", ["ship 7"]),
        (("--not-done",), "order 7 is shipped", ["ship 7", "ship 7"]),
    ],
)
def test_a_person_says_what_became_of_a_call(
    desk: Desk, served: ScriptedModel, options: tuple[str, ...], read: str, done: list[str]
) -> None:
    begin_and_die(desk, "s1", "ship")
    (waiting,) = effects(desk, "s1")
    assert (waiting["kind"], waiting["approval"], waiting["attempt"]) == ("effect", None, 1)
    told = desk.run("effects", "resolve", "s1", *options)
    assert told.err == (
        "resolved: call 0 of session s1, ship(order=7)\ngo on with: mainspring resume s1\n"
    )
    assert desk.run("resume", "s1").out == "shipped\n"
    assert [read in each for each in read_by_model(served)] == [True]
    assert did(desk) == done


def test_a_reconcile_function_is_asked_before_a_person(desk: Desk) -> None:
    begin_and_die(desk, "s1", "send")
    shown = desk.run("show", "s1").out
    assert "  tool    unknown send(order=7)  by reconcile: the carrier is closed\n" in shown
    assert [each["kind"] for each in effects(desk)] == ["effect"]


def test_what_waits_is_listed_beside_a_running_engine_which_alone_decides(desk: Desk) -> None:
    begin(desk, "s1")
    held = threading.Event()
    with ScriptedModel([wait_for(held, then=say("done"))]) as other:
        own = Desk(desk.folder, other.base_url)
        process = own.start("run", "shop:agent", "go", "--session", "s2")
        # The line is printed once the session is durable.
        assert process.stderr is not None
        assert process.stderr.readline() == "session s2  agent shop\n"
        listed = effects(desk)
        refused = desk.run("effects", "approve", "s1")
        held.set()
        out, _ = process.communicate()
    assert [each["session"] for each in listed] == ["s1"]
    assert out == "done\n"
    assert (refused.code, refused.out) == (1, "")
    assert f"is in use by process {process.pid}\nhint: the program that runs the" in refused.err
    assert "run.approve(...)" in refused.err
    assert desk.run("effects", "approve", "s1").code == 0


def test_the_store_is_named_unless_the_environment_does(desk: Desk) -> None:
    done = desk.run("effects", "--store", "sqlite:///own.db")
    assert done.code == 1
    begun = desk.run(
        "run",
        "shop:agent",
        "go",
        "--store",
        "sqlite:///own.db",
        "--session",
        "s",
        *model(desk, "one"),
    )
    assert "then go on with: mainspring resume s --store sqlite:///own.db\n" in begun.err
    named = desk.run("effects", "approve", "s", env={"MAINSPRING_STORE": "sqlite:///own.db"})
    assert named.err.endswith("go on with: mainspring resume s\n")


REFUSED = {
    "unknown_session": ("approve", "nobody"),
    "list_unknown_session": ("nobody",),
    "wrong_call": ("approve", "s1", "7"),
    "call_is_no_number": ("approve", "s1", "seven"),
    "several_fit": ("approve", "s1"),
    "approval_is_no_effect": ("resolve", "s1", "1", "--not-done"),
    "no_effect": ("resolve", "s1", "--not-done"),
    "effect_is_no_approval": ("deny", "s2", "0"),
    "arguments_no_json": ("approve", "s1", "1", "--arguments", "{order"),
    "arguments_no_object": ("approve", "s1", "1", "--arguments", "[7]"),
    "no_outcome": ("resolve", "s2"),
    "two_outcomes": ("resolve", "s2", "--not-done", "--done", "x"),
    "ended_session": ("approve", "s3"),
    "ended_session_call": ("approve", "s3", "0"),
    "unknown_option": ("--colour",),
    "no_store": ("--store", "sqlite:///none.db"),
    "memory": ("--store", "memory:"),
}


def test_refused_decisions_snapshot(desk: Desk) -> None:
    begin(desk, "s1", "scripted")
    begin_and_die(desk, "s2", "ship")
    begin(desk, "s3")
    assert desk.run("effects", "deny", "s3").code == 0
    assert desk.run("resume", "s3").code == 0
    before = json.dumps(effects(desk))
    shown = [
        f"== {name}: mainspring effects {' '.join(arguments)}\n"
        + desk.shown(desk.run("effects", *arguments))
        for name, arguments in REFUSED.items()
    ]
    matches_snapshot("cli_decisions_refused.txt", "\n".join(shown))
    assert json.dumps(effects(desk)) == before, "nothing was decided"
