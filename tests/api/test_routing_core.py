"""Routing inside a session: what a decision records, checks by models, classes, and the reports."""

import asyncio
import json
from typing import Any

import pytest

from mainspring import Agent, AgentError, Engine, Route, RoutePolicy, tool
from mainspring.events import (
    AnswerRejected,
    CheckFinished,
    CheckStarted,
    Event,
    InputReceived,
    ModelCallFinished,
    ModelCallStarted,
    RouteDecided,
)
from mainspring.testing import Script, ScriptedModel, call, calls, fail, say, say_json

PLAIN = RoutePolicy(explore=0)


@tool(effect="read")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def run(
    models: dict[str, Script], *, judged: bool = False, step_class: Any = None, **options: Any
) -> tuple[str, list[Event], list[str]]:
    """The answer, the log, and the models that were asked, in order; the log replays to itself."""

    async def main() -> tuple[str, list[Event], list[str]]:
        with ScriptedModel(models=models) as model:
            judge = model.model("judge") if judged else None
            tools = options.pop("tools", [])
            route = Route(
                model.model("small"),
                model.model("large"),
                judge=judge,
                **({"policy": PLAIN} | options),
            )
            agent = Agent("a", model=route, tools=tools)
            async with Engine("memory:") as engine:
                started = await engine.start(agent, "go", step_class=step_class)
                text = await started.result()
                log = await engine.log(started.session)
                report = await started.report()
                spent = [e.usage for e in log if isinstance(e, (ModelCallFinished, CheckFinished))]
                assert report.input_tokens == sum(usage.input_tokens for usage in spent)
                replay = await engine.replay(started.session)
                assert replay.divergence is None, replay.divergence
                return text, log, [request.model for request in model.requests]

    return asyncio.run(main())


def only(log: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in log if isinstance(event, kind)]


def one_by_one(*numbers: int) -> Script:
    """A model that gives these answers to the same question."""
    left = iter(numbers)
    return lambda _: say(f"it is {next(left)}")


def judged(*, right: bool, reason: str = "") -> Any:
    return say_json({"reason": reason, "right": right})


def test_a_decision_says_all_that_was_weighed() -> None:
    _, log, _ = run({"small": [say("done")], "large": [say("unused")]})
    (route,) = only(log, RouteDecided)
    made = route.decision
    assert (made.step_class, made.tier, made.propensity, made.explored) == ("answer", 0, 1.0, False)
    assert [each.name for each in made.candidates] == ["small", "large"]
    assert (made.current, made.boundary, made.weights) == (None, True, None)
    (answer,) = only(log, ModelCallFinished)
    assert answer.score.step_class == "answer"
    assert 0.5 <= answer.score.p_ok <= 1.0


def test_a_step_tells_what_it_is_for() -> None:
    small = [calls(call("add", a=1)), say("two")]
    _, log, _ = run({"small": small, "large": [say("unused")]}, tools=[add])
    assert [event.step_class for event in only(log, ModelCallStarted)] == ["plan", "tool_args"]
    small = [say("done")]
    _, log, _ = run({"small": small, "large": [say("unused")]}, step_class="summarise")
    assert [event.step_class for event in only(log, InputReceived)] == ["summarise"]
    assert [event.step_class for event in only(log, ModelCallStarted)] == ["summarise"]


def test_a_policy_may_begin_a_class_above_the_first_model() -> None:
    policy = RoutePolicy(explore=0, start={"answer": 1})
    text, _, asked = run({"small": [say("unused")], "large": [say("done")]}, policy=policy)
    assert (text, asked) == ("done", ["large"])


def test_a_model_is_tried_as_often_as_the_policy_says_and_its_chance_is_recorded() -> None:
    async def main() -> list[RouteDecided]:
        models: dict[str, Script] = {"small": lambda _: say("s"), "large": lambda _: say("l")}
        with ScriptedModel(models=models) as model:
            policy = RoutePolicy(explore=0.5)
            route = Route(model.model("small"), model.model("large"), policy=policy)
            agent = Agent("a", model=route)
            async with Engine("memory:") as engine:
                runs = [await engine.start(agent, "go", session=f"s{n}") for n in range(40)]
                await asyncio.gather(*(run.result() for run in runs))
                logs = [await engine.log(run.session) for run in runs]
        return [route for log in logs for route in only(log, RouteDecided)]

    found = [route.decision for route in asyncio.run(main())]
    tried = [made for made in found if made and made.explored]
    # The names of the sessions are fixed, and so is what they draw.
    assert 10 <= len(tried) <= 30
    assert {made.propensity for made in found if made} == {0.5}
    assert {made.tier for made in tried} == {1}


def test_an_answer_that_the_judge_accepts_stands() -> None:
    models: dict[str, Script] = {
        "small": [say("42")],
        "large": [say("unused")],
        "judge": [judged(right=True)],
    }
    text, log, asked = run(models, judged=True)
    assert (text, asked) == ("42", ["small", "judge"])
    (started,), (finished,) = only(log, CheckStarted), only(log, CheckFinished)
    assert (started.check, started.model, started.calls) == ("judge", "judge", 1)
    assert (finished.passed, finished.score, finished.error) == (True, 1.0, None)
    assert finished.usage.input_tokens > 0


