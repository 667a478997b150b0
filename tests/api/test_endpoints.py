"""Several endpoints of a model, limits, and answers that begin anew."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mainspring import (
    Agent,
    AgentError,
    Endpoint,
    Engine,
    Limits,
    Model,
    ModelError,
    Route,
    RoutePolicy,
)
from mainspring.events import (
    AnswerRestarted,
    ModelCallFailed,
    ModelCallFinished,
    ModelDelta,
    RouteDecided,
)
from mainspring.testing import ScriptedModel, drop, fail, hang, say
from tests.e2e._support import in_loop

PLAIN = RoutePolicy(explore=0)
URL = "http://127.0.0.1:9/v1"


def model(**changes: Any) -> Model:
    """A model at an address where nobody is asked."""
    return Model("m", **{"base_url": URL, **changes})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zero-requests": (
        {"requests_per_minute": 0},
        'requests_per_minute of model "m" is 0, at least 1 is needed\n'
        "hint: leave it out where there is no limit",
    ),
    "negative-tokens": (
        {"tokens_per_minute": -5},
        'tokens_per_minute of model "m" is -5, at least 1 is needed\n'
        "hint: leave it out where there is no limit",
    ),
    "zero-concurrency": (
        {"concurrency_max": 0},
        'concurrency_max of model "m" is 0, at least 1 is needed\n'
        "hint: leave it out where there is no limit",
    ),
    "same-endpoint": (
        {"endpoints": [Endpoint(api_key="a"), Endpoint(api_key="a", weight=2.0)]},
        'model "m" has the same endpoint twice\nhint: give it once, with the sum of the weights',
    ),
    "two-keys": (
        {"api_key": "a", "endpoints": [Endpoint(api_key="b")]},
        'model "m" has an api_key and endpoints too\nhint: give each endpoint its own key',
    ),
    "address": (
        {"endpoints": [Endpoint(base_url="nowhere")]},
        'base_url of model "m" is "nowhere", must be http:// or https:// with a host, '
        "without query\nhint: it ends where the API begins, such as http://127.0.0.1:8000/v1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_limits_and_endpoints_that_cannot_be_are_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(AgentError) as raised:
        model(**changes)
    assert str(raised.value) == message


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_zero(weight: float) -> None:
    with pytest.raises(AgentError, match="must be above 0 and finite"):
        Endpoint(weight=weight)


def test_keys_are_in_the_access_and_nowhere_else() -> None:
    keys = [
        Endpoint(api_key="secret-a"),
        Endpoint(api_key_env="KEY_B", weight=2),
        Endpoint(base_url="https://other.example/v1/", api_key="secret-c"),
    ]
    one = model(endpoints=keys, requests_per_minute=60, hedge=True)
    assert one.access({"KEY_B": "secret-b"}) == {
        "api_key": None,
        "endpoints": [
            {"base_url": None, "api_key": "secret-a", "weight": 1.0},
            {"base_url": None, "api_key": "secret-b", "weight": 2.0},
            {"base_url": "https://other.example/v1", "api_key": "secret-c", "weight": 1.0},
        ],
    }
    assert one.spec()["limits"] == {"requests_per_minute": 60}
    assert "secret" not in repr(one) + json.dumps(one.spec())
    with pytest.raises(ModelError, match="KEY_B is not set"):
        one.access({})


def test_a_model_without_such_settings_has_the_spec_that_it_always_had() -> None:
    assert set(model().spec()) == {
        "name",
        "base_url",
        "tool_mode",
        "output_mode",
        "stream",
        "connect_ms_max",
        "first_token_ms_max",
        "total_ms_max",
    }


@in_loop
async def test_sessions_share_their_endpoints_out_and_the_engine_tells_of_each_key() -> None:
    with (
        ScriptedModel(lambda _: say("yes")) as first,
        ScriptedModel(lambda _: say("yes")) as second,
    ):
        keys = [
            Endpoint(base_url=first.base_url, api_key="secret-a"),
            Endpoint(base_url=second.base_url, api_key="secret-b"),
        ]
        agent = Agent("t", model=Model("scripted", endpoints=keys, requests_per_minute=6_000))
        async with Engine("memory:") as engine:
            for number in range(20):
                run = await engine.start(agent, "go", session=f"s{number}")
                await run.result()
                run = await engine.start(agent, "again", session=f"s{number}")
                await run.result()
                log = await engine.log(f"s{number}")
                assert len([each for each in log if isinstance(each, ModelCallFinished)]) == 2
            reports = engine.models()
        counts = [first.request_count, second.request_count]
        assert sum(counts) == 40
        assert all(count > 0 and count % 2 == 0 for count in counts), "a session keeps its endpoint"
        assert sorted(report.calls for report in reports) == sorted(counts)
        assert all(report.requests_per_minute == 6_000 for report in reports)
        assert all(report.breaker == "closed" and report.in_flight == 0 for report in reports)
        assert "secret" not in repr(reports)


@in_loop
async def test_a_refused_key_leaves_its_sessions_to_another() -> None:
    with (
        ScriptedModel(lambda _: fail(401)) as refusing,
        ScriptedModel(lambda _: say("yes")) as other,
    ):
        keys = [Endpoint(base_url=server.base_url, api_key="k") for server in (refusing, other)]
        agent = Agent("t", model=Model("scripted", endpoints=keys))
        async with Engine("memory:") as engine:
            for number in range(6):
                run = await engine.start(agent, "go", session=f"s{number}")
                assert await run.result() == "yes"
        assert refusing.request_count <= 1


@in_loop
async def test_an_answer_that_broke_off_before_watchers_begins_anew_with_an_event() -> None:
    # Long enough for the watcher to get it, whatever else the machine does.
    script = [hang(of=say("Half of it, and more."), after_chars=8, then=say("The whole."))]
    with ScriptedModel(script) as server:
        slow = replace(server.model(stream=True), total_s=2.0)
        agent = Agent("t", model=slow, limits=Limits(model_attempts_max=2))
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            shown = ""
            seen: list[str] = []
            async for event in run.events():
                if isinstance(event, ModelDelta):
                    shown += event.text
                if isinstance(event, AnswerRestarted):
                    assert (event.step, event.attempt) == (0, 1)
                    assert event.characters == len(shown) > 0
                    shown = ""
                seen.append(event.kind)
            assert await run.result() == "The whole."
            assert "The whole.".startswith(shown), "what a slow watcher misses is in the event"
            assert seen.index("answer_restarted") == seen.index("model_call_failed") + 1
            replay = await engine.replay(run.session)
            assert replay.divergence is None


@in_loop
async def test_nothing_begins_anew_where_nobody_watched() -> None:
    script = [drop(of=say("Half of it, and more."), after_chars=8, then=say("The whole."))]
    with ScriptedModel(script) as server:
        agent = Agent("t", model=server.model(stream=True), limits=Limits(model_attempts_max=2))
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            assert await run.result() == "The whole."
            log = await engine.log(run.session)
    assert "answer_restarted" not in [event.kind for event in log]


@in_loop
async def test_no_attempt_is_made_that_the_turn_would_not_live_to_see() -> None:
    with (
        ScriptedModel(lambda _: fail(429, retry_after_s=60.0)) as busy,
        ScriptedModel(lambda _: say("yes")) as other,
    ):
        limits = Limits(turn_s_max=30.0)
        agent = Agent("t", model=Route(busy.model(), other.model(), policy=PLAIN), limits=limits)
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            assert await run.result() == "yes"
            log = await engine.log(run.session)
    failed = [event for event in log if isinstance(event, ModelCallFailed)]
    assert [(event.error.code, event.retry_at_us) for event in failed] == [
        ("model_rate_limited", None)
    ]
    assert failed[0].error.hint == "the turn's time is up before another attempt"
    assert len([event for event in log if isinstance(event, RouteDecided)]) == 2


CLASSES = {"overflow": fail(413), "auth": fail(401), "not-found": fail(404), "bad": fail(400)}


@pytest.mark.parametrize("case", CLASSES)
@in_loop
async def test_what_no_attempt_cures_goes_to_the_next_model_at_once(case: str) -> None:
    with (
        ScriptedModel(lambda _: CLASSES[case]) as first,
        ScriptedModel(lambda _: say("yes")) as second,
    ):
        agent = Agent("t", model=Route(first.model(), second.model(), policy=PLAIN))
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            assert await run.result() == "yes"
        assert (first.request_count, second.request_count) == (1, 1)
