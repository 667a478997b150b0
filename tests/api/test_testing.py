"""The scripted model, with the official OpenAI SDK as the client that judges its protocol."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from mainspring.models import Model
from mainspring.testing import (
    Call,
    Request,
    ScriptedModel,
    ServerLimits,
    Step,
    call,
    calls,
    delay,
    drop,
    fail,
    garbage,
    hang,
    say,
    say_json,
    wait_for,
)

# Ends a broken test; no test passes or fails by it.
GUARD_S = 60.0
USER: Any = [{"role": "user", "content": "find x"}]
SEARCH: Any = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}
CONSTRAINED: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "step",
        "strict": True,
        "schema": {
            "anyOf": [
                {"type": "object", "properties": {"tool_calls": {"type": "array"}}},
                {"type": "object", "properties": {"answer": {"type": "string"}}},
            ]
        },
    },
}


@contextmanager
def client(model: ScriptedModel, *, retries: int = 0, key: str = "none") -> Iterator[openai.OpenAI]:
    """The SDK, pointed at the model."""
    yield _sdk().with_options(base_url=model.base_url, api_key=key, max_retries=retries)


@cache
def _sdk() -> openai.OpenAI:
    # One for all tests: making it reads all certificates of the system.
    return openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", timeout=GUARD_S)


@pytest.fixture(scope="module", autouse=True)
def _closed_sdk() -> Iterator[None]:
    yield
    _sdk().close()


def ask(model: ScriptedModel, *, messages: Any = USER, retries: int = 0, **more: Any) -> Any:
    """The answer's first choice, through the SDK."""
    with client(model, retries=retries) as sdk:
        answer = sdk.chat.completions.create(
            model=more.pop("name", "scripted"), messages=messages, **more
        )
        return answer.choices[0]


def raw_post(model: ScriptedModel, body: bytes, path: str = "/v1/chat/completions") -> bytes:
    """What the server sends for one request, up to the end of the connection."""
    port = int(model.base_url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        connection.sendall(
            b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
            % (path.encode(), len(body), body)
        )
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def body_of(**more: Any) -> bytes:
    return json.dumps({"model": "scripted", "messages": USER, **more}).encode()


def server_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("scripted-model")]


def refusal(model: ScriptedModel, messages: Any, **more: Any) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(model, messages=messages, **more)
    assert isinstance(caught.value.body, dict)
    return str(caught.value.body["message"])


def test_the_nth_step_answers_the_conversation_with_n_assistant_messages() -> None:
    with ScriptedModel(
        [calls(call("search", query="x"), call("search", query="y")), say("z")]
    ) as m:
        first = ask(m, tools=[SEARCH])
        assert first.finish_reason == "tool_calls"
        assert first.message.content is None
        asked = [(c.id, c.function.name, c.function.arguments) for c in first.message.tool_calls]
        assert asked == [
            ("call_0_0", "search", '{"query": "x"}'),
            ("call_0_1", "search", '{"query": "y"}'),
        ]
        results = [{"role": "tool", "tool_call_id": one[0], "content": "found"} for one in asked]
        history = [*USER, first.message.model_dump(exclude_none=True), *results]
        for _ in range(2):
            last = ask(m, messages=history, tools=[SEARCH])
            assert (last.message.content, last.finish_reason) == ("z", "stop")
        assert [request.assistant_count for request in m.requests] == [0, 1, 1]
        assert [request.attempt for request in m.requests] == [1, 1, 2]
        assert m.requests[1].messages == history
        assert m.requests[0].tools == [SEARCH]


