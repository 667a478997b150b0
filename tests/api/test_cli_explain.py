"""`mainspring route explain`: what it shows of a session with rejected answers; refused use."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.testing import Script, ScriptedModel, call, calls, say, say_json
from tests.api.cli_support import Desk, matches_snapshot

BOTS = '''
import os

from mainspring import Agent, Model, Route, RoutePolicy, tool


@tool(effect="read")
async def look(path: str) -> str:
    """Look at a file."""
    return f"{path} is fine"


def model(name: str, usd: float) -> Model:
    return Model(name, base_url=os.environ["SCRIPTED_URL"], price=(usd, 4 * usd))


route = Route(
    model("small", 0.2),
    model("large", 2.0),
    judge=model("judge", 0.5),
    verify=lambda answer: answer.text != "hm" or "it says nothing",
    policy=RoutePolicy(explore=0),
)
agent = Agent("looker", instructions="Look.", model=route, tools=[look])
'''


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    models: dict[str, Script] = {
        "small": [
            calls(call("look", path=3)),
            calls(call("look", path="a.txt")),
            say("b.txt is fine"),
        ],
        "large": lambda _: say("a.txt is fine"),
        "judge": [say_json({"reason": "it was asked about a.txt", "right": False})],
    }
    with ScriptedModel(models=models) as served:
        yield served


@pytest.fixture
def desk(tmp_path: Path, model: ScriptedModel) -> Desk:
    (tmp_path / "bots.py").write_text(BOTS, encoding="utf-8")
    desk = Desk(tmp_path, model.base_url)
    done = desk.run("run", "bots:agent", "is a.txt fine?", "--session", "s1")
    assert (done.code, done.out) == (0, "a.txt is fine\n"), done.err
    return desk


def test_every_step_is_explained(desk: Desk) -> None:
    matches_snapshot("cli_route_explain.txt", desk.shown(desk.run("route", "explain", "s1")))


def test_one_step_can_be_asked_about(desk: Desk) -> None:
    all_steps = desk.run("route", "explain", "last").out
    one = desk.run("route", "explain", "last", "2").out
    assert "step 2  small  tool_args" in one
    assert "step 1" not in one
    assert one.split("\n\n")[1].strip() in all_steps


def test_json_holds_the_events_as_they_are(desk: Desk) -> None:
    steps = desk.run("route", "explain", "s1", "--json").document
    assert [(step["model"], step["chosen_at"]) for step in steps] == [
        ("small", 0),
        ("small", 0),
        ("small", 0),
        ("large", 3),
    ]
    decision = steps[0]["route"]["decision"]
    assert [each["name"] for each in decision["candidates"]] == ["small", "large"]
    assert steps[2]["rejected"]["problems"][0]["check"] == "judge"
    assert steps[2]["checks"][0]["score"] == 0.0
    shown = desk.run("show", "s1", "--json").out.splitlines()
    routes = [json.loads(row) for row in shown if '"route_decided"' in row]
    assert routes[0]["decision"]["propensity"] == decision["propensity"] == 1.0


def test_a_step_that_there_is_not_is_refused(desk: Desk) -> None:
    done = desk.run("route", "explain", "s1", "9")
    assert done.code == 1
    assert 'session "s1" has no step 9, its last one is 3' in done.err
