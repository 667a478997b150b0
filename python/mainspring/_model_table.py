"""What this version knows of providers and models, as data.

Invariant: only facts with a source and a date; no prices, because they change without notice. The
first entry of `MODELS` whose prefix fits decides.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

TABLE_DATE = "2026-11-23"
"""When the entries were last compared with their sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a provider's models are served.

    Args:
        base_url: Where its OpenAI-compatible API begins.
        key_env: Environment variable that holds the key; None: it needs none.
        output_mode: `native` where the API honours `response_format`, else `prompt`.
        max_tokens_field: What the API calls the limit on written tokens.
    """

    base_url: str
    key_env: str | None = None
    output_mode: Literal["native", "prompt"] = "native"
    max_tokens_field: str = "max_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of the models whose name starts with a prefix.

    Args:
        prefix: Start of the name, lower case, without provider and organisation.
        provider: Who serves it when nothing else is said; None: nobody in particular.
        tool_mode: How it is told to call tools.
        params: Fields that its requests to that provider need.
    """

    prefix: str
    provider: str | None = None
    tool_mode: Literal["native", "json_schema"] = "native"
    params: dict[str, Any] = field(default_factory=dict)


# Sources: developers.openai.com/api/reference (max_completion_tokens replaces max_tokens, which
# reasoning models refuse); platform.claude.com/docs/en/api/openai-sdk (response_format is ignored);
# openrouter.ai/docs/features/structured-outputs (honoured by some models only);
# docs.ollama.com/api/openai-compatibility.
PROVIDERS: dict[str, Provider] = {
    "openai": Provider(
        base_url="https://api.openai.com/v1",
        key_env="OPENAI_API_KEY",
        max_tokens_field="max_completion_tokens",
    ),
    "anthropic": Provider(
        base_url="https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        output_mode="prompt",
    ),
    "openrouter": Provider(
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        output_mode="prompt",
    ),
    "ollama": Provider(base_url="http://127.0.0.1:11434/v1"),
    # The port that `mainspring models serve` takes unless told otherwise.
    "local": Provider(base_url="http://127.0.0.1:11435/v1"),
}

MODELS: tuple[Entry, ...] = (
    # Print bare or fenced JSON instead of tool calls, in all of 8 trials each under llama.cpp.
    Entry(prefix="qwen2.5-coder", provider="local", tool_mode="json_schema"),
    Entry(prefix="smollm2", provider="local", tool_mode="json_schema"),
    # Chat Completions refuses function tools for these unless reasoning is switched off.
    Entry(prefix="gpt-5.6", provider="openai", params={"reasoning_effort": "none"}),
    Entry(prefix="gpt-oss"),
    Entry(prefix="gpt-", provider="openai"),
    Entry(prefix="claude-", provider="anthropic"),
)

DEFAULT_MODELS: dict[str, tuple[str, ...]] = {
    "openai": ("gpt-5.4-mini", "gpt-5.4"),
    "anthropic": ("claude-haiku-5-5", "claude-sonnet-5"),
}
"""By provider, what `default_route` uses, smallest first."""


def entry_for(name: str) -> Entry | None:
    """The first entry that fits a model's name on its server, such as `org/Model-7B`."""
    short = name.lower().rpartition("/")[2]
    return next((entry for entry in MODELS if short.startswith(entry.prefix)), None)