def test_a_stream_carries_the_same_answer_as_a_whole_one_in_several_chunks() -> None:
    text = "Grüße, ein längerer Text, der in viele Stücke zerfällt 🦀."
    with (
        ScriptedModel([say(text, usage={"input_tokens": 7, "output_tokens": 3})]) as m,
        client(m) as sdk,
    ):
        stream = sdk.chat.completions.create(
            model="m", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    pieces = [delta.content for delta in deltas if delta.content]
    assert len(pieces) > 2
    assert "".join(pieces) == text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streamed_tool_calls_come_in_parts_with_their_index() -> None:
    script = [calls(call("search", query="one"), Call("read", '{"pa', id="mine"), text="Looking.")]
    with ScriptedModel(script) as m, client(m) as sdk:
        stream = sdk.chat.completions.create(model="m", messages=USER, tools=[SEARCH], stream=True)
        joined: dict[int, list[str]] = {}
        text = ""
        part_count = 0
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            for part in chunk.choices[0].delta.tool_calls or ():
                part_count += 1
                assert part.function is not None
                one = joined.setdefault(part.index, ["", "", ""])
                one[0] += part.id or ""
                one[1] += part.function.name or ""
                one[2] += part.function.arguments or ""
    assert text == "Looking."
    assert joined == {
        0: ["call_0_0", "search", '{"query": "one"}'],
        1: ["mine", "read", '{"pa'],
    }
    assert part_count > 4


def test_the_sdk_stream_helper_accumulates_the_same_message() -> None:
    with ScriptedModel([calls(call("search", query="x"))]) as m, client(m) as sdk:
        with sdk.chat.completions.stream(model="m", messages=USER, tools=[SEARCH]) as stream:
            streamed = stream.get_final_completion().choices[0]
        whole = ask(m, tools=[SEARCH])
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert [
        (one.id, one.function.name, one.function.arguments) for one in streamed.message.tool_calls
    ] == [(one.id, one.function.name, one.function.arguments) for one in whole.message.tool_calls]


def test_usage_is_what_the_script_says_or_an_estimate() -> None:
    told = say(
        "x",
        usage={"input_tokens": 9, "output_tokens": 4, "cached_tokens": 5, "reasoning_tokens": 2},
    )
    scripts = {"told": [told], "guessed": [say("abcd" * 10)]}
    with ScriptedModel(models=scripts) as m, client(m) as sdk:
        exact = sdk.chat.completions.create(model="told", messages=USER).usage
        guess = sdk.chat.completions.create(model="guessed", messages=USER).usage
    assert exact is not None
    assert guess is not None
    assert exact.prompt_tokens_details is not None
    assert exact.completion_tokens_details is not None
    assert (exact.prompt_tokens, exact.completion_tokens, exact.total_tokens) == (9, 4, 13)
    assert exact.prompt_tokens_details.cached_tokens == 5
    assert exact.completion_tokens_details.reasoning_tokens == 2
    assert guess.completion_tokens == 10
    assert guess.prompt_tokens > 1


def test_structured_output_parses_into_a_type() -> None:
    class City(BaseModel):
        name: str
        people: int

    with ScriptedModel([say_json({"name": "Oslo", "people": 717710})]) as m, client(m) as sdk:
        parsed = sdk.chat.completions.parse(model="m", messages=USER, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Oslo", people=717710)


def test_a_cut_answer_reports_its_finish_reason() -> None:
    with ScriptedModel([say("half of", finish_reason="length")]) as m:
        assert ask(m).finish_reason == "length"


def test_constrained_models_get_their_calls_and_answers_as_json() -> None:
    steps: list[Step] = [
        calls(call("search", query="x"), Call("read", "{broken")),
        say("done"),
        say_json({"a": 1}),
    ]
    with ScriptedModel(steps) as m:
        history = list(USER)
        texts = []
        for _ in steps:
            choice = ask(m, messages=history, response_format=CONSTRAINED)
            assert choice.message.tool_calls is None
            assert choice.finish_reason == "stop"
            texts.append(choice.message.content)
            history += [{"role": "assistant", "content": texts[-1]}, USER[0]]
    assert texts == [
        '{"tool_calls":[{"name":"search","arguments":{"query": "x"}},'
        '{"name":"read","arguments":{broken}]}',
        '{"answer": "done"}',
        # The schema wants a text, so the value is written into one.
        '{"answer": "{\\"a\\": 1}"}',
    ]


def test_a_constrained_answer_that_is_no_text_is_put_in_as_it_is() -> None:
    schema = {
        "$defs": {"calls": {"properties": {"tool_calls": {}}}},
        "anyOf": [{"$ref": "#/$defs/calls"}, {"properties": {"answer": {"type": "object"}}}],
    }
    with ScriptedModel([say_json({"a": 1})]) as m:
        choice = ask(m, response_format={"type": "json_object", "schema": schema})
    assert json.loads(choice.message.content) == {"answer": {"a": 1}}


@pytest.mark.parametrize(
    ("answer_schema", "step", "expected"),
    [
        # A constrained model that has a result type and no tools.
        ({"type": "object", "properties": {"a": {}}}, say_json({"a": 1}), '{"answer": {"a": 1}}'),
        (
            {"type": "object", "properties": {"answer": {}}},
            say_json({"answer": 1}),
            '{"answer": {"answer": 1}}',
        ),
        # A result type whose only field is called `answer`.
        ({"type": "integer"}, say_json({"answer": 1}), '{"answer": 1}'),
        ({"type": "integer"}, say("no JSON"), "no JSON"),
    ],
)
def test_a_form_without_calls_wraps_values_that_do_not_have_it(
    answer_schema: Any, step: Step, expected: str
) -> None:
    form = {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": answer_schema},
            "required": ["answer"],
            "additionalProperties": False,
        },
    }
    with ScriptedModel([step]) as m:
        choice = ask(m, response_format={"type": "json_schema", "json_schema": form})
    assert choice.message.content == expected


def test_a_function_chooses_the_step() -> None:
    def script(request: Request) -> Step:
        if request.attempt == 1:
            return fail(500)
        return say(f"{request.model} {request.messages[-1]['content']} {request.attempt}")

    with ScriptedModel(script) as m:
        assert ask(m, name="any", retries=1).message.content == "any find x 2"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([say("x")], "script of model 'm' has 1 steps, and this conversation already holds 1"),
        (lambda _: 1 / 0, "script function of model 'm' raised ZeroDivisionError"),
        (lambda _: "text", "script function of model 'm' returned str, allowed a step"),
    ],
)
def test_a_script_without_an_answer_is_an_error_that_no_client_retries(
    script: Any, message: str
) -> None:
    history = [*USER, {"role": "assistant", "content": "x"}, *USER]
    with ScriptedModel(script) as m:
        assert message in refusal(m, history, name="m", retries=3)
        assert m.request_count == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
