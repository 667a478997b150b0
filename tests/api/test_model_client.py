"""Model calls without a session: answers, streams, routes, tools, types, and what goes wrong."""

import asyncio
import gc
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mainspring import (
    AgentError,
    Answer,
    Budget,
    BudgetError,
    Completion,
    EngineError,
    MainspringError,
    Model,
    ModelClient,
    ModelError,
    Route,
    SessionFailed,
    tool,
)
from mainspring.testing import (
    Request,
    Script,
    ScriptedModel,
    Step,
    call,
    calls,
    drop,
    fail,
    hang,
    say,
    say_json,
)


@tool(effect="read")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@dataclass
class Colour:
    name: str
    shade: int


def with_model(
    script: Script, work: Callable[[ModelClient, Model], Awaitable[Any]], **options: Any
) -> tuple[Any, list[Any]]:
    """What `work` gives with one scripted model, and the requests that the model got."""

    async def main() -> tuple[Any, list[Any]]:
        with ScriptedModel(script, **options) as served:
            async with ModelClient() as client:
                return await work(client, served.model()), list(served.requests)

    return asyncio.run(main())


def completed(script: Script, messages: Any = "hi", **options: Any) -> tuple[Completion, Any]:
    """A completion, and the request that the model got."""

    async def work(client: ModelClient, model: Model) -> Completion:
        return await client.complete(model, messages, **options)

    done, requests = with_model(script, work)
    return done, requests[-1]


def test_an_answer_has_text_usage_and_its_model() -> None:
    done, request = completed([say("Hello.")])
    assert (done.text, done.tool_calls, done.parsed) == ("Hello.", (), None)
    assert done.finish_reason == "stop"
    assert done.usage.input_tokens > 0
    assert done.usage.output_tokens > 0
    assert done.cost_usd is None
    assert done.decision["reason"] == "the only model"
    assert [attempt["model"] for attempt in done.attempts] == [done.model]
    assert done.problems == []
    assert request.body["messages"] == [{"role": "user", "content": "hi"}]


def test_messages_options_and_params_reach_the_model() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    _, request = completed(
        [say("unused"), say("Yes.")], messages, max_tokens=7, temperature=0.25, params={"seed": 3}
    )
    body = request.body
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["temperature"], body["seed"]) == (0.25, 3)
    assert 7 in (body.get("max_tokens"), body.get("max_completion_tokens"))


def test_tools_are_described_and_their_calls_come_back() -> None:
    done, request = completed([calls(call("add", a=1))], tools=[add])
    assert done.finish_reason == "tool_calls"
    [asked] = done.tool_calls
    assert (asked.name, asked.arguments) == ("add", '{"a": 1}')
    [sent] = request.body["tools"]
    assert sent["function"]["name"] == "add"
    assert sent["function"]["parameters"]["required"] == ["a"]
    as_dict = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
    done, request = completed([calls(call("add"))], tools=[as_dict])
    assert done.tool_calls[0].name == "add"


