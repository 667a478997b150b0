"""`mainspring gateway` as a process of its own, with the official SDK as its client."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from mainspring import AgentError, Budget, Model, ModelError, Route
from mainspring.adapter import ModelReply, ModelRequest
from mainspring.gateway import Gateway, GatewayConfig, ServedRoute, read_config
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
from tools.common import ROOT

TOKEN = "0123456789abcdef0123456789abcdef"


@contextmanager
def process(*arguments: str, cwd: Path, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, which is told to end at the end."""
    started = subprocess.Popen(
        [sys.executable, "-m", "mainspring.cli", "gateway", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python"), **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            started.communicate()


def ready(started: "subprocess.Popen[str]") -> str:
    """Waits until it is ready; the address to call."""
    assert started.stderr is not None
    line = started.stderr.readline()
    found = re.match(r"gateway ready: (\S+) serves ", line)
    assert found, line + started.communicate()[1]
    return found[1]


@contextmanager
def served(
    small: Script, large: Script | None = None, *, cwd: Path, **options: Any
) -> Iterator[tuple[openai.OpenAI, ScriptedModel]]:
    """A client of a gateway that serves `small`, `large`, and `auto` over both."""
    large = [say("large")] if large is None else large
    with ScriptedModel(models={"small": small, "large": large}) as model:
        config = cwd / "gateway.toml"
        config.write_text(
            f"""
            listen = "127.0.0.1:0"
            [models.small]
            name = "small"
            base_url = "{model.base_url}"
            price = [1.0, 2.0]
            [models.large]
            name = "large"
            base_url = "{model.base_url}"
            [routes.auto]
            models = ["small", "large"]
            policy = {{ explore = 0.0 }}
            [[clients]]
            token_env = "TEST_TOKEN"
            tenant = "team"
            """,
            encoding="utf-8",
        )
        with process("--config", str(config), cwd=cwd, TEST_TOKEN=TOKEN) as started:
            url = ready(started)
            asking = openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0, **options)
            with asking as client:
                yield client, model


USER: Any = [{"role": "user", "content": "hi"}]


def test_the_sdk_chats_and_lists_models(tmp_path: Path) -> None:
    with served([say("Hello.")], cwd=tmp_path) as (client, model):
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=USER)
        done = raw.parse()
        assert done.choices[0].message.content == "Hello."
        assert done.choices[0].finish_reason == "stop"
        assert done.usage is not None
        assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
        assert done.model == "small"
        assert raw.headers["x-mainspring-model"] == "small"
        assert float(raw.headers["x-mainspring-cost-usd"]) > 0
        assert [each.id for each in client.models.list()] == ["auto", "large", "small"]
        assert client.models.retrieve("auto").id == "auto"
        assert [request.model for request in model.requests] == ["small"]


def test_the_sdk_streams(tmp_path: Path) -> None:
    with served([say("one two three four")], cwd=tmp_path) as (client, _):
        stream = client.chat.completions.create(
            model="small", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(texts) == "one two three four"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0
        assert len({chunk.id for chunk in chunks}) == 1


def test_the_sdk_calls_tools_streamed_and_not(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": parameters}}]

    def script(request: Request) -> Step:
        done = request.body["messages"][-1]["role"] == "tool"
        return say("two") if done else calls(call("add", a=1))

    with served(script, cwd=tmp_path) as (client, _):
        first = client.chat.completions.create(model="small", messages=USER, tools=tools)
        message = first.choices[0].message
        assert message.tool_calls
        [asked] = message.tool_calls
        assert asked.type == "function"
        assert (asked.function.name, json.loads(asked.function.arguments)) == ("add", {"a": 1})
        result: Any = {"role": "tool", "tool_call_id": asked.id, "content": "2"}
        messages: Any = [*USER, message, result]
        last = client.chat.completions.create(model="small", messages=messages, tools=tools)
        assert last.choices[0].message.content == "two"
        with client.chat.completions.stream(model="small", messages=USER, tools=tools) as stream:
            final = stream.get_final_completion()
        streamed = final.choices[0].message.tool_calls
        assert streamed
        assert streamed[0].function.name == "add"
        assert final.choices[0].finish_reason == "tool_calls"


class Colour(BaseModel):
    """A colour."""

    name: str
    shade: int


def test_the_sdk_gets_types_and_wrong_ones_go_to_the_large_model(tmp_path: Path) -> None:
    small = [say_json({"name": "red"}), say("red")]
    large = [say_json({"name": "red", "shade": 3})]
    with served(small, large, cwd=tmp_path) as (client, model):
        done = client.chat.completions.parse(model="auto", messages=USER, response_format=Colour)
        assert done.choices[0].message.parsed == Colour(name="red", shade=3)
        assert [request.model for request in model.requests] == ["small", "small", "large"]


def test_errors_are_the_sdks_own_classes(tmp_path: Path) -> None:
    answers: dict[str, Step] = {
        "bad": fail(400),
        "key": fail(401),
    }

    def script(request: Request) -> Step:
        return answers[request.body["messages"][-1]["content"]]

    # A key that was told to wait is not used again until then, so it is that of another model.
    busy_model = [fail(429, retry_after_s=700)]
    with served(script, busy_model, cwd=tmp_path) as (client, _):

        def ask(text: str, **options: Any) -> Any:
            messages: Any = [{"role": "user", "content": text}]
            asked = {"model": "small", "messages": messages} | options
            return client.chat.completions.create(**asked)

        with pytest.raises(openai.BadRequestError, match="status 400"):
            ask("bad")
        with pytest.raises(openai.BadRequestError) as bad:
            ask("x", messages=[{"role": "bot", "content": "x"}])
        assert bad.value.param == "messages[0].role"
        with pytest.raises(openai.NotFoundError, match="allowed: auto, large, small"):
            ask("x", model="huge")
        with pytest.raises(openai.RateLimitError) as busy:
            ask("busy", model="large")
        assert busy.value.response.headers["retry-after"] == "700"
        with pytest.raises(openai.InternalServerError) as key:
            ask("key")
        assert (key.value.status_code, key.value.code) == (502, "model_auth")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.APIError):
            list(ask("bad", stream=True))


def test_a_stream_that_breaks_raises_in_the_sdk(tmp_path: Path) -> None:
    with served([drop(after_chars=4)], cwd=tmp_path) as (client, model):
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="small", messages=USER, stream=True))
        assert len(model.requests) == 1