def test_a_failure_is_the_sdks_error_for_its_status(
    status: int, kind: type[openai.APIStatusError]
) -> None:
    script = [fail(status, "no luck", code="odd")]
    with ScriptedModel(script) as m, pytest.raises(kind) as caught:
        ask(m)
    assert caught.value.status_code == status
    assert caught.value.code == "odd"
    assert "no luck" in caught.value.message
    assert caught.value.request_id == "req_1"


def test_a_rate_limit_says_when_to_come_back_and_then_answers() -> None:
    with ScriptedModel([fail(429, retry_after_s=0.01, times=2, then=say("x"))]) as m:
        assert ask(m, retries=2).message.content == "x"
        assert [request.attempt for request in m.requests] == [1, 2, 3]
        with pytest.raises(openai.RateLimitError) as caught:
            ask(m, messages=[{"role": "user", "content": "another conversation"}])
    assert caught.value.response.headers["retry-after"] == "0.01"
    assert caught.value.response.headers["retry-after-ms"] == "10"
    assert caught.value.code == "rate_limit_exceeded"


def test_failures_follow_one_another() -> None:
    chain = fail(500, times=2, then=drop(then=garbage(then=say("at last"))))
    with ScriptedModel([chain]) as m:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                ask(m)
        with pytest.raises(openai.APIConnectionError):
            ask(m)
        assert b"<html>" in raw_post(m, m_body := json.dumps(m.requests[0].body).encode())
        assert b"at last" in raw_post(m, m_body)