def test_a_conversation_with_tools_goes_on() -> None:
    async def work(client: ModelClient, model: Model) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": "1 + 1?"}]
        first = await client.complete(model, messages, tools=[add])
        [asked] = first.tool_calls
        function = {"name": asked.name, "arguments": asked.arguments}
        sent = {"id": asked.id, "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [sent]})
        messages.append({"role": "tool", "tool_call_id": asked.id, "content": "2"})
        return (await client.complete(model, messages, tools=[add])).text

    text, requests = with_model([calls(call("add", a=1)), say("two")], work)
    assert text == "two"
    assert [each["role"] for each in requests[1].body["messages"]] == ["user", "assistant", "tool"]


def test_arguments_that_do_not_fit_are_mended() -> None:
    script = [calls(call("add", a="one")), calls(call("add", a=1))]
    done, request = completed(script, tools=[add])
    assert done.tool_calls[0].arguments == '{"a": 1}'
    assert len(done.attempts) == 2
    assert done.attempts[0]["problems"][0]["check"] == "tool_arguments"
    assert "rejected" in request.body["messages"][-1]["content"]


def test_arguments_that_never_fit_come_back_with_what_is_wrong() -> None:
    wrong = calls(call("add", a="one"))
    done, _ = completed([wrong, wrong], tools=[add])
    assert [problem["check"] for problem in done.problems] == ["tool_arguments"]


def test_an_answer_comes_as_the_type_that_was_asked_for() -> None:
    done, request = completed([say_json({"name": "red", "shade": 3})], output=Colour)
    assert done.parsed == Colour("red", 3)
    assert request.body["response_format"]["json_schema"]["schema"]["required"]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    done, _ = completed([say_json({"n": 1})], output=schema)
    assert done.parsed == {"n": 1}
    done, _ = completed([say_json({"value": [1, 2]})], output=list[int])
    assert done.parsed == [1, 2]


def test_an_answer_that_never_fits_raises() -> None:
    with pytest.raises(SessionFailed) as raised:
        completed([say("red"), say("still red")], output=Colour)
    assert raised.value.code == "output_invalid"


def routed(
    small: Script, large: Script, *, stream: bool = False, **options: Any
) -> tuple[Any, list[str]]:
    """The completion or the streamed texts of a route of two, and who was asked."""
    verify = options.pop("verify", None)
    if "check" in options:
        options["verify"] = options.pop("check")

    async def main() -> tuple[Any, list[str]]:
        with ScriptedModel(models={"small": small, "large": large}) as served:
            route = Route(served.model("small"), served.model("large"), verify=verify)
            async with ModelClient() as client:
                if stream:
                    found: Any = [
                        (delta.text, delta.restarted)
                        async for delta in client.stream(route, "hi", **options)
                    ]
                else:
                    found = await client.complete(route, "hi", **options)
                return found, [request.model for request in served.requests]

    return asyncio.run(main())


def test_an_empty_answer_escalates_and_a_failure_falls_back() -> None:
    done, asked = routed([say("")], [say("good")])
    assert (done.text, done.model, asked) == ("good", "large", ["small", "large"])
    done, asked = routed([fail(400)], [say("good")])
    assert (done.text, asked) == ("good", ["small", "large"])
    assert done.attempts[0]["error"]["code"] == "model_bad_request"


def test_verify_functions_sync_and_async_decide() -> None:
    def short(answer: Answer) -> str | None:
        return None if len(answer.text) < 5 else "too long"

    async def later(answer: Answer) -> bool:
        await asyncio.sleep(0)
        return answer.model == "large"

    done, asked = routed([say("much too long"), say("ok")], [say("unused")], verify=short)
    assert (done.text, asked) == ("ok", ["small", "small"])
    done, asked = routed([say("a"), say("b")], [say("c")], verify=later)
    assert (done.text, asked) == ("c", ["small", "small", "large"])
    with pytest.raises(SessionFailed, match="too long") as raised:
        routed([say("much too long")] * 2, [say("much too long")] * 2, verify=short)
    assert raised.value.code == "answer_rejected"


def test_a_stream_gives_the_text_and_then_the_whole() -> None:
    async def work(client: ModelClient, model: Model) -> tuple[str, Completion | None]:
        stream = client.stream(model, "hi")
        text = "".join([delta.text async for delta in stream])
        return text, stream.completion

    (text, done), requests = with_model([say("one two three four")], work)
    assert text == "one two three four"
    assert done is not None
    assert (done.text, done.finish_reason) == (text, "stop")
    assert requests[0].body["stream"] is True


def said(deltas: list[tuple[str, bool]]) -> str:
    """The text that counts: what came since the answer last began anew."""
    text = ""
    for piece, restarted in deltas:
        text = piece if restarted else text + piece
    return text


def test_a_stream_of_a_small_model_is_held_back_until_it_is_checked() -> None:
    def good(answer: Answer) -> bool:
        return answer.text != "bad"

    deltas, _ = routed([say("bad"), say("bad")], [say("good")], stream=True, verify=good)
    assert deltas == [("good", False)]
    deltas, _ = routed([say("small is fine")], [say("unused")], stream=True)
    assert deltas == [("small is fine", False)]


def test_a_stream_that_is_not_held_back_begins_anew() -> None:
    def good(answer: Answer) -> bool:
        return answer.text != "bad"

    script = [say("bad"), say("bad")]
    deltas, _ = routed(script, [say("good")], stream=True, verify=good, check="never")
    assert any(restarted for _, restarted in deltas)
    assert said(deltas) == "good"


def test_a_stream_that_breaks_begins_anew_or_raises() -> None:
    async def work(client: ModelClient, model: Model) -> list[tuple[str, bool]]:
        return [(each.text, each.restarted) async for each in client.stream(model, "hi")]

    with pytest.raises(ModelError) as raised:
        with_model([fail(400)], work)
    assert raised.value.code == "model_bad_request"
    deltas, requests = with_model([drop(then=say("whole"))], work)
    assert said(deltas) == "whole"
    assert len(requests) == 2


def test_a_stream_can_be_broken_off() -> None:
    async def work(client: ModelClient, model: Model) -> str:
        async for _ in client.stream(model, "hi"):
            break
        stream = client.stream(model, "hi")
        await stream.aclose()
        assert [each async for each in stream] == []
        del stream
        gc.collect()
        return (await client.complete(model, "hi")).text

    text, _ = with_model([say("one two three")], work)
    assert text == "one two three"


def test_many_calls_at_once_share_a_client() -> None:
    async def work(client: ModelClient, model: Model) -> list[str]:
        asked = [client.complete(model, f"number {idx}") for idx in range(200)]
        return [done.text for done in await asyncio.gather(*asked)]

    texts, requests = with_model([say("x")], work)
    assert texts == ["x"] * 200
    assert len({request.body["messages"][0]["content"] for request in requests}) == 200


def test_a_cancelled_call_ends_and_harms_no_other() -> None:
    reached = threading.Event()

    async def work(client: ModelClient, model: Model) -> str:
        waiting = asyncio.ensure_future(client.complete(model, "hangs"))
        await asyncio.get_running_loop().run_in_executor(None, reached.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await client.complete(model, "works")).text

    def script(request: Request) -> Step:
        if request.body["messages"][0]["content"] == "works":
            return say("works")
        reached.set()
        return hang()

    text, _ = with_model(script, work)
    assert text == "works"


def test_a_tenant_spends_no_more_than_its_budget() -> None:
    async def main() -> None:
        with ScriptedModel([say("x")]) as served:
            model = served.model()
            async with ModelClient(budgets={"poor": Budget(calls=1)}) as client:
                await client.complete(model, "hi", tenant="poor")
                with pytest.raises(BudgetError):
                    await client.complete(model, "hi", tenant="poor")
                await client.complete(model, "hi", tenant="other")
                assert len(served.requests) == 2

    asyncio.run(main())


def test_time_that_is_up_is_an_error() -> None:
    with pytest.raises(ModelError) as raised:
        completed([hang()], timeout_s=0.05)
    assert raised.value.code == "model_timeout"
    assert "0.05 s" in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "options", "told"),
    [
        ([], {}, '"messages" is empty'),
        ([{"role": "bot", "content": "x"}], {}, "role of messages[0] is bot"),
        ([{"role": "user", "content": 7}], {}, '"messages[0].content" is 7'),
        ([{"role": "tool", "tool_call_id": "c", "content": "x"}], {}, "answers tool call c"),
        ("hi", {"max_tokens": 0}, '"max_tokens" is 0'),
        ("hi", {"params": {"n": 2}}, '"n" is 2'),
        ("hi", {"params": {"x": object()}}, "cannot be written as JSON"),
        ("hi", {"tool_choice": "add"}, 'names add, which is not in "tools"'),
        ("hi", {"tools": [{"type": "web"}]}, "type of tools[0] is web"),
        ("hi", {"output": {"type": "nothing"}}, "schema"),
    ],
)
def test_what_cannot_be_asked_is_told(messages: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(MainspringError, match=re.escape(told)):
        completed([say("unused")], messages, **options)


def test_wrong_types_are_told() -> None:
    with pytest.raises(TypeError, match="messages is text or a list"):
        completed([say("unused")], 7)
    with pytest.raises(TypeError, match="messages is text or a list"):
        completed([say("unused")], {"role": "user"})
    with pytest.raises(ValueError, match="timeout_s is 0"):
        completed([say("unused")], timeout_s=0)
    with pytest.raises(AgentError, match="not known"):
        asyncio.run(ask("unknown-model"))


async def ask(model: Any) -> Completion:
    async with ModelClient() as client:
        return await client.complete(model, "hi")


def test_a_missing_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError) as raised:
        asyncio.run(ask("openai:gpt-5.4-mini"))
    assert raised.value.code == "model_auth"


def test_a_closed_client_answers_nobody() -> None:
    async def main() -> None:
        with ScriptedModel([hang()]) as served:
            client = ModelClient()
            with pytest.raises(EngineError, match="not open"):
                await client.complete(served.model(), "hi")
            async with client:
                with pytest.raises(RuntimeError, match="open already"):
                    await client.__aenter__()
                waiting = asyncio.ensure_future(client.complete(served.model(), "hi"))
                await asyncio.sleep(0)
            with pytest.raises(EngineError) as raised:
                await waiting
            assert raised.value.code == "engine_closed"
            await client.close()

    asyncio.run(main())


def test_a_key_is_in_no_error() -> None:
    model = Model("m", base_url="http://127.0.0.1:9/v1", api_key="not-a-real-key-123")
    with pytest.raises(ModelError) as raised:
        asyncio.run(ask_briefly(model))
    assert "not-a-real-key" not in str(raised.value)
    assert "not-a-real-key" not in repr(raised.value)


async def ask_briefly(model: Model) -> Completion:
    async with ModelClient() as client:
        return await client.complete(model, "hi", timeout_s=0.05)
