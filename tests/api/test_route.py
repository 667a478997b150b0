"""Routes: which model answers, why the next one takes over, and what each model is sent."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from mainspring import (
    Agent,
    Answer,
    Engine,
    Limits,
    ModelError,
    Route,
    RoutePolicy,
    SessionFailed,
    tool,
)
from mainspring.events import AnswerRejected, Event, RouteDecided
from mainspring.testing import (
    Request,
    Script,
    ScriptedModel,
    Step,
    call,
    calls,
    drop,
    fail,
    say,
    say_json,
)


@tool(effect="read")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers. The second is 1 if left out."""
    return a + b


def run(
    small: Script, large: Script, *, limits: Limits | None = None, **options: Any
) -> tuple[Any, list[Event], list[str]]:
    """The result or the error, the log, and the models that were asked, in order."""

    async def main() -> tuple[Any, list[Event], list[str]]:
        with ScriptedModel(models={"small": small, "large": large}) as model:
            output = options.pop("output", str)
            # What is tried at random is tested in `test_routing_core.py`.
            policy = RoutePolicy(explore=0)
            route = Route(model.model("small"), model.model("large"), policy=policy, **options)
            agent = Agent("a", model=route, tools=[add], output=output, limits=limits)
            async with Engine("memory:") as engine:
                started = await engine.start(agent, "go")
                report = await started.report()
                result = report.error or await started.result()
                log = await engine.log(started.session)
                return result, log, [request.model for request in model.requests]

    return asyncio.run(main())


def routes(log: list[Event]) -> list[tuple[int, str, str]]:
    return [(e.step, e.model, e.reason) for e in log if isinstance(e, RouteDecided)]


def rejections(log: list[Event]) -> list[tuple[str, str, str]]:
    found = [event for event in log if isinstance(event, AnswerRejected)]
    return [(e.problems[0].check, e.problems[0].message, e.action) for e in found]


FIRST = (0, "small", "small first: its answer is checked")


def test_the_small_model_goes_first_and_is_enough() -> None:
    result, log, asked = run([calls(call("add", a=1)), say("two")], [say("unused")])
    assert result == "two"
    assert asked == ["small", "small"]
    assert routes(log) == [FIRST]


def test_an_answer_that_misses_the_schema_is_mended_by_the_small_model() -> None:
    small = [say('{"value": "x"}'), say_json({"value": 3})]
    result, log, asked = run(small, [say("unused")], output=int)
    assert (result, asked) == (3, ["small", "small"])
    ((check, _, action),) = rejections(log)
    assert (check, action) == ("output_schema", "repair")


def test_an_answer_that_misses_the_schema_twice_goes_to_the_large_model() -> None:
    wrong = say('{"value": "x"}')
    result, log, asked = run([wrong, wrong], [say_json({"value": 3})], output=int)
    assert (result, asked) == (3, ["small", "small", "large"])
    (check, reason, first), (_, _, second) = rejections(log)
    assert (check, first, second) == ("output_schema", "repair", "escalate")
    assert routes(log) == [FIRST, (2, "large", f"the answer was rejected: {reason}")]


def test_bad_tool_arguments_go_to_the_large_model_without_a_trace() -> None:
    async def main() -> None:
        def small(request: Request) -> Step:
            told = request.messages[-1]["role"] == "tool"
            return say("two") if told else calls(call("add", a="one"))

        models: dict[str, Script] = {"small": small, "large": [calls(call("add", a=1))]}
        with ScriptedModel(models=models) as model:
            route = Route(model.model("small"), model.model("large"), policy=RoutePolicy(explore=0))
            agent = Agent("a", model=route, tools=[add])
            async with Engine("memory:") as engine:
                started = await engine.start(agent, "go")
                assert await started.result() == "two"
                log = await engine.log(started.session)
            reason = 'the arguments of tool "add" do not fit: at /a: "one" is not of type "integer"'
            assert rejections(log) == [
                ("tool_arguments", reason, "repair"),
                ("tool_arguments", reason, "escalate"),
            ]
            assert [e.kind for e in log].count("tool_call_failed") == 0
            asked = [request.model for request in model.requests]
            # Once the large model has helped, the small one goes on.
            assert asked == ["small", "small", "large", "small"]
            roles = [[m["role"] for m in request.messages] for request in model.requests]
            assert roles[1] == ["user", "assistant", "tool", "user"]
            assert roles[2] == ["user"]
            assert roles[3] == ["user", "assistant", "tool"]

    asyncio.run(main())


def test_an_unknown_tool_goes_to_the_large_model() -> None:
    result, log, _ = run([calls(call("subtract")), calls(call("subtract"))], [say("no such thing")])
    assert result == "no such thing"
    told = 'there is no tool "subtract", the tools are: add'
    assert rejections(log) == [
        ("tool_unknown", told, "repair"),
        ("tool_unknown", told, "escalate"),
    ]


