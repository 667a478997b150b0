"""Models and routes: which model answers, where it is served, and what checks its answers.

Invariant: these are descriptions: nothing is opened or called. A key is never part of `repr`, of a
spec or of a journal, and the key of a provider is only ever looked up for that provider's own
address. Reading starts at `Model` and `Route`.
"""

import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mainspring._model_checks import check_base_url, check_choice, check_count, check_number
from mainspring._model_table import APIS, Api, Entry, Provider, table
from mainspring._route_policy import RoutePolicy
from mainspring.adapter import ModelAdapter
from mainspring.errors import AgentError, ModelError

__all__ = [
    "Answer",
    "Endpoint",
    "Model",
    "Route",
    "ToolCall",
    "Verdict",
    "Verify",
    "default_route",
]

AGREEMENT_MAX = 5
"""Most further answers that `Route(agreement=...)` asks for."""

_PYTHON = "python:"
"""What stands in the place of an address where a model is Python."""

_RESERVED_PARAMS = {
    "chat_completions": (
        "messages",
        "model",
        "response_format",
        "stream",
        "stream_options",
        "tools",
    ),
    "responses": ("input", "instructions", "model", "stream", "tools"),
    "messages": ("messages", "model", "stream", "system", "tools"),
}


@dataclass(frozen=True)
class Endpoint:
    """One of several places or keys that serve the same model.

    Args:
        base_url: Where its API begins; None: where the model's does.
        api_key: The key; None: taken from the environment when the engine starts.
        api_key_env: Environment variable to take the key from; None: as the model says.
        weight: Its share of the sessions, relative to the others'.

    Raises:
        AgentError: `agent_invalid`, when the weight is not above 0.

    Example:
        >>> from mainspring import Endpoint, Model
        >>> keys = [Endpoint(api_key_env="KEY_A"), Endpoint(api_key_env="KEY_B", weight=2)]
        >>> len(Model("openai:gpt-5.4-mini", endpoints=keys).endpoints)
        2
    """

    _: KW_ONLY
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Checks every field."""
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise TypeError(f"weight of an endpoint is a number, not {type(self.weight).__name__}")
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise AgentError(
                "agent_invalid",
                f"weight of an endpoint is {self.weight}, must be above 0 and finite",
                "leave out an endpoint that is not to be used",
            )


@dataclass(frozen=True)
class Model:
    """A model and how to reach it.

    Args:
        name: `provider:name` with the provider `openai`, `anthropic`, `openrouter`, `ollama` or
            `local`; a name that the model table knows, such as `gpt-5.4-mini`; or, with
            `base_url`, exactly what that server calls it.
        base_url: Where the API of a server begins, such as `http://127.0.0.1:8000/v1`.
        api_key: The key; None: taken from the environment when the engine starts.
        api_key_env: Environment variable to take the key from; None: the provider's own, and none
            at all with `base_url`.
        api: Which API the server speaks: OpenAI's `chat_completions` or `responses`, or Anthropic's
            `messages`; None: as the model table says, and `chat_completions` with `base_url`.
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
        adapter: An object whose async method `complete` answers in the place of a server; the
            name is then whatever it is to be called.
        price: US dollars per million tokens read and written; None: as the model table says.
        logprobs: Whether to ask for log-probabilities, which tell how sure the model was; Anthropic
            has none.
        context_tokens: Tokens that it can read and write in one call; None: as the model table
            says.
        output_tokens_max: Tokens that it can write in one call; None: as the model table says.
        endpoints: Several keys or servers that share the model's calls, in place of `base_url` and
            `api_key`. A session stays with one of them as long as that answers.
        requests_per_minute: Requests that each key may make in any minute; None: as the server
            says in its answers.
        tokens_per_minute: Tokens, read and written, that each key may use in any minute; None: as
            the server says.
        concurrency_max: Calls under way at once with each key; None: as many as the server takes.
        hedge: Whether a call whose first token is later than that of 19 in 20 is made a second
            time, at another endpoint if there is one; at most 1 call in 20. The first to answer
            counts, the other is cancelled. None: where there are several endpoints.

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
    api: Api | None = None
    tool_mode: Literal["native", "json_schema"] | None = None
    output_mode: Literal["native", "prompt"] | None = None
    stream: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    params: Mapping[str, Any] | None = field(default=None, hash=False)
    connect_s: float = 10.0
    first_token_s: float = 120.0
    total_s: float = 600.0
    adapter: ModelAdapter | None = field(default=None, hash=False)
    price: tuple[float, float] | None = None
    logprobs: bool = False
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    endpoints: Sequence[Endpoint] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency_max: int | None = None
    hedge: bool | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        if not isinstance(self.name, str):
            raise TypeError(f"a model's name is text, not {type(self.name).__name__}")
        if self.adapter is not None:
            _check_adapter(self)
        _check_endpoints(self)
        _resolve(self)
        if self.base_url is not None:
            check_base_url(self.name, self.base_url)
        for limit in ("requests_per_minute", "tokens_per_minute", "concurrency_max"):
            check_count(self, limit)
        check_choice(self, "api", APIS)
        check_choice(self, "tool_mode", ("native", "json_schema"))
        check_choice(self, "output_mode", ("native", "prompt"))
        for limit in ("connect_s", "first_token_s", "total_s"):
            check_number(self, limit, above=0.0)
        check_number(self, "temperature")
        check_number(self, "max_tokens", above=0.0)
        _check_facts(self)
        _check_params(self)
        _check_price(self)

    def spec(self) -> dict[str, Any]:
        """The model as the engine takes it: plain data, without the key."""
        found = _resolve(self)
        params = _params(self, found)
        spec: dict[str, Any] = {
            "name": found.name,
            "base_url": found.base_url,
            "tool_mode": _tool_mode(self, found),
            "output_mode": self.output_mode
            or (found.provider.output_mode if found.provider else "native"),
            "stream": self.stream,
            "connect_ms_max": max(1, round(self.connect_s * 1000)),
            "first_token_ms_max": max(1, round(self.first_token_s * 1000)),
            "total_ms_max": max(1, round(self.total_s * 1000)),
        }
        if params:
            spec["params"] = params
        if self.price is not None:
            spec["price"] = {"input_usd": self.price[0], "output_usd": self.price[1]}
        elif found.own is not None and found.own.price is not None:
            spec["price"] = found.own.price
        limits = {
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrency_max": self.concurrency_max,
        }
        if known := {name: limit for name, limit in limits.items() if limit is not None}:
            spec["limits"] = known
        if self.hedge is not None:
            spec["hedge"] = self.hedge
        return spec | _facts(self, found)

    def access(self, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
        """How the model is reached, with its keys: what `spec` must not hold.

        Args:
            environ: Where to look keys up that were not given.

        Raises:
            ModelError: `model_auth`, when an environment variable is not set.
        """
        if not self.endpoints:
            return {"api_key": self.resolve_key(environ)}
        endpoints = [
            {
                "base_url": None if each.base_url is None else each.base_url.rstrip("/"),
                "api_key": self._endpoint_key(each, environ),
                "weight": float(each.weight),
            }
            for each in self.endpoints
        ]
        return {"api_key": None, "endpoints": endpoints}

    def _endpoint_key(self, endpoint: Endpoint, environ: Mapping[str, str]) -> str | None:
        if endpoint.api_key is not None:
            return endpoint.api_key
        variable = endpoint.api_key_env or self.api_key_env
        if variable is None and endpoint.base_url is not None:
            # The key of a provider is only ever sent to that provider's own address.
            return None
        return replace(self, api_key_env=variable, endpoints=()).resolve_key(environ)

    def resolve_key(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The key to call the model with.

        Args:
            environ: Where to look a key up that was not given.

        Returns:
            The key, or None where the server needs none.

        Raises:
            ModelError: `model_auth`, when the environment variable is not set.
        """
        if self.adapter is not None:
            return None
        if self.api_key is not None:
            return self.api_key
        provider = _resolve(self).provider
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

    Every answer is checked. A mistake of form goes back to its model once; then, and for all else,
    the next model is asked, which sees nothing of the rejected answer. A conversation stays on its
    model inside a tool loop, so that the provider's prompt cache is not lost.

    Args:
        models: At least one: a `Model`, a name, or an object with an async method `complete`.
        verify: Checks every answer. A rejected one goes to the next model, with the reason; one
            of the last model is sent back to be mended.
        policy: The numbers by which a step's model is chosen; None: the defaults.
        weights: File of what `mainspring route train` learnt; None: nothing is learnt, and the
            first model goes first.
        judge: Judges the answers in words of all models but the last, once all other checks have
            passed: a model call each. None: nobody does.
        agreement: How many further answers a model but the last gives to the same, to see whether
            they agree; 0 to 5, each a model call. It needs a temperature above 0.
        show_draft: Whether the next model sees the rejected answer and what was wrong with it.

    Raises:
        AgentError: `agent_invalid`, when there is no model, one cannot be used, or a route of one
            model has a judge or agreement, which have nobody to hand an answer on to.
    """

    __slots__ = ("agreement", "judge", "models", "policy", "show_draft", "verify", "weights")

    models: tuple[Model, ...]
    verify: Verify | None
    policy: RoutePolicy | None
    weights: str | None
    judge: Model | None
    agreement: int
    show_draft: bool

    def __init__(
        self,
        *models: str | Model | ModelAdapter,
        verify: Verify | None = None,
        policy: RoutePolicy | None = None,
        weights: str | os.PathLike[str] | None = None,
        judge: str | Model | ModelAdapter | None = None,
        agreement: int = 0,
        show_draft: bool = False,
    ) -> None:
        """Makes a `Model` of every name."""
        if not models:
            raise AgentError("agent_invalid", "a route has no models, it needs one at least")
        if verify is not None and not callable(verify):
            raise TypeError(f"verify is a function, not {type(verify).__name__}")
        made = tuple(model_of(model) for model in models)
        _check_route(len(made), policy, judge, agreement)
        values = {
            "models": made,
            "verify": verify,
            "policy": policy,
            "weights": None if weights is None else os.fspath(weights),
            "judge": None if judge is None else model_of(judge),
            "agreement": agreement,
            "show_draft": bool(show_draft),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def spec(self) -> dict[str, Any] | None:
        """How the models share an agent's steps, as the engine takes it; None: by the defaults.

        The weights are not in it: the engine reads their file, and names them by their hash.
        """
        spec: dict[str, Any] = {}
        if self.policy is not None:
            spec["policy"] = self.policy.spec()
        if self.judge is not None:
            spec["judge"] = self.judge.spec()
        if self.agreement:
            spec["agreement"] = self.agreement
        if self.show_draft:
            spec["show_draft"] = True
        return spec or None

    def with_models(self, *models: Model) -> "Route":
        """The same route over other models.

        A single one has nobody to hand an answer on to, so its answers are not judged.
        """
        alone = len(models) == 1
        return Route(
            *models,
            verify=self.verify,
            policy=self.policy,
            weights=self.weights,
            judge=None if alone else self.judge,
            agreement=0 if alone else self.agreement,
            show_draft=self.show_draft,
        )

    def read_weights(self) -> bytes | None:
        """The file of weights; None where the route has none.

        Raises:
            AgentError: `agent_invalid`, when it cannot be read.
        """
        if self.weights is None:
            return None
        try:
            return Path(self.weights).read_bytes()
        except OSError as error:
            raise AgentError(
                "agent_invalid",
                f'the weights "{self.weights}" of a route cannot be read: {error.strerror}',
                "`mainspring route train` writes such a file",
            ) from error

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses: a route never changes."""
        raise AttributeError(f'a route cannot be changed: "{name}"')

    def __eq__(self, other: object) -> bool:
        """Compares everything the route was made of."""
        if not isinstance(other, Route):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        """Hashes what is compared."""
        return hash(self._parts())

    def _parts(self) -> tuple[Any, ...]:
        return (
            self.models,
            self.verify,
            self.policy,
            self.weights,
            self.judge,
            self.agreement,
            self.show_draft,
        )

    def __repr__(self) -> str:
        """Shows the models, without keys."""
        parts = [repr(model) for model in self.models]
        if self.verify is not None:
            parts.append(f"verify={getattr(self.verify, '__qualname__', self.verify)}")
        for name in ("policy", "weights", "judge"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value!r}")
        if self.agreement:
            parts.append(f"agreement={self.agreement}")
        if self.show_draft:
            parts.append("show_draft=True")
        return f"Route({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles by arguments: attributes cannot be set."""
        names = self.__slots__
        return _make_route, (self.models, {n: getattr(self, n) for n in names if n != "models"})


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
    for name, provider in table().providers.items():
        key_env, models = provider.key_env, provider.default_models
        if key_env and models and environ.get(key_env, "").strip():
            return Route(*(f"{name}:{model}" for model in models))
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
    provider: Provider | None
    entry: Entry | None
    # The entry, if its own provider serves the model.
    own: Entry | None
    api: str


def _resolve(model: Model) -> _Resolved:
    """Where a model's name leads: its provider's prefix, the table, or `base_url` as it is."""
    if model.adapter is not None:
        return _Resolved(
            model.name,
            f"{_PYTHON}{type(model.adapter).__qualname__}",
            None,
            None,
            None,
            "chat_completions",
        )
    known = table()
    prefix, colon, rest = model.name.partition(":")
    if not model.name.strip() or (prefix in known.providers and colon and not rest):
        raise AgentError("agent_invalid", f'a model has the name "{model.name}", which is empty')
    if colon and prefix in known.providers:
        if model.base_url is not None:
            raise AgentError(
                "agent_invalid",
                f'model "{model.name}" names the provider "{prefix}" and has a base_url too',
                f'leave one out, such as Model("{rest}", base_url=...)',
            )
        return _served(model, rest, prefix, known.entry_for(rest))
    entry = known.entry_for(model.name)
    if model.base_url is not None:
        api = model.api or "chat_completions"
        return _Resolved(model.name, model.base_url.rstrip("/"), None, entry, None, api)
    if entry is None or entry.provider is None:
        fits = ", ".join(
            f"{each.prefix}*" for each in known.models if each.prefix and each.provider
        )
        providers = ", ".join(f"{each}:" for each in known.providers)
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" is not known, names begin with {providers} or fit {fits}',
            f'say who serves it, such as "openai:{model.name}" or base_url="http://..."',
        )
    return _served(model, model.name, entry.provider, entry)


def _served(model: Model, name: str, served_by: str, entry: Entry | None) -> _Resolved:
    provider = table().providers[served_by]
    own = entry if entry is not None and entry.provider == served_by else None
    api = model.api or (own.api if own else None) or provider.api
    return _Resolved(name, provider.base_url, provider, entry, own, api)


def _tool_mode(model: Model, found: _Resolved) -> str:
    """As told, or as the table says where the API leaves a choice."""
    if model.tool_mode is not None or found.entry is None or found.api != "chat_completions":
        return model.tool_mode or "native"
    return found.entry.tool_mode


def _params(model: Model, found: _Resolved) -> dict[str, Any]:
    """Fields of the request body beyond those of the engine."""
    params: dict[str, Any] = {}
    if found.own is not None and found.api == "chat_completions":
        params.update(found.own.chat_params)
    if model.temperature is not None:
        params["temperature"] = model.temperature
    if model.max_tokens is not None:
        chat = found.provider.max_tokens_field if found.provider else "max_tokens"
        names = {"responses": "max_output_tokens", "messages": "max_tokens"}
        params[names.get(found.api, chat)] = model.max_tokens
    params.update(model.params or {})
    return params


def _facts(model: Model, found: _Resolved) -> dict[str, Any]:
    """What is known of the model beyond how to call it, and how to call it where that is unusual.

    What says nothing is left out, so that specs of older versions stay the same.
    """
    entry = found.entry
    facts: dict[str, Any] = {
        "api": "host" if model.adapter is not None else found.api,
        "logprobs": model.logprobs,
        "context_tokens": model.context_tokens or (entry.context_tokens if entry else None),
        "output_tokens_max": model.output_tokens_max
        or (entry.output_tokens_max if entry else None),
        "abilities": list(entry.abilities) if entry and entry.abilities is not None else None,
    }
    usual = (None, False, "chat_completions")
    return {name: fact for name, fact in facts.items() if fact not in usual}


def _check_adapter(model: Model) -> None:
    if not callable(getattr(model.adapter, "complete", None)):
        raise TypeError(
            f"adapter is an object with an async method complete, "
            f"not {type(model.adapter).__name__}"
        )
    for name in ("base_url", "api_key", "api_key_env"):
        if getattr(model, name) is not None:
            raise AgentError(
                "agent_invalid",
                f'model "{model.name}" has an adapter and {name}, which only a server has',
                f"leave {name} out",
            )
    if not model.name.strip():
        raise AgentError("agent_invalid", "a model with an adapter has no name")


def model_of(model: "str | Model | ModelAdapter") -> Model:
    """The model that a name, a description or an adapter stands for.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str):
        return Model(model)
    if callable(getattr(model, "complete", None)) and not isinstance(model, type):
        return Model(str(getattr(model, "name", type(model).__name__)), adapter=model)
    raise TypeError(
        "a model is a name, a Model or an object with an async method complete, "
        f"not {type(model).__name__}"
    )


def _check_endpoints(model: Model) -> None:
    endpoints = tuple(model.endpoints)
    object.__setattr__(model, "endpoints", endpoints)
    for endpoint in endpoints:
        if not isinstance(endpoint, Endpoint):
            raise TypeError(
                f'endpoints of model "{model.name}" are Endpoint, not {type(endpoint).__name__}'
            )
        if endpoint.base_url is not None:
            check_base_url(model.name, endpoint.base_url)
    if not endpoints:
        return
    if model.api_key is not None:
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has an api_key and endpoints too',
            "give each endpoint its own key",
        )
    places = [(each.base_url, each.api_key, each.api_key_env) for each in endpoints]
    if len(set(places)) < len(places):
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has the same endpoint twice',
            "give it once, with the sum of the weights",
        )
    first = endpoints[0].base_url
    has_provider = model.name.partition(":")[0] in table().providers
    if model.base_url is None and first is not None and not has_provider:
        object.__setattr__(model, "base_url", first)


def _check_facts(model: Model) -> None:
    for name in ("context_tokens", "output_tokens_max"):
        value = getattr(model, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f'{name} of model "{model.name}" is an int, not {type(value).__name__}')
        check_number(model, name, above=0.0)
    if not isinstance(model.logprobs, bool):
        raise TypeError(f"logprobs is a bool, not {type(model.logprobs).__name__}")
    api = _resolve(model).api
    if model.tool_mode == "json_schema" and api != "chat_completions":
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has tool_mode "json_schema", which the API {api} does not take',
            'leave it out, or set api="chat_completions"',
        )
    if model.logprobs and api == "messages":
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has logprobs, which the API {api} does not tell',
            "leave it out",
        )
    if model.adapter is not None and model.api is not None:
        raise AgentError(
            "agent_invalid",
            f'model "{model.name}" has an adapter and api, which only a server has',
            "leave api out",
        )


def _check_params(model: Model) -> None:
    if model.params is None:
        return
    params = dict(model.params)
    object.__setattr__(model, "params", params)
    if reserved := [key for key in _RESERVED_PARAMS[_resolve(model).api] if key in params]:
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


def _check_route(model_count: int, policy: object, judge: object, agreement: object) -> None:
    if policy is not None and not isinstance(policy, RoutePolicy):
        raise TypeError(f"policy is a RoutePolicy, not {type(policy).__name__}")
    if judge is not None and not isinstance(judge, (str, Model)):
        raise TypeError(f"judge is a name or a Model, not {type(judge).__name__}")
    if isinstance(agreement, bool) or not isinstance(agreement, int):
        raise TypeError(f"agreement is an int, not {type(agreement).__name__}")
    if not 0 <= agreement <= AGREEMENT_MAX:
        raise AgentError(
            "agent_invalid", f"agreement of a route is {agreement}, must be 0 to {AGREEMENT_MAX}"
        )
    if model_count == 1 and (judge is not None or agreement):
        raise AgentError(
            "agent_invalid",
            "a route of one model has a judge or agreement, it needs two models at least",
            "add a larger model: it is asked when an answer does not pass",
        )


def check_single_step(route: Route) -> None:
    """Refuses what only an agent's session can do: ask models about an answer.

    Raises:
        AgentError: `agent_invalid`, when the route has a judge or agreement.
    """
    for name, wanted in (("judge", route.judge is not None), ("agreement", route.agreement > 0)):
        if wanted:
            raise AgentError(
                "agent_invalid",
                f"a route with {name} is asked for single answers, which are not judged by models",
                "give it to an Agent, or leave it out",
            )


def _make_route(models: tuple[Model, ...], options: dict[str, Any]) -> Route:
    return Route(*models, **options)
