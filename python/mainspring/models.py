"""Models and routes: which model answers, where it is served, and what checks its answers.

Invariant: these are descriptions: nothing is opened or called. A key is never part of `repr`, of a
spec or of a journal, and the key of a provider is only ever looked up for that provider's own
address. Reading starts at `Model` and `Route`.
"""

import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from mainspring._model_table import DEFAULT_MODELS, MODELS, PROVIDERS, Entry, entry_for
from mainspring.errors import AgentError, ModelError

__all__ = ["Answer", "Model", "Route", "ToolCall", "Verdict", "Verify", "default_route"]

_RESERVED_PARAMS = ("messages", "model", "response_format", "stream", "stream_options", "tools")


@dataclass(frozen=True)
class Model:
    """A model and how to reach it.

    Args:
        name: `provider:name` with the provider `openai`, `anthropic`, `openrouter`, `ollama` or
            `local`; a name that the model table knows, such as `gpt-5.4-mini`; or, with
            `base_url`, exactly what that server calls it.
        base_url: Where an OpenAI-compatible API begins, such as `http://127.0.0.1:8000/v1`.
        api_key: The key; None: taken from the environment when the engine starts.
        api_key_env: Environment variable to take the key from; None: the provider's own, and none
            at all with `base_url`.
        tool_mode: How the model is told to call tools: `native` tool calls, or `json_schema` for
            models that print none; None: as the model table says.
        output_mode: How it is held to an output schema: `native` (the server constrains it) or
            `prompt`; None: as the model table says.
        stream: Whether to ask for the answer as a stream.
        temperature: Sampling temperature; None: the server's default.
        max_tokens: Most tokens of one answer; None: the server's default.
        params: Further fields of the request body.
        connect_s: Seconds to connect.
        first_token_s: Seconds from the request to the first token (streams) or byte.
        total_s: Seconds from the request to the end of the answer.
        price: US dollars per million tokens read and written; None: not known.

    Raises:
        AgentError: `agent_invalid`, when a value is outside of what is allowed.

    Example:
        >>> from mainspring import Model
        >>> Model("openai:gpt-5.4-mini").spec()["base_url"]
        'https://api.openai.com/v1'
    """

    name: str
    _: KW_ONLY
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    tool_mode: Literal["native", "json_schema"] | None = None
    output_mode: Literal["native", "prompt"] | None = None
    stream: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    params: Mapping[str, Any] | None = field(default=None, hash=False)
    connect_s: float = 10.0
    first_token_s: float = 120.0
    total_s: float = 600.0
    price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        if not isinstance(self.name, str):
            raise TypeError(f"a model's name is text, not {type(self.name).__name__}")
        _resolve(self)
        if self.base_url is not None:
            _check_base_url(self.name, self.base_url)
        _check_choice(self, "tool_mode", ("native", "json_schema"))
        _check_choice(self, "output_mode", ("native", "prompt"))
        for limit in ("connect_s", "first_token_s", "total_s"):
            _check_number(self, limit, above=0.0)
        _check_number(self, "temperature")
        _check_number(self, "max_tokens", above=0.0)
        _check_params(self)
        _check_price(self)

    def spec(self) -> dict[str, Any]:
        """The model as the engine takes it: plain data, without the key."""
        found = _resolve(self)
        provider = PROVIDERS.get(found.provider or "")
        entry = found.entry
        params: dict[str, Any] = {}
        if entry and entry.provider is not None and entry.provider == found.provider:
            params.update(entry.params)
        if self.temperature is not None:
            params["temperature"] = self.temperature
        if self.max_tokens is not None:
            params[provider.max_tokens_field if provider else "max_tokens"] = self.max_tokens
        params.update(self.params or {})
        spec: dict[str, Any] = {
            "name": found.name,
            "base_url": found.base_url,
            "tool_mode": self.tool_mode or (entry.tool_mode if entry else "native"),
            "output_mode": self.output_mode or (provider.output_mode if provider else "native"),
            "stream": self.stream,
            "connect_ms_max": max(1, round(self.connect_s * 1000)),
            "first_token_ms_max": max(1, round(self.first_token_s * 1000)),
            "total_ms_max": max(1, round(self.total_s * 1000)),
        }
        if params:
            spec["params"] = params
        if self.price is not None:
            spec["price"] = {"input_usd": self.price[0], "output_usd": self.price[1]}
        return spec

    def resolve_key(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The key to call the model with.

        Args:
            environ: Where to look a key up that was not given.

        Returns:
            The key, or None where the server needs none.

        Raises:
            ModelError: `model_auth`, when the environment variable is not set.
        """
        if self.api_key is not None:
            return self.api_key
        provider = PROVIDERS.get(_resolve(self).provider or "")
        variable = self.api_key_env or (provider.key_env if provider else None)
        if variable is None:
            return None
        key = environ.get(variable, "").strip()
        if not key:
            raise ModelError(
                "model_auth",
                f'model "{self.name}" needs a key, environment variable {variable} is not set',
                f"set {variable}, or name another variable with api_key_env=",
                details={"model": self.name},
            )
        return key


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an answer.

    Args:
        name: The tool's name as the model wrote it.
        arguments: Its arguments; empty where the model wrote no JSON object.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered in one step, as `Route.verify` sees it.

    Args:
        text: The text; empty when it only called tools.
        tool_calls: The tool calls, in the model's order.
        model: The name of the model that answered.
        step: Position of the step in its turn, from 0.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    model: str
    step: int


Verdict = bool | str | None
"""What `Route.verify` says: True or None: good; False or the reason: rejected."""

Verify = Callable[[Answer], Verdict | Awaitable[Verdict]]
"""A function, sync or async, that checks an answer."""


class Route:
    """Models to try in order, smallest first, and what decides that the next one takes over.

    Args:
        models: At least one, as `Model` or by name.
        verify: Checks every answer. A rejected one goes to the next model, with the reason; one
            of the last model is sent back to be mended.

    Raises:
        AgentError: `agent_invalid`, when there is no model or one cannot be used.
    """

    __slots__ = ("models", "verify")

    models: tuple[Model, ...]
    verify: Verify | None

    def __init__(self, *models: str | Model, verify: Verify | None = None) -> None:
        """Makes a `Model` of every name."""
        if not models:
            raise AgentError("agent_invalid", "a route has no models, it needs one at least")
        for model in models:
            if not isinstance(model, (str, Model)):
                raise TypeError(f"a route takes names and Model, not {type(model).__name__}")
        if verify is not None and not callable(verify):
            raise TypeError(f"verify is a function, not {type(verify).__name__}")
        made = tuple(Model(model) if isinstance(model, str) else model for model in models)
        object.__setattr__(self, "models", made)
        object.__setattr__(self, "verify", verify)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses: a route never changes."""
        raise AttributeError(f'a route cannot be changed: "{name}"')

    def __eq__(self, other: object) -> bool:
        """Compares models and verify."""
        if not isinstance(other, Route):
            return NotImplemented
        return self.models == other.models and self.verify == other.verify

    def __hash__(self) -> int:
        """Hashes what is compared."""
        return hash((self.models, self.verify))

    def __repr__(self) -> str:
        """Shows the models, without keys."""
        parts = [repr(model) for model in self.models]
        if self.verify is not None:
            parts.append(f"verify={getattr(self.verify, '__qualname__', self.verify)}")
        return f"Route({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by arguments: attributes cannot be set."""
        return _make_route, (self.models, self.verify)


def default_route(environ: Mapping[str, str] = os.environ) -> Route | None:
    """The models that the environment offers.

    Args:
        environ: `MAINSPRING_MODEL` holds one or more names, smallest first, with commas between;
            without it, `OPENAI_API_KEY` or else `ANTHROPIC_API_KEY` gives a small and a larger
            model of that provider.

    Returns:
        The route, or None where nothing is set.

    Raises:
        AgentError: `agent_invalid`, when `MAINSPRING_MODEL` names an unknown model.
    """
    names = [name.strip() for name in environ.get("MAINSPRING_MODEL", "").split(",")]
    if any(names):
        return Route(*(name for name in names if name))
    for provider, models in DEFAULT_MODELS.items():
        key_env = PROVIDERS[provider].key_env
        if key_env and environ.get(key_env, "").strip():
            return Route(*(f"{provider}:{model}" for model in models))
    return None


def rejection(verdict: object) -> str | None:
    """Reads what `Route.verify` returned.

    Returns:
        None where the answer is good, else the reason why it is not.

    Raises:
        TypeError: When it is not a bool, text or None.
    """
    if verdict is None or verdict is True:
        return None
    if verdict is False or verdict == "":
        return "the check refused it"
    if isinstance(verdict, str):
        return verdict
    raise TypeError(f"verify returned {type(verdict).__name__}, allowed are bool, str and None")


@dataclass(frozen=True, slots=True)
class _Resolved:
    name: str
    base_url: str
    provider: str | None
    entry: Entry | None


def _resolve(model: Model) -> _Resolved:
    """Where a model's name leads: its provider's prefix, the table, or `base_url` as it is."""
    prefix, colon, rest = model.name.partition(":")
    entry = entry_for(model.name)
    if not model.name.strip() or (prefix in PROVIDERS and colon and not rest):
        raise AgentError("agent_invalid", f'a model has the name "{model.name}", which is empty')
    if colon and prefix in PROVIDERS:
        if model.base_url is not None:
            raise AgentError(
                "agent_invalid",
                f'model "{model.name}" names the provider "{prefix}" and has a base_url too',
                f'leave one out, such as Model("{rest}", base_url=...)',
            )
        return _Resolved(rest, PROVIDERS[prefix].base_url, prefix, entry_for(rest))
    if model.base_url is not None:
        return _Resolved(model.name, model.base_url.rstrip("/"), None, entry)
    if entry is None or entry.provider is None:
        known = ", ".join(f"{each.prefix}*" for each in MODELS if each.provider)
        providers = ", ".join(f"{each}:" for each in PROVIDERS)
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" is not known, names begin with {providers} or fit {known}',
            f'say who serves it, such as "openai:{model.name}" or base_url="http://..."',
        )
    return _Resolved(model.name, PROVIDERS[entry.provider].base_url, entry.provider, entry)