def test_an_answer_that_the_judge_refuses_goes_to_the_large_model_which_is_not_judged() -> None:
    models: dict[str, Script] = {
        "small": [say("41")],
        "large": [say("42")],
        "judge": [judged(right=False, reason="it is 42")],
    }
    text, log, asked = run(models, judged=True)
    assert (text, asked) == ("42", ["small", "judge", "large"])
    (rejected,) = only(log, AnswerRejected)
    assert [(each.check, each.message) for each in rejected.problems] == [("judge", "it is 42")]
    assert rejected.action == "escalate"


@pytest.mark.parametrize("broken", [fail(400, "no judge today"), say("I would say so.")])
def test_a_judge_that_says_nothing_useful_counts_for_nothing(broken: Any) -> None:
    models: dict[str, Script] = {
        "small": [say("42")],
        "large": [say("unused")],
        "judge": [broken],
    }
    text, log, asked = run(models, judged=True)
    assert (text, asked) == ("42", ["small", "judge"])
    (finished,) = only(log, CheckFinished)
    assert finished.passed is None
    assert finished.error.code in ("model_bad_request", "model_bad_response")


def test_the_judge_reads_question_findings_and_answer_and_nothing_else() -> None:
    seen: list[str] = []

    def judge(request: Any) -> Any:
        seen.append(request.messages[-1]["content"])
        return judged(right=True)

    models: dict[str, Script] = {
        "small": [calls(call("add", a=1)), say("it is 2")],
        "large": [say("unused")],
        "judge": judge,
    }
    run(models, judged=True, tools=[add])
    assert seen == ["Question:\ngo\n\nContext:\nadd: 2\n\nAnswer:\nit is 2"]


def test_further_answers_that_disagree_send_the_step_to_the_large_model() -> None:
    models: dict[str, Script] = {"small": one_by_one(41, 42, 43), "large": [say("it is 42")]}
    text, log, asked = run(models, agreement=2)
    assert (text, asked) == ("it is 42", ["small", "small", "small", "large"])
    (finished,) = only(log, CheckFinished)
    assert (finished.check, finished.passed, finished.score) == ("agreement", False, 0.0)
    assert finished.reason == "0 of 2 further answers say the same"


def test_further_answers_that_agree_let_the_answer_stand() -> None:
    models: dict[str, Script] = {"small": one_by_one(42, 42, 42), "large": [say("unused")]}
    text, log, _ = run(models, agreement=2)
    assert text == "it is 42"
    (finished,) = only(log, CheckFinished)
    assert (finished.passed, finished.score) == (True, 1.0)


def test_the_large_model_sees_the_draft_only_where_the_route_says_so() -> None:
    async def main(*, show_draft: bool) -> list[str]:
        models: dict[str, Script] = {"small": [say("no")], "large": lambda _: say("yes")}
        with ScriptedModel(models=models) as model:
            route = Route(
                model.model("small"),
                model.model("large"),
                verify=lambda answer: answer.text == "yes" or "it says no",
                policy=PLAIN,
                show_draft=show_draft,
            )
            assert await Agent("a", model=route).run("go") == "yes"
            return [message["content"] for message in model.requests[-1].messages]

    assert asyncio.run(main(show_draft=False)) == ["go"]
    told = "Your answer was rejected: it says no. Answer again."
    assert asyncio.run(main(show_draft=True)) == ["go", "no", told]


def test_weights_are_read_when_the_engine_starts_the_agent(tmp_path: Any) -> None:
    missing = Route("openai:gpt-5.4-mini", "openai:gpt-5.4", weights=tmp_path / "none.json")
    with pytest.raises(AgentError, match="cannot be read: No such file"):
        missing.read_weights()
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"format": "something else", "version": 1}))

    async def main() -> None:
        with ScriptedModel([say("unused")]) as model:
            route = Route(model.model("small"), model.model("large"), weights=path)
            async with Engine("memory:") as engine:
                await engine.start(Agent("a", model=route), "go")

    with pytest.raises(Exception, match="weights"):
        asyncio.run(main())


def test_what_a_route_cannot_be_is_refused() -> None:
    with pytest.raises(AgentError, match="a route of one model has a judge or agreement"):
        Route("openai:gpt-5.4", judge="openai:gpt-5.4")
    with pytest.raises(AgentError, match="agreement of a route is 6, must be 0 to 5"):
        Route("openai:gpt-5.4-mini", "openai:gpt-5.4", agreement=6)
    with pytest.raises(AgentError, match=r"RoutePolicy.explore is 0.7, must be 0 to 0.5"):
        RoutePolicy(explore=0.7)
    with pytest.raises(AgentError, match="names the step class 'cook', allowed are plan,"):
        Agent("a", model="openai:gpt-5.4", step_class="cook")  # type: ignore[call-overload]


def test_a_route_without_options_leaves_no_trace_in_the_spec() -> None:
    spec = json.loads(Agent("a", model=Route("openai:gpt-5.4-mini", "openai:gpt-5.4")).spec())
    assert "route" not in spec
    assert "step_class" not in spec