def test_models_have_their_own_scripts_and_other_names_are_unknown() -> None:
    with (
        ScriptedModel(models={"small": [say("s")], "large": [say("l")]}) as m,
        client(m) as sdk,
    ):
        assert ask(m, name="small").message.content == "s"
        assert ask(m, name="large").message.content == "l"
        assert [one.id for one in sdk.models.list()] == ["small", "large"]
        assert sdk.models.retrieve("small").id == "small"
        with pytest.raises(openai.NotFoundError) as caught:
            ask(m, name="huge")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("huge")


def test_the_key_is_checked_and_never_kept_or_repeated() -> None:
    with ScriptedModel([say("x")], api_key="right-key") as m:
        with client(m, key="right-key") as sdk:
            sdk.chat.completions.create(model="m", messages=USER)
        with client(m, key="wrong-key") as sdk, pytest.raises(openai.AuthenticationError) as caught:
            sdk.chat.completions.create(model="m", messages=USER)
        assert b"401 Unauthorized" in raw_post(m, body_of())
        assert m.requests[0].headers["authorization"] == "hidden"
        assert m.request_count == 1
    assert caught.value.code == "invalid_api_key"
    assert "wrong-key" not in caught.value.message


def called(*ids: str) -> dict[str, Any]:
    function = {"name": "search", "arguments": "{}"}
    listed = [{"id": one, "type": "function", "function": function} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": listed}


def result(call_id: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": "r"}


def test_unknown_paths_and_methods_are_told_apart() -> None:
    with ScriptedModel([say("x")]) as m:
        assert b"Invalid URL (POST /v2/x)" in raw_post(m, b"", "/v2/x")
        assert raw_post(m, b"", "/v1/models").startswith(b"HTTP/1.1 405 Method Not Allowed")
        port = int(m.base_url.split(":")[2].split("/")[0])
        connection = HTTPConnection("127.0.0.1", port, timeout=GUARD_S)
        connection.request("GET", "/v1/chat/completions")
        assert connection.getresponse().status == 405
        connection.close()


def test_a_stream_that_drops_ends_inside_the_answer() -> None:
    with ScriptedModel([drop(after_chars=10, of=say("0123456789abcdef"))]) as m:
        answer = raw_post(m, body_of(stream=True))
        with client(m) as sdk, pytest.raises(openai.APIConnectionError):
            list(sdk.chat.completions.create(model="m", messages=USER, stream=True))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    events = [
        json.loads(line.removeprefix(b"data: "))
        for line in answer.split(b"\n")
        if line.startswith(b"data: ")
    ]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == "0123456789"
    assert b"[DONE]" not in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_a_whole_answer_that_drops_is_shorter_than_its_length() -> None:
    with ScriptedModel([drop(after_chars=10)]) as m:
        head, body = raw_post(m, body_of()).split(b"\r\n\r\n")
        with pytest.raises(openai.APIConnectionError):
            ask(m)
    assert body == b'{"object":'[:10]
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    assert int(length.split(b":")[1]) > 100


def test_a_drop_never_lets_the_whole_answer_through() -> None:
    with ScriptedModel([drop(after_chars=1_000_000, of=calls(call("search")))]) as m:
        assert b"[DONE]" not in raw_post(m, body_of(stream=True))
        assert not raw_post(m, body_of()).endswith(b"}}}")
        with pytest.raises(openai.APIConnectionError):
            ask(m)


def test_a_drop_without_characters_closes_before_the_status_line() -> None:
    with ScriptedModel([drop(after_chars=None)]) as m:
        assert raw_post(m, body_of()) == b""


@pytest.mark.parametrize(
    ("stream", "kind"), [(False, b"application/json"), (True, b"text/event-stream")]
)
def test_garbage_arrives_whole_and_as_a_good_answer(stream: bool, kind: bytes) -> None:
    with ScriptedModel([garbage(b"\x00\xff not a model")]) as m:
        head, body = raw_post(m, body_of(stream=stream)).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"content-type: " + kind in head
    assert body == b"\x00\xff not a model"


def test_a_hanging_answer_ends_when_the_server_stops() -> None:
    with ScriptedModel([hang()]) as m:
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                ask(m)
            except openai.APIConnectionError as error:
                failed.append(error)

        asking = threading.Thread(target=wait)
        asking.start()
        m.wait_for_requests(1)
        assert asking.is_alive()
        m.stop()
        asking.join()
    assert len(failed) == 1
    assert server_threads() == []


def test_a_stream_can_hang_half_way_until_the_client_leaves() -> None:
    script = [hang(after_chars=4, of=say("0123456789"), then=say("x"))]
    with ScriptedModel(script) as m, client(m) as sdk:
        stream = sdk.chat.completions.create(model="m", messages=USER, stream=True)
        got = ""
        for chunk in stream:
            got += chunk.choices[0].delta.content or ""
            if len(got) == 4:
                break
        stream.close()
        again = sdk.chat.completions.create(model="m", messages=USER, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in again) == "x"
    assert got == "0123"


def test_answers_wait_for_an_event() -> None:
    go = threading.Event()
    answers: list[str] = []
    with ScriptedModel([wait_for(go, then=delay(0, then=say("x")))]) as m:

        def wait(idx: int) -> None:
            messages = [{"role": "user", "content": str(idx)}]
            answers.append(ask(m, messages=messages).message.content)

        asking = [threading.Thread(target=wait, args=(idx,)) for idx in range(8)]
        for one in asking:
            one.start()
        m.wait_for_requests(8)
        assert answers == []
        go.set()
        for one in asking:
            one.join()
    assert answers == ["x"] * 8


def test_stopping_does_not_wait_for_an_event_that_never_comes() -> None:
    with ScriptedModel([wait_for(threading.Event(), then=say("x"))]) as m:
        asking = threading.Thread(target=raw_post, args=(m, body_of()))
        asking.start()
        m.wait_for_requests(1)
    asking.join()
    assert server_threads() == []


def test_many_conversations_run_at_once() -> None:
    def script(request: Request) -> Step:
        if request.assistant_count == 0:
            return calls(call("search", query=request.messages[0]["content"]))
        return say(request.messages[0]["content"])

    async def converse(sdk: openai.AsyncOpenAI, idx: int) -> str | None:
        messages: Any = [{"role": "user", "content": f"q{idx}"}]
        stream = sdk.chat.completions.stream(model="m", messages=messages, tools=[SEARCH])
        async with stream as events:
            first = (await events.get_final_completion()).choices[0].message
        assert first.tool_calls is not None
        assert json.loads(first.tool_calls[0].function.arguments) == {"query": f"q{idx}"}
        messages.append(called(first.tool_calls[0].id))
        messages.append(result(first.tool_calls[0].id))
        last = await sdk.chat.completions.create(model="m", messages=messages, tools=[SEARCH])
        return last.choices[0].message.content

    async def all_of_them(m: ScriptedModel) -> list[str | None]:
        async with openai.AsyncOpenAI(
            base_url=m.base_url, api_key="none", max_retries=0, timeout=GUARD_S
        ) as sdk:
            return await asyncio.gather(*(converse(sdk, idx) for idx in range(100)))

    with ScriptedModel(script) as m:
        assert asyncio.run(all_of_them(m)) == [f"q{idx}" for idx in range(100)]
        assert m.request_count == 200


def test_hundreds_of_connections_are_held_open_at_once() -> None:
    go = threading.Event()

    async def post(port: int, idx: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = body_of(user=str(idx))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head.split(b"\r\n")[0]

    async def all_of_them(m: ScriptedModel) -> list[bytes]:
        port = int(m.base_url.split(":")[2].split("/")[0])
        posts = asyncio.gather(*(post(port, idx) for idx in range(400)))
        await asyncio.to_thread(m.wait_for_requests, 400)
        go.set()
        return await posts

    with ScriptedModel([wait_for(go, then=say("x"))]) as m:
        assert asyncio.run(all_of_them(m)) == [b"HTTP/1.1 200 OK"] * 400


def test_a_connection_is_used_again_after_answers_and_errors() -> None:
    with ScriptedModel([fail(503, then=say("x"))]) as m:
        port = int(m.base_url.split(":")[2].split("/")[0])
        connection = HTTPConnection("127.0.0.1", port, timeout=GUARD_S)
        connection.connect()
        opened = connection.sock
        assert opened is not None
        statuses = []
        for body in (body_of(), body_of(), body_of(stream=True), b"{", body_of(user="u")):
            # An iterable body without a length goes out in chunks.
            connection.request(
                "POST",
                "/v1/chat/completions",
                iter([body[:1], body[1:]]),
                encode_chunked=True,
                headers={"transfer-encoding": "chunked"},
            )
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
            assert connection.sock is opened
        connection.close()
    assert statuses == [503, 200, 503, 400, 503]


def test_the_oldest_requests_and_attempts_are_forgotten() -> None:
    limits = ServerLimits(requests_kept_max=2, attempts_kept_max=2)
    with ScriptedModel([say("x")], limits=limits) as m:
        for user in ("a", "b", "c", "c", "a"):
            raw_post(m, body_of(user=user))
        kept = [(request.body["user"], request.attempt) for request in m.requests]
        assert kept == [("c", 2), ("a", 1)]
        assert m.request_count == 5


def test_it_describes_itself_as_a_model_for_agents() -> None:
    with ScriptedModel([say("x")]) as m:
        assert m.model() == Model("scripted", base_url=m.base_url, api_key="none")
    with ScriptedModel(models={"small": [say("s")], "large": [say("l")]}, api_key="k") as m:
        assert m.model().name == "small"
        assert m.model("large", tool_mode="json_schema", stream=True) == Model(
            "large", base_url=m.base_url, api_key="k", tool_mode="json_schema", stream=True
        )


def test_a_stopped_server_starts_again_on_its_port() -> None:
    m = ScriptedModel([say("x")])
    with pytest.raises(RuntimeError, match="no address yet"):
        _ = m.base_url
    m.stop()
    with m:
        with pytest.raises(RuntimeError, match="runs already"):
            m.start()
        before = m.base_url
    with pytest.raises(openai.APIConnectionError):
        ask(m)
    with m:
        assert m.base_url == before
        assert ask(m).message.content == "x"
        with pytest.raises(OSError, match="in use"):
            ScriptedModel([say("y")], port=int(before.split(":")[2].split("/")[0])).start()
    assert server_threads() == []


def test_waiting_for_requests_that_do_not_come_says_how_many_came() -> None:
    with (
        ScriptedModel([say("x")]) as m,
        pytest.raises(TimeoutError, match="got 0 requests in 0 s, waited for 1"),
    ):
        m.wait_for_requests(1, timeout_s=0)


def test_a_script_file_is_served_until_standard_input_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    steps = [
        {"calls": [{"name": "search", "arguments": {"query": "x"}, "id": "c"}], "text": "t"},
        {"fail": 429, "retry_after_s": 0, "then": {"delay": 0, "then": {"say": "done"}}},
        {"hang": None, "then": {"drop": 10, "then": {"garbage": "<", "then": {"say_json": [1]}}}},
    ]
    script.write_text(json.dumps({"models": {"small": steps}, "api_key": "k"}))
    command = [sys.executable, "-m", "mainspring.testing", str(script), "--until-eof"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        base_url = server.stdout.readline().strip()
        with openai.OpenAI(base_url=base_url, api_key="k", timeout=GUARD_S) as sdk:
            first = sdk.chat.completions.create(model="small", messages=USER).choices[0].message
            assert first.content == "t"
            history = [*USER, called("c"), result("c")]
            last = sdk.chat.completions.create(model="small", messages=history)
            assert last.choices[0].message.content == "done"
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(GUARD_S) == 0
