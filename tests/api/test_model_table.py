"""What is known of models: the shipped file, the user's over it, and what is wrong with one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring import Agent, AgentError, Model, tool
from mainspring._model_table import ABILITIES, table


@tool(effect="read")
def add(a: int) -> int:
    """Adds."""
    return a


@pytest.fixture
def user_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the user's file."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("MAINSPRING_MODELS", str(path))
        return path

    return write


def test_every_fact_of_the_shipped_table_has_a_date_and_a_source() -> None:
    for entry in table({}).models:
        facts = (entry.price, entry.context_tokens, entry.output_tokens_max, entry.abilities)
        if any(fact is not None for fact in facts):
            assert entry.date, entry
            assert entry.source, entry
        assert set(entry.abilities or ()) <= set(ABILITIES)


def test_a_name_finds_its_own_entry_also_with_a_date_and_else_its_family() -> None:
    known = table({})

    def found(name: str) -> str | None:
        entry = known.entry_for(name)
        return entry and (entry.name or f"{entry.prefix}*")

    assert found("gpt-5.4-mini") == "gpt-5.4-mini"
    assert found("openai/GPT-5.4-mini-2026-03-17") == "gpt-5.4-mini"
    assert found("claude-haiku-4-5-20251001") == "claude-haiku-4-5"
    # Another model of the family is not the same price.
    assert found("gpt-5.4-pro") == "gpt-*"
    assert found("gpt-5.6-terra") == "gpt-5.6*"
    assert found("gpt-oss-20b") == "gpt-oss*"
    assert found("mystery") is None


def test_anthropic_s_models_are_asked_through_messages() -> None:
    spec = Model("anthropic:claude-haiku-5-5", max_tokens=9).spec()
    assert (spec["api"], spec["params"]) == ("messages", {"max_tokens": 9})
    assert spec["price"] == {
        "input_usd": 0.1,
        "cached_usd": 0.01,
        "cache_write_usd": 0.125,
        "output_usd": 0.5,
        "long": {"above_tokens": 100_000, "input_factor": 5.0, "output_factor": 5.0},
    }
    assert Model("openai:gpt-6-luna", max_tokens=9).spec()["params"] == {"max_output_tokens": 9}


def test_a_price_holds_at_the_entry_s_own_provider_only() -> None:
    assert "price" in Model("claude-sonnet-5").spec()
    elsewhere = Model("openrouter:anthropic/claude-sonnet-5").spec()
    assert "price" not in elsewhere
    assert elsewhere["context_tokens"] == 1_000_000
    assert "api" not in elsewhere
    assert Model("claude-sonnet-5", price=(1, 2)).spec()["price"] == {
        "input_usd": 1,
        "output_usd": 2,
    }


def test_what_the_user_says_of_a_model_stands(user_table: Callable[[str], Path]) -> None:
    user_table(
        """
        [providers.gateway]
        base_url = "https://gateway.example.org/v1"
        key_env = "GATEWAY_KEY"
        [providers.openai]
        base_url = "https://eu.example.org/v1"
        [[models]]
        name = "gpt-5.4-mini"
        price = { input = 0, output = 0 }
        [[models]]
        prefix = "house-"
        provider = "gateway"
        context_tokens = 8192
        """
    )
    mini = Model("gpt-5.4-mini").spec()
    assert mini["base_url"] == "https://eu.example.org/v1"
    assert mini["price"] == {"input_usd": 0.0, "output_usd": 0.0}
    assert mini["context_tokens"] == 400_000
    assert Model("house-small").spec()["base_url"] == "https://gateway.example.org/v1"
    assert Model("gateway:anything").resolve_key({"GATEWAY_KEY": "k"}) == "k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[models]]\nname = oops", "is not TOML: Invalid value (at line 2, column 8)"),
        ("models = 3", "models is neither [providers.NAME] nor [[models]]"),
        ("[[models]]\nprovider = 'openai'", "models[0] needs either name or prefix"),
        (
            "[[models]]\nname = 'x'\nwindow = 3",
            'models[0] ("x").window is not known, known are name, prefix,',
        ),
        (
            "[[models]]\nname = 'x'\ncontext_tokens = -1",
            'models[0] ("x").context_tokens is -1, must be a whole number above 0',
        ),
        (
            "[[models]]\nname = 'x'\nprice = { input = -1, output = 2 }",
            'models[0] ("x").price.input is -1, must be a number from 0',
        ),
        (
            "[[models]]\nname = 'x'\nprice = { input = nan, output = 2 }",
            'models[0] ("x").price.input is nan, must be a number from 0',
        ),
        ("[[models]]\nname = 'x'\nprice = { input = 1 }", 'models[0] ("x").price has no output'),
        (
            "[[models]]\nname = 'x'\nabilities = ['flies']",
            "models[0] (\"x\").abilities is ['flies'], must be a list of tools,",
        ),
        (
            "[[models]]\nname = 'x'\nprovider = 'gone'",
            'provider of "x" is "gone", which is none of openai, anthropic,',
        ),
        ("[providers.new]\nkey_env = 'K'", 'providers."new" has no base_url'),
        (
            "[providers.openai]\napi = 'soap'",
            "providers.\"openai\".api is 'soap', must be one of chat_completions,",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_place(
    user_table: Callable[[str], Path], text: str, message: str
) -> None:
    path = user_table(text)
    with pytest.raises(AgentError) as caught:
        Model("gpt-5.4")
    assert caught.value.code == "agent_invalid"
    assert str(caught.value).startswith(f'model table "{path}"')
    assert message in str(caught.value)


def test_a_table_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAINSPRING_MODELS", str(tmp_path / "gone.toml"))
    with pytest.raises(AgentError, match=r"gone.toml\" cannot be read"):
        Model("gpt-5.4")


def test_the_table_is_printed_with_the_user_s_file_in_it(
    user_table: Callable[[str], Path], tmp_path: Path
) -> None:
    path = user_table("[[models]]\nname = 'mine'\nprovider = 'local'\ncontext_tokens = 77")
    command = [sys.executable, "-m", "mainspring.cli", "models", "table"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (mine,) = (line.split() for line in done.stdout.splitlines() if line.startswith("mine"))
    assert mine == ["mine", "local", "chat_completions", "77", "-", "-", "-", "-", "-"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["files"][1] == str(path)
    assert printed["models"][-1]["context_tokens"] == 77
    path.write_text("oops", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not TOML" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api": "soap"}, "api of model \"m\" is 'soap', allowed are chat_completions,"),
        ({"api": "messages", "tool_mode": "json_schema"}, "which the API messages does not take"),
        ({"api": "messages", "logprobs": True}, "which the API messages does not tell"),
        ({"context_tokens": 0}, 'context_tokens of model "m" is 0, must be above 0'),
        ({"api": "responses", "params": {"input": []}}, 'set "input", which the engine sets'),
        ({"api": "messages", "params": {"system": "x"}}, 'set "system", which the engine sets'),
    ],
)
def test_models_that_no_api_can_be_asked_for_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AgentError) as caught:
        Model("m", base_url="http://127.0.0.1:9/v1", **options)
    assert message in str(caught.value)


def test_values_of_the_wrong_type_are_refused() -> None:
    for options in ({"context_tokens": 1.5}, {"logprobs": "yes"}, {"output_tokens_max": True}):
        with pytest.raises(TypeError):
            Model("m", base_url="http://127.0.0.1:9/v1", **options)  # type: ignore[arg-type]


def test_a_choice_of_tools_is_part_of_the_agent() -> None:
    def spec(**options: Any) -> dict[str, Any]:
        agent = Agent("a", model="openai:gpt-5.4", tools=[add], **options)
        assert agent.replace(name="b").tool_choice == agent.tool_choice
        found: dict[str, Any] = json.loads(agent.spec())
        return found

    assert "tool_choice" not in spec()
    assert "parallel_tool_calls" not in spec()
    assert spec(tool_choice="none")["tool_choice"] == "none"
    assert spec(tool_choice="required")["tool_choice"] == "required"
    assert spec(tool_choice="add")["tool_choice"] == {"tool": "add"}
    assert spec(tool_choice=add)["tool_choice"] == {"tool": "add"}
    assert spec(parallel_tool_calls=False)["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tools": [add], "tool_choice": "sub"},
            'agent "a" has tool_choice "sub", allowed are auto, none, required, add',
        ),
        (
            {"tool_choice": "required"},
            'agent "a" has tool_choice "required", allowed are auto, none, required; '
            "it has no tools",
        ),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        Agent("a", model="openai:gpt-5.4", **options)
    for wrong in ({"tool_choice": 3}, {"parallel_tool_calls": "yes"}):
        with pytest.raises(TypeError):
            Agent("a", model="openai:gpt-5.4", **wrong)  # type: ignore[call-overload]
