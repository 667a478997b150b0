"""The three APIs against the official SDKs: what we send, and what we make of the same answers."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import anthropic
import openai
import pytest

from mainspring import Agent, Engine, Limits, Model, tool
from mainspring.events import Event, ModelCallFinished
from tests.api.sdk_support import Recorded, recorded

APIS = ["chat", "responses", "messages"]
API_NAMES: dict[str, Any] = {
    "chat": "chat_completions",
    "responses": "responses",
    "messages": "messages",
}
CACHE = {"type": "ephemeral"}
SCHEMA = {
    "type": "object",
    "properties": {"value": {"type": "integer"}},
    "required": ["value"],
    "additionalProperties": False,
}


@tool(effect="read")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers. The second is 1 if left out."""
    return a + b


def model(server: Recorded, api: str, **options: Any) -> Model:
    """A model behind the server."""
    return Model("m", base_url=f"{server.address}/v1", api=API_NAMES[api], **options)


def log_of(agent: Agent[Any]) -> list[Event]:
    """The log of one turn, however it ends."""

    async def main() -> list[Event]:
        async with Engine("memory:") as engine:
            run = await engine.start(agent, "go")
            await run.report()
            return list(await engine.log(run.session))

    return asyncio.run(main())


def first_answer(server: Recorded, api: str, **options: Any) -> ModelCallFinished:
    """What the engine made of the first answer."""
    limits = Limits(repairs_max=0, model_attempts_max=1)
    agent = Agent("a", model=model(server, api, **options), tools=[add], limits=limits)
    found = [event for event in log_of(agent) if isinstance(event, ModelCallFinished)]
    return found[0]


# What we make of an answer. Each reader gives: text, refusal, calls, thoughts, and usage as tokens
# read, read from the cache, put into it, and written.

Read = tuple[str, str | None, list[tuple[str, str, Any]], list[str], tuple[int, int, int, int]]


def ask_chat(server: Recorded, *, stream: bool, **options: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "go"}]}
        asked |= options
        if not stream:
            return client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            return events.get_final_completion()


def read_chat(done: Any) -> Read:
    message = done.choices[0].message
    calls = [
        (call.id, call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or []
    ]
    extra = message.model_extra or {}
    details = extra.get("reasoning_details") or []
    thoughts = [str(each.get("text") or "") for each in details]
    if not details and extra.get("reasoning_content"):
        thoughts = [extra["reasoning_content"]]
    usage = done.usage
    tokens = (
        usage.prompt_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.prompt_tokens_details.cache_write_tokens,
        usage.completion_tokens,
    )
    return message.content or "", message.refusal, calls, thoughts, tokens


def ask_responses(server: Recorded, *, stream: bool, **options: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "m", "input": "go"}
        asked |= options
        if not stream:
            return client.responses.create(**asked)
        for event in client.responses.create(**asked, stream=True):
            if event.type in ("response.completed", "response.incomplete"):
                return event.response
        raise AssertionError("the stream has no end")


def read_responses(done: Any) -> Read:
    parts = [part for item in done.output if item.type == "message" for part in item.content]
    refusals = [part.refusal for part in parts if part.type == "refusal"]
    calls = [
        (item.call_id, item.name, json.loads(item.arguments))
        for item in done.output
        if item.type == "function_call"
    ]
    thoughts = [
        "\n\n".join(part.text for part in item.summary)
        for item in done.output
        if item.type == "reasoning"
    ]
    usage = done.usage
    tokens = (
        usage.input_tokens,
        usage.input_tokens_details.cached_tokens,
        usage.input_tokens_details.cache_write_tokens,
        usage.output_tokens,
    )
    return done.output_text, "".join(refusals) or None, calls, thoughts, tokens


def ask_messages(server: Recorded, *, stream: bool, **options: Any) -> Any:
    with anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {
            "model": "m",
            "max_tokens": 8192,
            "messages": [{"role": "user", "content": "go"}],
        }
        asked |= options
        if not stream:
            return client.messages.create(**asked)
        with client.messages.stream(**asked) as events:
            return events.get_final_message()


def read_messages(done: Any) -> Read:
    text = "".join(block.text for block in done.content if block.type == "text")
    calls = [
        (block.id, block.name, block.input) for block in done.content if block.type == "tool_use"
    ]
    thoughts = [
        block.thinking if block.type == "thinking" else ""
        for block in done.content
        if block.type in ("thinking", "redacted_thinking")
    ]
    refusal = done.stop_details.explanation if done.stop_reason == "refusal" else None
    usage = done.usage
    cached, stored = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    tokens = (usage.input_tokens + cached + stored, cached, stored, usage.output_tokens)
    return text, refusal, calls, thoughts, tokens


ASK = {"chat": ask_chat, "responses": ask_responses, "messages": ask_messages}
READ = {"chat": read_chat, "responses": read_responses, "messages": read_messages}


def ours(event: ModelCallFinished) -> Read:
    answer, usage = event.answer, event.usage
    calls = [(call.id, call.name, json.loads(call.arguments)) for call in answer.tool_calls]
    is_refusal = event.finish_reason == "content_filter"
    return (
        "" if is_refusal else answer.text,
        answer.text if is_refusal else None,
        calls,
        [piece.text for piece in answer.reasoning],
        (usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.output_tokens),
    )


READABLE = [
    ("chat", ["text", "tools", "reasoning", "details", "refusal", "logprobs"]),
    ("responses", ["text", "tools", "reasoning", "refusal", "incomplete", "logprobs"]),
    ("messages", ["text", "tools", "reasoning", "refusal", "length"]),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("api", "name"), [(api, name) for api, names in READABLE for name in names]
)
def test_an_answer_means_to_us_what_it_means_to_the_official_sdk(
    api: str, name: str, stream: bool
) -> None:
    end = "sse" if stream else "json"
    with recorded(f"{api}/{name}.{end}", f"{api}/text.{end}") as server:
        found = ours(first_answer(server, api, stream=stream))
    with recorded(f"{api}/{name}.{end}") as server:
        expected = READ[api](ASK[api](server, stream=stream))
    if (api, name, stream) == ("chat", "details", True):
        # The SDK lists the pieces of streamed details; they are one element in the end.
        expected = (*expected[:3], ["First add.", ""], expected[4])
    assert found == expected
    assert found[4] == (20, 8, 4, 9)


def test_how_sure_a_model_was_is_noted() -> None:
    for api in ("chat", "responses"):
        for end in ("json", "sse"):
            with recorded(f"{api}/logprobs.{end}") as server:
                event = first_answer(server, api, stream=end == "sse", logprobs=True)
            assert event.notes.logprob_mean == -1.0


# What we send.


def chat_tool() -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": "add",
            "description": add.description,
            "parameters": add.parameters,
        },
    }