def sdk(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="unused", max_retries=0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes at the end of the test what was entered in it."""
    with ExitStack() as entered:
        yield entered


def test_models_of_the_command_line_and_the_end(tmp_path: Path, stack: ExitStack) -> None:
    with ScriptedModel(models={"s": [say("small")], "l": [say("large")]}) as model:
        arguments = ["--model", "small=s", "--model", "large=l", "--base-url", model.base_url]
        record = tmp_path / "record.jsonl"
        arguments += ["--listen", "127.0.0.1:0", "--record", str(record)]
        with process(*arguments, cwd=tmp_path) as started:
            client = stack.enter_context(sdk(ready(started)))
            done = client.chat.completions.create(model="large", messages=USER)
            assert done.choices[0].message.content == "large"
            assert [each.id for each in client.models.list()] == ["auto", "large", "small"]
            started.send_signal(signal.SIGTERM)
            _, told = started.communicate()
            assert started.returncode == 0
            assert "told to end; answers under way have 30 s" in told
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
        [line] = record.read_text("utf-8").splitlines()
        assert json.loads(line)["route"] == "large"


def test_a_route_of_a_module(tmp_path: Path, stack: ExitStack) -> None:
    with ScriptedModel(models={"s": [say("from a module")]}) as model:
        (tmp_path / "mine.py").write_text(
            "from mainspring import Model, Route\n"
            f"careful = Route(Model('s', base_url={model.base_url!r}))\n"
            "checked = Route(Model('s', base_url='http://127.0.0.1:9'), verify=bool)\n",
            encoding="utf-8",
        )
        with process("mine:careful", "--listen", "127.0.0.1:0", cwd=tmp_path) as started:
            client = stack.enter_context(sdk(ready(started)))
            done = client.chat.completions.create(model="careful", messages=USER)
            assert done.choices[0].message.content == "from a module"
        with process("mine:checked", cwd=tmp_path) as started:
            _, told = started.communicate()
            assert started.returncode == 1
            assert "a gateway runs no Python" in told


def test_answers_under_way_are_cut_off_when_the_time_is_up(
    tmp_path: Path, stack: ExitStack
) -> None:
    with ScriptedModel([hang(after_chars=4)]) as model:
        arguments = ["--model", "m=scripted", "--base-url", model.base_url, "--drain-s", "0.05"]
        with process(*arguments, "--listen", "127.0.0.1:0", cwd=tmp_path) as started:
            client = stack.enter_context(sdk(ready(started)))
            stream = client.chat.completions.create(model="m", messages=USER, stream=True)
            next(iter(stream))
            started.send_signal(signal.SIGTERM)
            started.communicate()
            assert started.returncode == 1
            stream.close()


GOOD = """
[models.small]
name = "s"
base_url = "http://127.0.0.1:9/v1"
[models.large]
name = "l"
base_url = "http://127.0.0.1:9/v1"
[routes.auto]
models = ["small", "large"]
"""


def test_a_file_says_everything(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    path = tmp_path / "gateway.toml"
    head = 'listen = "0.0.0.0:8081"\nworkers = 2\nrecord = "r.jsonl"\n[limits]\nrequests_max = 9\n'
    client = (
        '[[clients]]\ntoken_file = "token"\ntenant = "a"\n[tenants.a]\nusd = 2.5\nper = "day"\n'
    )
    path.write_text(head + GOOD + 'verify = "never"\n' + client, encoding="utf-8")
    config = read_config(path)
    assert (config.listen, config.workers, config.limits) == (
        "0.0.0.0:8081",
        2,
        {"requests_max": 9},
    )
    assert config.record == tmp_path / "r.jsonl"
    assert set(config.routes) == {"small", "large", "auto"}
    assert config.routes["auto"].verify == "never"
    assert [model.name for model in config.routes["auto"].route.models] == ["s", "l"]
    assert [(each.token, each.tenant) for each in config.clients] == [(TOKEN, "a")]
    assert config.budgets == {"a": Budget(usd=2.5, per="day")}
    assert TOKEN not in repr(config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "is not TOML"),
        ("port = 1", 'the file has "port", allowed are listen'),
        ("", "has no [models.NAME]"),
        ("models = 7", "models is 7, must be a table"),
        ("[models.a]\nname = 7", "models.a: a model's name is text"),
        ("[models.a]\nbase_url = 'http://x'", "models.a has no name"),
        ("[models.a]\nname = 'unknown'", 'models.a: model "unknown" is not known'),
        ("[models.a]\nname = 'x'\napi_key = 'k'", "models.a holds an api_key"),
        ("[models.a]\nname = 'x'\ncolour = 1", 'models.a has "colour"'),
        (GOOD + "[routes.small]\nmodels = ['large']", "both a model and a route"),
        (GOOD + "[routes.x]\nmodels = ['huge']", 'names "huge", allowed are small, large'),
        (GOOD + "[routes.x]\nmodels = []", "names no model"),
        (GOOD + "verify = 'maybe'", "is 'maybe', allowed are before and never"),
        (GOOD + "[[clients]]\ntoken = 'x'", "clients[0] holds a token"),
        (GOOD + "[[clients]]\ntenant = 'x'", "needs token_env or token_file"),
        (GOOD + "[[clients]]\ntoken_env = 'NO_SUCH'", "variable NO_SUCH is empty or not set"),
        ("clients = 7\n" + GOOD, "clients is no list"),
        (GOOD + "[tenants.a]\nusd = -1", "tenants.a: Budget.usd is -1"),
        (GOOD + "[tenants.a]\nseconds = 1", 'tenants.a has "seconds"'),
    ],
)
def test_a_wrong_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AgentError, match=re.escape(told)):
        read_config(path, {})


SMALL = Model("s", base_url="http://127.0.0.1:9/v1")
LARGE = Model("l", base_url="http://127.0.0.1:9/v1")
ROUTE = Route(SMALL)


class Echo:
    """A model that is Python."""

    name = "echo"

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Says nothing."""
        return ModelReply("")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"routes": {}}, "has no route"),
        ({"listen": "8080"}, 'listen is "8080"'),
        ({"listen": "127.0.0.1:99999"}, "must be an address and a port"),
        ({"listen": "0.0.0.0:0"}, "has no tokens and listens on"),
        ({"workers": 0}, "workers is 0"),
        ({"limits": {"requests": 1}}, 'limits has "requests"'),
        ({"limits": {"requests_max": 0}}, "limits.requests_max is 0"),
        ({"routes": {"a": ServedRoute(route=Route(Echo()))}}, "a gateway runs no Python"),
        ({"routes": {"a": ServedRoute(route=Route(SMALL, weights="nowhere"))}}, "weights nowhere"),
        (
            {"routes": {"a": ServedRoute(route=Route(SMALL, LARGE, judge=LARGE))}},
            "a route with judge",
        ),
    ],
)
def test_what_cannot_be_served_is_told(options: dict[str, Any], told: str) -> None:
    config: dict[str, Any] = {
        "routes": {"a": ServedRoute(route=ROUTE)},
        "listen": "127.0.0.1:0",
    }
    with pytest.raises(AgentError, match=re.escape(told)):
        Gateway(GatewayConfig(**(config | options)))


def test_a_missing_key_is_told_before_anything_listens() -> None:
    routes = {"a": ServedRoute(route=Route("openai:gpt-5.4-mini"))}
    with pytest.raises(ModelError) as raised:
        Gateway(GatewayConfig(routes=routes, listen="127.0.0.1:0"), environ={})
    assert raised.value.code == "model_auth"


def test_a_gateway_in_this_process_is_closed_twice_without_harm() -> None:
    with ScriptedModel([say("x")]) as model:
        routes = {"a": ServedRoute(route=Route(model.model()))}
        gateway = Gateway(GatewayConfig(routes=routes, listen="localhost:0"))
        with sdk(f"http://{gateway.address}/v1") as client:
            assert client.chat.completions.create(model="a", messages=USER).choices
        assert gateway.close(1.0)
        assert gateway.close()