def verify(answer: Answer) -> str | None:
    return None if "because" in answer.text else "it gives no reason"


async def verify_later(answer: Answer) -> str | None:
    await asyncio.sleep(0)
    return verify(answer)


@pytest.mark.parametrize("check", [verify, verify_later])
def test_an_answer_that_verify_rejects_goes_to_the_large_model(check: Any) -> None:
    result, log, asked = run([say("yes")], [say("yes, because")], verify=check)
    assert (result, asked) == ("yes, because", ["small", "large"])
    assert rejections(log) == [("verify", "it gives no reason", "escalate")]
    assert routes(log)[1] == (1, "large", "the answer was rejected: it gives no reason")
    assert [e.kind for e in log][-2:] == ["answer_verified", "session_finished"]


def test_the_last_model_is_told_what_verify_found() -> None:
    async def main() -> None:
        with ScriptedModel([say("yes"), say("yes, because")]) as model:
            agent = Agent("a", model=Route(model.model(), verify=verify))
            assert await agent.run("why?") == "yes, because"
            assert [m["content"] for m in model.requests[-1].messages] == [
                "why?",
                "yes",
                "Your answer was rejected: it gives no reason. Answer again.",
            ]

    asyncio.run(main())


def test_verify_sees_the_whole_answer() -> None:
    seen: list[Answer] = []

    def look(answer: Answer) -> bool:
        seen.append(answer)
        return True

    run([calls(call("add", a=1), text="so"), say("two")], [say("unused")], verify=look)
    first, second = seen
    assert (first.text, first.model, first.step) == ("so", "small", 0)
    assert [(each.name, each.arguments) for each in first.tool_calls] == [("add", {"a": 1})]
    assert second == Answer("two", (), "small", 1)


def test_a_verify_function_that_raises_rejects_and_says_so() -> None:
    def broken(answer: Answer) -> bool:
        raise KeyError(answer.text)

    limits = Limits(repairs_max=0)
    result, log, asked = run([say("a")], [say("b")], verify=broken, limits=limits)
    assert asked == ["small", "large"]
    assert rejections(log) == [
        ("verify", "the verify function raised KeyError: 'a'", "escalate"),
        ("verify", "the verify function raised KeyError: 'b'", "fail"),
    ]
    assert isinstance(result, SessionFailed)
    assert result.code == "answer_rejected"


def test_a_verify_function_may_say_only_what_is_allowed() -> None:
    result, log, _ = run([say("a")], [say("b")], verify=lambda a: 3 if a.text == "a" else None)
    assert result == "b"
    assert rejections(log) == [
        (
            "verify",
            "the verify function raised TypeError: verify returned int, allowed are bool, str "
            "and None",
            "escalate",
        )
    ]


def test_a_model_that_fails_is_replaced_by_the_next() -> None:
    result, log, asked = run([fail(400, "no")], [say("I can")])
    assert (result, asked) == ("I can", ["small", "large"])
    _, (step, model, reason) = routes(log)
    assert (step, model) == (1, "large")
    assert reason.startswith('model "small" failed (model_bad_request): ')


def test_attempts_come_before_the_next_model() -> None:
    result, _, asked = run(
        [fail(503, retry_after_s=0.001, then=say("back again"))], [say("unused")]
    )
    assert (result, asked) == ("back again", ["small", "small"])
    limits = Limits(model_attempts_max=1)
    result, log, asked = run([drop(after_chars=None)], [say("I can")], limits=limits)
    assert (result, asked) == ("I can", ["small", "large"])
    assert routes(log)[1][2].startswith('model "small" failed (model_interrupted): ')


def test_when_both_fail_the_last_error_stands() -> None:
    result, log, asked = run([fail(400, "first")], [fail(404, "second")])
    assert asked == ["small", "large"]
    assert isinstance(result, ModelError)
    assert result.code == "model_not_found"
    assert log[-1].kind == "session_failed"


def test_the_next_turn_starts_with_the_small_model_again() -> None:
    async def main() -> None:
        models: dict[str, Script] = {
            "small": lambda request: say("what?" if request.assistant_count == 0 else "ok"),
            "large": [say("fine, because")],
        }
        with ScriptedModel(models=models) as model:
            check = Route(
                model.model("small"),
                model.model("large"),
                verify=lambda a: a.text != "what?",
                policy=RoutePolicy(explore=0),
            )
            agent = Agent("a", model=check)
            async with Engine("memory:") as engine:
                first = await engine.start(agent, "go")
                assert await first.result() == "fine, because"
                second = await engine.start(agent, "go on", session=first.session)
                assert await second.result() == "ok"
            assert [request.model for request in model.requests] == ["small", "large", "small"]

    asyncio.run(main())


# What the server is sent.