def chat_asked(first: Any) -> list[dict[str, Any]]:
    """The two requests of a turn, as a user of the SDK makes them."""
    start = [{"role": "system", "content": "Count."}, {"role": "user", "content": "go"}]
    said = first.choices[0].message
    again: dict[str, Any] = {"role": "assistant", "content": said.content}
    again |= {
        name: (said.model_extra or {})[name]
        for name in ("reasoning_content", "reasoning_details")
        if name in (said.model_extra or {})
    }
    again["tool_calls"] = [call.model_dump(exclude_unset=True) for call in said.tool_calls]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(said.tool_calls, ("2", "5"), strict=True)
    ]
    form = {"name": "answer", "schema": SCHEMA, "strict": True}
    shared: dict[str, Any] = {
        "tools": [chat_tool()],
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": form},
    }
    forced = {"type": "function", "function": {"name": "add"}}
    return [
        {"messages": start, "tool_choice": forced, **shared},
        {"messages": [*start, again, *results], **shared},
    ]


def responses_asked(first: Any) -> list[dict[str, Any]]:
    """The same for Responses: output items go back as input items."""
    start = [{"role": "user", "content": "go"}]
    kept = {"type", "id", "summary", "encrypted_content", "call_id", "name", "arguments"}
    again: list[dict[str, Any]] = []
    for item in first.output:
        dumped = item.model_dump(exclude_none=True, include=kept)
        if item.type == "function_call":
            del dumped["id"]
        again.append(dumped)
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": text}
        for call, text in zip(calls, ("2", "5"), strict=True)
    ]
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    one = {
        "type": "function",
        "name": "add",
        "description": add.description,
        "parameters": add.parameters,
        "strict": False,
    }
    shared: dict[str, Any] = {
        "instructions": "Count.",
        "tools": [one],
        "parallel_tool_calls": True,
        "text": {"format": form},
        "store": False,
    }
    return [
        {"input": start, "tool_choice": {"type": "function", "name": "add"}, **shared},
        {"input": [*start, *again, *results], **shared},
    ]


def messages_asked(first: Any) -> list[dict[str, Any]]:
    """The same for Messages: content blocks go back as they came."""
    start = [{"role": "user", "content": "go"}]
    again = {
        "role": "assistant",
        "content": [block.model_dump(exclude_none=True) for block in first.content],
    }
    calls = [block for block in first.content if block.type == "tool_use"]
    results = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": text}
            for call, text in zip(calls, ("2", "5"), strict=True)
        ],
    }
    one = {
        "name": "add",
        "description": add.description,
        "input_schema": add.parameters,
        "cache_control": CACHE,
    }
    shared: dict[str, Any] = {
        "system": [{"type": "text", "text": "Count.", "cache_control": CACHE}],
        "tools": [one],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "cache_control": CACHE,
    }
    return [
        {"messages": start, "tool_choice": {"type": "tool", "name": "add"}, **shared},
        {"messages": [*start, again, results], **shared},
    ]