def _check_base_url(name: str, base_url: str) -> None:
    if not isinstance(base_url, str):
        raise TypeError(f"base_url is text, not {type(base_url).__name__}")
    scheme, slashes, rest = base_url.partition("://")
    host = rest.partition("/")[0]
    if "@" in host:
        # The address is not repeated: it holds a secret.
        raise AgentError(
            "agent_invalid",
            f'base_url of model "{name}" holds a user name or password, which it must not',
            "give the key with api_key= or api_key_env=",
        )
    if scheme not in ("http", "https") or not slashes or not host or set(base_url) & set("?# "):
        raise AgentError(
            "agent_invalid",
            f'base_url of model "{name}" is "{base_url}", '
            "must be http:// or https:// with a host, without query",
            "it ends where the API begins, such as http://127.0.0.1:8000/v1",
        )


def _check_choice(model: Model, attribute: str, allowed: tuple[str, ...]) -> None:
    value = getattr(model, attribute)
    if value is not None and value not in allowed:
        raise AgentError(
            "agent_invalid",
            f'{attribute} of model "{model.name}" is {value!r}, allowed are {", ".join(allowed)}',
        )


def _check_number(model: Model, attribute: str, *, above: float | None = None) -> None:
    value = getattr(model, attribute)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f'{attribute} of model "{model.name}" is a number, not {type(value).__name__}'
        )
    if not math.isfinite(value) or (value <= above if above is not None else value < 0):
        bound = "must be above 0 and finite" if above is not None else "must be 0 or more"
        raise AgentError(
            "agent_invalid", f'{attribute} of model "{model.name}" is {value}, {bound}'
        )


def _check_params(model: Model) -> None:
    if model.params is None:
        return
    params = dict(model.params)
    object.__setattr__(model, "params", params)
    if reserved := [key for key in _RESERVED_PARAMS if key in params]:
        raise AgentError(
            "agent_invalid",
            f'params of model "{model.name}" set "{reserved[0]}", which the engine sets itself',
        )
    if model.temperature is not None and "temperature" in params:
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has temperature twice, as an argument and in params',
        )
    try:
        json.dumps(params, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AgentError(
            "agent_invalid", f'params of model "{model.name}" cannot be written as JSON: {error}'
        ) from error


def _check_price(model: Model) -> None:
    price: tuple[float, ...] | None = model.price
    if price is None:
        return
    if len(price) != 2 or not all(math.isfinite(usd) and usd >= 0 for usd in price):
        raise AgentError(
            "agent_invalid",
            f'price of model "{model.name}" is {price}, must be two numbers from 0: '
            "US dollars per million tokens read and written",
        )


def _make_route(models: tuple[Model, ...], verify: Verify | None) -> Route:
    return Route(*models, verify=verify)