def test_constrained_tool_calls_end_to_end() -> None:
    script = [
        calls(call("add", a=1), call("add", a=2, b=3)),
        calls(call("add", a="one")),
        say("it is 5"),
    ]
    with ScriptedModel(script) as model:
        small = model.model(tool_mode="json_schema")
        agent = Agent("a", instructions="Count.", model=small, tools=[add])
        assert agent.run_sync("go") == "it is 5"
        body = model.requests[-1].body
    assert body["messages"] == [
        {
            "role": "system",
            "content": "Count.\n\nTools:\nadd(a: integer, b?: integer): Add two numbers.\n"
            "Reply with JSON on one line. To use tools, several at once if they are independent: "
            '{"tool_calls":[{"name":"...","arguments":{...}}]}\n'
            'When the results are enough: {"answer":"..."}',
        },
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": '{"tool_calls":[{"name":"add","arguments":{"a": 1}},'
            '{"name":"add","arguments":{"a": 2, "b": 3}}]}',
        },
        {"role": "user", "content": "Result of add: 2\nResult of add: 5"},
        {
            "role": "assistant",
            "content": '{"tool_calls":[{"name":"add","arguments":{"a": "one"}}]}',
        },
        {
            "role": "user",
            "content": 'Result of add: Error: the arguments of tool "add" do not fit: at /a: '
            '"one" is not of type "integer"',
        },
    ]
    assert sorted(body) == ["messages", "model", "response_format"]
    form = body["response_format"]["json_schema"]
    assert (form["name"], form["strict"]) == ("answer", True)
    asked, answered = form["schema"]["anyOf"]
    one = asked["properties"]["tool_calls"]["items"]
    assert one["properties"]["name"] == {"const": "add"}
    assert one["properties"]["arguments"]["required"] == ["a"]
    assert answered["properties"] == {"answer": {"type": "string"}}


def conversation(results: list[dict[str, Any]]) -> list[Any]:
    """The conversation of the script below, as a user of the SDK writes it."""
    told = results[0]
    return [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": told["content"],
            "tool_calls": told["tool_calls"],
        },
        {"role": "tool", "tool_call_id": "call_0_0", "content": "2"},
        {"role": "tool", "tool_call_id": "call_0_1", "content": "5"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_what_the_official_sdk_sends(stream: bool) -> None:
    script: Script = [
        calls(call("add", a=1), call("add", a=2, b=3)),
        say_json({"value": 5}),
    ]
    schema = {
        "type": "object",
        "properties": {"value": {"type": "integer"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    with ScriptedModel(script) as model:
        described = replace(
            model.model(stream=stream), temperature=0.5, max_tokens=99, params={"seed": 7}
        )
        agent = Agent("a", instructions="Count.", model=described, tools=[add], output=int)
        assert agent.run_sync("go") == 5
        ours = [request.body for request in model.requests]
        assistant = ours[1]["messages"][2]
        with openai.OpenAI(base_url=model.base_url, api_key="none") as client:
            for messages in (conversation([assistant])[:2], conversation([assistant])):
                options: dict[str, Any] = {"stream_options": {"include_usage": True}}
                answer: Any = client.chat.completions.create(
                    model="scripted",
                    messages=messages,
                    tools=[
                        {
                            "type": "function",
                            "function": {
                                "name": "add",
                                "description": add.description,
                                "parameters": add.parameters,
                            },
                        }
                    ],
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": "answer", "schema": schema, "strict": True},
                    },
                    temperature=0.5,
                    max_tokens=99,
                    seed=7,
                    stream=stream,
                    **(options if stream else {}),
                )
                if stream:
                    list(answer)
        theirs = [request.body for request in model.requests[2:]]
    if not stream:
        # The SDK sends the default that it was given; leaving it out means the same.
        for body in theirs:
            assert body.pop("stream") is False
    assert ours == theirs
    # The arguments go back as the model wrote them, byte for byte.
    assert assistant["tool_calls"][1]["function"]["arguments"] == json.dumps({"a": 2, "b": 3})


def test_a_forced_call_holds_for_the_next_model_and_ends_with_the_first_call() -> None:
    async def main() -> None:
        def small(request: Request) -> Step:
            told = request.messages[-1]["role"] == "tool"
            return say("two") if told else calls(call("add", a="one"))

        models: dict[str, Script] = {"small": small, "large": [calls(call("add", a=1))]}
        with ScriptedModel(models=models) as model:
            route = Route(model.model("small"), model.model("large"), policy=RoutePolicy(explore=0))
            agent = Agent("a", model=route, tools=[add], tool_choice="required")
            assert await agent.run("go") == "two"
            choices = [request.body.get("tool_choice") for request in model.requests]
            # The first answer, its repair, the large model; then the small one goes on.
            assert choices == ["required", "required", "required", None]

    asyncio.run(main())
