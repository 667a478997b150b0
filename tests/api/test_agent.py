"""Agents, models, routes and MCP servers: what they refuse, and the spec they become."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest

from mainspring.agent import Agent, Limits
from mainspring.errors import AgentError, MainspringError, ModelError, ToolError
from mainspring.mcp import Mcp
from mainspring.models import Answer, Model, Route, ToolCall, default_route, rejection
from mainspring.tool import tool

SMALL = Model("small", base_url="http://127.0.0.1:9/v1/")


@dataclass
class Receipt:
    amount: float


@tool(effect="read", timeout_s=5)
def search(query: str) -> str:
    """Search."""
    return query


def after(order: int) -> str:
    return str(order)


def refuse(make: Callable[[], object], kind: type[Exception] = AgentError) -> str:
    with pytest.raises(kind) as caught:
        make()
    if isinstance(caught.value, MainspringError):
        assert caught.value.code in ("agent_invalid", "model_auth")
    return str(caught.value)


def test_an_agent_becomes_a_spec_with_its_tools_in_order() -> None:
    git = Mcp("uvx mcp-server-git", tools=["log"], prefix="git_", timeout_s=7)
    agent = Agent(
        "clerk",
        instructions="Be brief.",
        model=Route(SMALL, "openai:gpt-5.4", verify=lambda _: True),
        tools=[search, git, after],
        output=Receipt,
        limits=Limits(steps_max=4, turn_s_max=1.5),
    )
    listed = git.select(
        [
            {"name": "status", "inputSchema": {"type": "object"}},
            {
                "name": "log",
                "description": "Show the log.",
                "inputSchema": {"type": "object"},
                "annotations": {"readOnlyHint": True},
            },
        ]
    )

    spec = agent.spec({git: listed})

    assert json.loads(spec) == {
        "name": "clerk",
        "instructions": "Be brief.",
        "tools": [
            search.spec(),
            {
                "name": "git_log",
                "description": "Show the log.",
                "parameters": {"type": "object"},
                "effect": "read",
                "timeout_ms": 7_000,
                "attempts_max": 1,
            },
            {
                "name": "after",
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {"order": {"type": "integer"}},
                    "required": ["order"],
                    "additionalProperties": False,
                },
                "effect": "unsafe",
                "timeout_ms": 60_000,
                "attempts_max": 1,
            },
        ],
        "models": [SMALL.spec(), Model("openai:gpt-5.4").spec()],
        "verify": True,
        "output_schema": {
            "type": "object",
            "properties": {"amount": {"type": "number"}},
            "required": ["amount"],
        },
        "limits": Limits(steps_max=4, turn_s_max=1.5).spec(),
    }
    assert agent.spec({git: listed}) == spec


def test_an_agent_for_text_has_no_output_schema() -> None:
    spec = json.loads(Agent("a", model=SMALL).spec())

    assert sorted(spec) == ["instructions", "limits", "models", "name", "tools", "verify"]
    assert spec["verify"] is False


def test_an_agent_never_changes() -> None:
    agent = Agent("a", model=SMALL, tools=[search])
    attribute = "name"

    with pytest.raises(FrozenInstanceError):
        setattr(agent, attribute, "b")
    assert agent == Agent("a", model=SMALL, tools=[search])
    assert hash(agent) == hash(Agent("a", model=SMALL, tools=[search]))


def test_agents_that_cannot_work_are_refused() -> None:
    wrong: Any = "search"

    def untyped(a) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    assert refuse(lambda: Agent("a b", model=SMALL)) == (
        'an agent has the name "a b", allowed are 1 to 64 of A-Z a-z 0-9 _ . -'
    )
    assert refuse(lambda: Agent("a", model=SMALL, tools=[search, search])) == (
        'agent "a" has two tools of the name "search", each needs its own\n'
        "hint: name one with @tool(name=...), or set a prefix with Mcp(prefix=...)"
    )
    assert refuse(lambda: Agent("a", model=SMALL, tools=wrong), TypeError) == (
        'tools of agent "a" is a list, not str'
    )
    assert refuse(lambda: Agent("a", model=SMALL, tools=[wrong]), TypeError) == (
        "a tool is made of a function, not of 'search'\n"
        'hint: options go by keyword, such as @tool(name="search")'
    )
    assert refuse(lambda: Agent("a", model=SMALL, output=complex)).startswith(
        "output type complex has no JSON schema"
    )
    with pytest.raises(ToolError, match='parameter "a" has no type'):
        Agent("a", model=SMALL, tools=[untyped])


def test_an_mcp_server_needs_its_tools_before_there_is_a_spec() -> None:
    git = Mcp("uvx mcp-server-git")
    agent = Agent("a", model=SMALL, tools=[search, git])
    same = git.select([{"name": "search", "inputSchema": {}}])

    assert refuse(agent.spec) == (
        'agent "a" uses mcp server "mcp-server-git", whose tools are not known\n'
        "hint: an engine lists them when it starts the agent"
    )
    assert 'two tools of the name "search"' in refuse(lambda: agent.spec({git: same}))


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Limits) if field.name != "turn_s_max"]
)
def test_limits_out_of_range_are_refused(name: str) -> None:
    low = 0 if name == "repairs_max" else 1
    wrong: Any = 1.5

    assert replace(Limits(), **{name: low}).spec()[name] == low
    assert refuse(lambda: replace(Limits(), **{name: low - 1})) == (
        f"Limits.{name} is {low - 1}, must be {low} to 4294967295"
    )
    assert refuse(lambda: replace(Limits(), **{name: wrong}), TypeError) == (
        f"Limits.{name} is an int, not float"
    )


def test_limits_become_a_spec_in_milliseconds() -> None:
    assert Limits(steps_max=4, turn_s_max=1.5).spec() == {
        "steps_max": 4,
        "tokens_max": 2_000_000,
        "tool_calls_per_step_max": 64,
        "model_attempts_max": 5,
        "repairs_max": 2,
        "turn_ms_max": 1_500,
        "tool_result_bytes_max": 100_000,
        "input_bytes_max": 1_000_000,
    }


def test_a_turn_without_end_is_refused() -> None:
    assert refuse(lambda: Limits(turn_s_max=float("inf"))) == (
        "Limits.turn_s_max is inf, must be above 0, at most 4294967295"
    )


def test_a_provider_prefix_says_where_a_model_is() -> None:
    assert Model("openai:gpt-5.4-mini", temperature=0, max_tokens=9, stream=True).spec() == {
        "name": "gpt-5.4-mini",
        "base_url": "https://api.openai.com/v1",
        "tool_mode": "native",
        "output_mode": "native",
        "stream": True,
        "connect_ms_max": 10_000,
        "first_token_ms_max": 120_000,
        "total_ms_max": 600_000,
        "params": {"temperature": 0, "max_completion_tokens": 9},
        "price": {"input_usd": 0.75, "cached_usd": 0.075, "output_usd": 4.5},
        "context_tokens": 400_000,
        "output_tokens_max": 128_000,
        "abilities": ["tools", "parallel_tools", "images", "structured_output", "reasoning"],
    }
    found = {
        name: (spec["name"], spec["base_url"], spec["tool_mode"], spec["output_mode"])
        for name in (
            "anthropic:claude-sonnet-5",
            "openrouter:qwen/qwen2.5-coder-7b-instruct",
            "ollama:qwen2.5-coder:1.5b",
            "local:qwen2.5-coder-0.5b",
            "qwen2.5-coder-1.5b",
            "claude-sonnet-5",
        )
        for spec in [Model(name).spec()]
    }
    anthropic = ("claude-sonnet-5", "https://api.anthropic.com/v1", "native", "native")
    local = "http://127.0.0.1:11435/v1"
    assert found == {
        "anthropic:claude-sonnet-5": anthropic,
        "openrouter:qwen/qwen2.5-coder-7b-instruct": (
            "qwen/qwen2.5-coder-7b-instruct",
            "https://openrouter.ai/api/v1",
            "json_schema",
            "prompt",
        ),
        "ollama:qwen2.5-coder:1.5b": (
            "qwen2.5-coder:1.5b",
            "http://127.0.0.1:11434/v1",
            "json_schema",
            "native",
        ),
        "local:qwen2.5-coder-0.5b": ("qwen2.5-coder-0.5b", local, "json_schema", "native"),
        "qwen2.5-coder-1.5b": ("qwen2.5-coder-1.5b", local, "json_schema", "native"),
        "claude-sonnet-5": anthropic,
    }


def test_with_an_address_the_name_is_what_the_server_calls_the_model() -> None:
    spec = Model(
        "org/any:1b",
        base_url="http://127.0.0.1:9/v1/",
        tool_mode="json_schema",
        max_tokens=5,
        params={"seed": 7},
        price=(1, 2.5),
        total_s=0.5,
    ).spec()

    assert spec == {
        "name": "org/any:1b",
        "base_url": "http://127.0.0.1:9/v1",
        "tool_mode": "json_schema",
        "output_mode": "native",
        "stream": False,
        "connect_ms_max": 10_000,
        "first_token_ms_max": 120_000,
        "total_ms_max": 500,
        "params": {"max_tokens": 5, "seed": 7},
        "price": {"input_usd": 1, "output_usd": 2.5},
    }


def test_what_a_model_needs_from_its_provider_is_sent_to_that_provider_only() -> None:
    assert Model("gpt-5.6-terra").spec()["api"] == "responses"
    assert "params" not in Model("gpt-5.6-terra").spec()
    chat = Model("gpt-5.6-terra", api="chat_completions")
    assert chat.spec()["params"] == {"reasoning_effort": "none"}
    chosen = replace(chat, params={"reasoning_effort": "low"})
    assert chosen.spec()["params"] == {"reasoning_effort": "low"}
    elsewhere = Model("gpt-5.6", base_url="http://127.0.0.1:9/v1").spec()
    assert "params" not in elsewhere
    assert "api" not in elsewhere


def test_a_key_comes_from_the_argument_or_from_the_environment() -> None:
    environ = {"OPENAI_API_KEY": " sk-1\n", "OTHER": "sk-2", "ANTHROPIC_API_KEY": ""}
    openai = Model("openai:gpt-5.4")

    assert openai.resolve_key(environ) == "sk-1"
    assert replace(openai, api_key_env="OTHER").resolve_key(environ) == "sk-2"
    assert replace(openai, api_key="sk-3").resolve_key(environ) == "sk-3"
    assert Model("ollama:x").resolve_key(environ) is None
    assert refuse(lambda: Model("claude-sonnet-5").resolve_key(environ), ModelError) == (
        'model "claude-sonnet-5" needs a key, environment variable ANTHROPIC_API_KEY is not set\n'
        "hint: set ANTHROPIC_API_KEY, or name another variable with api_key_env="
    )


def test_a_key_never_goes_to_an_address_that_is_not_its_providers() -> None:
    assert Model("gpt-5.4", base_url="http://h/v1").resolve_key({"OPENAI_API_KEY": "k"}) is None


def test_a_key_is_never_shown() -> None:
    model = Model("openai:gpt-5.4", api_key="sk-secret")
    agent = Agent("a", model=model)

    for text in (repr(model), repr(Route(model)), repr(agent), agent.spec().decode()):
        assert "sk-secret" not in text
    assert "hunter2" not in refuse(lambda: Model("m", base_url="http://u:hunter2@h/v1"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"name": "mystery"},
            'model "mystery" is not known, names begin with openai:, anthropic:, openrouter:, '
            "ollama:, local: or fit qwen2.5-coder*, smollm2*, gpt-*, gpt-5.6*, "
            "gpt-6*, claude-*\n"
            'hint: say who serves it, such as "openai:mystery" or base_url="http://..."',
        ),
        ({"name": "openai:"}, 'a model has the name "openai:", which is empty'),
        (
            {"name": "openai:x", "base_url": "http://h"},
            'model "openai:x" names the provider "openai" and has a base_url too\n'
            'hint: leave one out, such as Model("x", base_url=...)',
        ),
        (
            {"base_url": "ftp://h"},
            'base_url of model "m" is "ftp://h", must be http:// or https:// with a host, '
            "without query\n"
            "hint: it ends where the API begins, such as http://127.0.0.1:8000/v1",
        ),
        (
            {"base_url": "http://u:p@h"},
            'base_url of model "m" holds a user name or password, which it must not\n'
            "hint: give the key with api_key= or api_key_env=",
        ),
        (
            {"tool_mode": "xml"},
            "tool_mode of model \"m\" is 'xml', allowed are native, json_schema",
        ),
        ({"connect_s": 0}, 'connect_s of model "m" is 0, must be above 0 and finite'),
        ({"temperature": -1}, 'temperature of model "m" is -1, must be 0 or more'),
        (
            {"params": {"stream": True}},
            'params of model "m" set "stream", which the engine sets itself',
        ),
        (
            {"params": {"temperature": 1}, "temperature": 1},
            'model "m" has temperature twice, as an argument and in params',
        ),
        (
            {"params": {"x": {1}}},
            'params of model "m" cannot be written as JSON: '
            "Object of type set is not JSON serializable",
        ),
        (
            {"price": (1.0, -1.0)},
            'price of model "m" is (1.0, -1.0), must be two numbers from 0: '
            "US dollars per million tokens read and written",
        ),
    ],
)
def test_models_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    given = {"name": "m", **({} if "name" in options else {"base_url": "http://h/v1"}), **options}

    assert refuse(lambda: Model(**given)) == text


def test_a_route_holds_models_smallest_first() -> None:
    route = Route(SMALL, "openai:gpt-5.4")

    assert route.models == (SMALL, Model("openai:gpt-5.4"))
    assert route == Route(SMALL, "openai:gpt-5.4")
    assert pickle.loads(pickle.dumps(route)) == route
    assert refuse(Route) == "a route has no models, it needs one at least"


def test_a_verdict_is_good_or_says_why_not() -> None:
    verdicts: list[object] = [True, None, False, "", "too short"]

    assert [rejection(verdict) for verdict in verdicts] == [
        None,
        None,
        "the check refused it",
        "the check refused it",
        "too short",
    ]
    assert refuse(lambda: rejection(1), TypeError) == (
        "verify returned int, allowed are bool, str and None"
    )


def test_answers_compare_by_value() -> None:
    call = ToolCall("search", {"query": "x"})

    assert Answer(text="", tool_calls=(call,), model="m", step=0) == Answer(
        text="", tool_calls=(ToolCall("search", {"query": "x"}),), model="m", step=0
    )


def test_the_environment_offers_a_route() -> None:
    def names(environ: dict[str, str]) -> list[str] | None:
        route = default_route(environ)
        return None if route is None else [model.name for model in route.models]

    assert names({}) is None
    assert names({"OPENAI_API_KEY": " "}) is None
    assert names({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}) == [
        "openai:gpt-5.4-mini",
        "openai:gpt-5.4",
    ]
    assert names({"ANTHROPIC_API_KEY": "k"}) == [
        "anthropic:claude-haiku-5-5",
        "anthropic:claude-sonnet-5",
    ]
    assert names({"OPENAI_API_KEY": "k", "MAINSPRING_MODEL": "ollama:a, ollama:b"}) == [
        "ollama:a",
        "ollama:b",
    ]


def test_equal_mcp_descriptions_are_one_key() -> None:
    listed = Mcp(["uvx", "mcp-server-git", "--repository", "a b"], env={"A": "1"})
    split = Mcp("uvx mcp-server-git --repository 'a b'", env={"A": "1"})

    assert listed == split
    assert {listed: 1}[split] == 1
    assert listed != Mcp(["uvx", "mcp-server-git"], env={"A": "1"})
    assert listed != replace(listed, env={"A": "2"})
    assert listed.config() == {
        "name": "mcp-server-git",
        "command": "uvx",
        "args": ["mcp-server-git", "--repository", "a b"],
        "env": {"A": "1"},
    }


def test_an_mcp_server_is_named_after_what_it_runs() -> None:
    assert Mcp(["python3", "-m", "mcp_server_git"]).name == "mcp_server_git"
    assert Mcp("/opt/my tools/server", args=["--fast"]).argv == ("/opt/my tools/server", "--fast")
    assert Mcp("/opt/server", args=["--fast"]).name == "server"
    assert Mcp("npx -y @scope/server /data").name == "@scope/server"


def test_the_environment_of_an_mcp_server_is_never_shown() -> None:
    server = Mcp("run", env={"TOKEN": "hunter2"}, cwd="/srv", tools=["a"], prefix="x_")

    assert repr(server) == (
        "Mcp(['run'], env={'TOKEN': ...}, cwd='/srv', name='run', prefix='x_', tools=['a'])"
    )


def test_the_effect_of_an_mcp_tool_comes_from_its_annotations() -> None:
    listed = [
        {"name": "a.b", "inputSchema": {}, "annotations": {"readOnlyHint": True}},
        {"name": "c", "inputSchema": {}, "annotations": {"idempotentHint": True}},
        {"name": "d", "inputSchema": {}, "description": None},
    ]

    found = Mcp("run").select(listed)

    assert [(each["name"], each["remote_name"], each["effect"]) for each in found] == [
        ("a_b", "a.b", "read"),
        ("c", "c", "idempotent"),
        ("d", "d", "unsafe"),
    ]
    assert {each["effect"] for each in Mcp("run", effect="keyed").select(listed)} == {"keyed"}
    assert refuse(lambda: Mcp("run", tools=["z"]).select(listed)) == (
        'mcp server "run" has no tool "z", it has a.b, c, d'
    )


def test_mcp_servers_that_cannot_work_are_refused() -> None:
    wrong: Any = 3

    assert refuse(lambda: Mcp("https://example.com/mcp")) == (
        'mcp server "https://example.com/mcp" is an address, allowed is a command that starts the '
        "server on this machine\n"
        "hint: give a program that speaks MCP on standard input, such as "
        '"uvx mcp-server-git"'
    )
    assert refuse(lambda: Mcp([])) == "an mcp server has no command, it needs a program"
    assert refuse(lambda: Mcp("run", tools="log"), TypeError) == (
        'tools is a list of names, not text\nhint: write ["log"]'
    )
    assert refuse(lambda: Mcp("run", args="-v"), TypeError) == (
        'args is a list of arguments, not text\nhint: write ["-v"]'
    )
    assert refuse(lambda: Mcp("run", env={"A": wrong}), TypeError) == (
        'env of an mcp server holds text, not int at "A"'
    )
    assert refuse(lambda: Mcp("run", timeout_s=0)) == (
        'timeout_s of mcp server "run" is 0, must be above 0 and finite'
    )
    assert refuse(lambda: Mcp("run", prefix="a b")) == (
        'prefix of mcp server "run" is "a b", allowed are 1 to 32 of A-Z a-z 0-9 _ -'
    )
    assert refuse(lambda: Mcp("run", effect=wrong)) == (
        'mcp server "run" has effect 3, allowed are read, idempotent, keyed, unsafe'
    )
    assert refuse(lambda: Mcp("run 'a")) == (
        'mcp server "run \'a" cannot be split into arguments: No closing quotation\n'
        "hint: give a list, one string for each argument"
    )


def test_importing_the_descriptions_loads_no_slow_library() -> None:
    program = (
        "import sys, mainspring.agent, mainspring.context\n"
        "print([m for m in ('asyncio', 'pydantic') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "[]\n"