ASKED = {"chat": chat_asked, "responses": responses_asked, "messages": messages_asked}


def without_defaults(api: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body without what says the default; JSON in arguments is compared as JSON."""
    body = {name: value for name, value in body.items() if (name, value) != ("stream", False)}
    for message in body.get("messages", []):
        for call in message.get("tool_calls") or [] if api == "chat" else []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("api", "name"),
    [(api, name) for api in APIS for name in ("tools", "reasoning")] + [("chat", "details")],
)
def test_a_turn_sends_what_the_official_sdk_sends(api: str, name: str, stream: bool) -> None:
    end = "sse" if stream else "json"
    with recorded(f"{api}/{name}.{end}", f"{api}/text.{end}") as server:
        agent = Agent(
            "a",
            instructions="Count.",
            model=model(server, api, stream=stream),
            tools=[add],
            output=int,
            limits=Limits(repairs_max=0),
            tool_choice=add,
            parallel_tool_calls=True,
        )
        log_of(agent)
        sent = [without_defaults(api, body) for body in server.bodies[:2]]
    with recorded(f"{api}/{name}.json") as server:
        first = ASK[api](server, stream=False)
    with recorded(f"{api}/{name}.{end}") as server:
        options: dict[str, Any] = {"stream_options": {"include_usage": True}}
        for asked in ASKED[api](first):
            more = options if api == "chat" and stream else {}
            create(api, server, {**asked, **more, "stream": stream})
        theirs = [without_defaults(api, body) for body in server.bodies]
    assert sent == theirs


def create(api: str, server: Recorded, asked: Mapping[str, Any]) -> None:
    """Makes a request with the SDK, exactly as given, and reads its answer to the end."""
    if api == "messages":
        with anthropic.Anthropic(base_url=server.address, api_key="none") as client:
            answer: Any = client.messages.create(model="m", max_tokens=8192, **asked)
            if asked["stream"]:
                list(answer)
        return
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        call: Any = client.chat.completions if api == "chat" else client.responses
        answer = call.create(model="m", **asked)
        if asked["stream"]:
            list(answer)


@pytest.mark.parametrize("api", APIS)
def test_each_api_has_its_path_and_its_header_for_the_key(api: str) -> None:
    with recorded(f"{api}/text.json") as server:
        log_of(Agent("a", model=model(server, api, api_key="key-of-this-test")))
        ASK[api](server, stream=False)
        engine, sdk = server.asked
    assert engine.path == sdk.path
    if api == "messages":
        assert engine.headers["x-api-key"] == "key-of-this-test"
        assert engine.headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in engine.headers
    else:
        assert engine.headers["authorization"] == "Bearer key-of-this-test"
        assert "x-api-key" not in engine.headers


@pytest.mark.parametrize("api", APIS)
def test_a_model_may_be_kept_from_its_tools(api: str) -> None:
    with recorded(f"{api}/text.json") as server:
        log_of(Agent("a", model=model(server, api), tools=[add], tool_choice="none"))
        none = server.bodies[0]["tool_choice"]
    assert none == ({"type": "none"} if api == "messages" else "none")


PIXEL = "iVBORw0KGgo="
LINK = "https://example.org/a.png"
PICTURES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": LINK}},
    ],
    "responses": [
        {"type": "input_text", "text": "what is it"},
        {
            "type": "input_image",
            "detail": "auto",
            "image_url": f"data:image/png;base64,{PIXEL}",
        },
        {"type": "input_image", "detail": "auto", "image_url": LINK},
    ],
    "messages": [
        {"type": "text", "text": "what is it"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": PIXEL},
        },
        {"type": "image", "source": {"type": "url", "url": LINK}},
    ],
}


@pytest.mark.parametrize("api", APIS)
def test_pictures_are_sent_as_the_official_sdk_sends_them(api: str) -> None:
    said = [
        {"type": "text", "text": "what is it"},
        {"type": "image", "url": f"data:image/png;base64,{PIXEL}"},
        {"type": "image", "url": LINK},
    ]

    async def ask(agent: Agent[str]) -> None:
        async with Engine("memory:") as engine:
            run = await engine.start(agent, said)
            await run.result()

    user = [{"role": "user", "content": PICTURES[api]}]
    with recorded(f"{api}/text.json") as server:
        asyncio.run(ask(Agent("a", model=model(server, api))))
        asked: dict[str, Any] = {"input" if api == "responses" else "messages": user}
        asked |= {"responses": {"store": False}, "messages": {"cache_control": CACHE}}.get(api, {})
        create(api, server, {**asked, "stream": False})
        sent, theirs = (without_defaults(api, body) for body in server.bodies)
    assert sent == theirs
