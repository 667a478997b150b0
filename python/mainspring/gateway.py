"""The gateway: models and routes as an OpenAI-compatible HTTP server.

Invariant: what is wrong with a configuration is told with its place before anything listens, and
no key or token stands in a configuration file: it names where they are. Reading starts at `Gateway`
and, for files, at `read_config`.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mainspring._lane import public_error
from mainspring._native import NativeGateway
from mainspring._route_policy import RoutePolicy
from mainspring.budget import Budget
from mainspring.errors import AgentError
from mainspring.models import Endpoint, Model, Route, check_single_step

__all__ = ["Client", "Gateway", "GatewayConfig", "ServedRoute", "read_config"]

_MODEL_KEYS = tuple(
    each.name for each in fields(Model) if each.name not in ("_", "adapter", "api_key")
)
_FILE_KEYS = (
    *("listen", "workers", "record", "limits"),
    *("models", "routes", "clients", "tenants"),
)
_LIMITS = (
    "body_bytes_max",
    "head_bytes_max",
    "headers_max",
    "connections_max",
    "requests_max",
    "head_ms_max",
    "body_ms_max",
    "stall_ms_max",
    "request_ms_max",
)


@dataclass(frozen=True, kw_only=True)
class ServedRoute:
    """A name that clients may ask for, and what answers.

    Args:
        route: The models, smallest first.
        verify: `before`: what a smaller model streams is kept back until it has passed its checks.
            `never`: it is streamed at once, and its checks only decide about the record.
    """

    route: Route
    verify: Literal["before", "never"] = "before"


@dataclass(frozen=True, kw_only=True)
class Client:
    """Somebody who is let in.

    Args:
        token: The bearer token, 16 bytes or more.
        tenant: Whose calls are made with it.
    """

    token: str = field(repr=False)
    tenant: str = ""


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """What a gateway serves, and to whom.

    Args:
        routes: By the name that clients ask for.
        listen: Address and port; port 0 picks a free one.
        clients: Who is let in; empty: everybody on this machine, and nobody else.
        workers: Threads that serve; None: a quarter of the cores, at least 1.
        record: A file that gets one line of JSON for each answer: which models were asked and why,
            what they cost, and what the checks found. Nothing of what was said.
        limits: Fields of `GatewayLimits`; `docs/howto/gateway.md` lists them.
        budgets: What tenants may spend, by name; counted from when the gateway is opened.
    """

    routes: Mapping[str, ServedRoute]
    listen: str = "127.0.0.1:8080"
    clients: Sequence[Client] = ()
    workers: int | None = None
    record: Path | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)


class Gateway:
    """A gateway that serves from when it is made until `close`.

    Args:
        config: What it serves.
        environ: Where keys of models are looked up.

    Raises:
        AgentError: `agent_invalid`: something cannot be served, or the address not be listened on.
        ModelError: `model_auth`: a model's key is missing.
    """

    def __init__(self, config: GatewayConfig, *, environ: Mapping[str, str] = os.environ) -> None:
        """Opens the socket and starts the threads."""
        made = json.dumps(_native_config(config, environ)).encode()
        try:
            self._native = NativeGateway(made)
        except RuntimeError as error:
            raise public_error(error) from None

    @property
    def address(self) -> str:
        """Where it listens, such as `127.0.0.1:8080`."""
        return self._native.address()

    def close(self, within_s: float = 0.0) -> bool:
        """Accepts nothing more, and ends once the answers under way are sent.

        Args:
            within_s: After so many seconds, what is not sent is cut off.

        Returns:
            Whether everything was sent.
        """
        return self._native.close(max(0, round(within_s * 1000)))


def read_config(path: Path, environ: Mapping[str, str] = os.environ) -> GatewayConfig:
    """Reads a configuration file in TOML.

    Args:
        path: The file; paths in it are relative to its folder.
        environ: Where tokens are looked up.

    Raises:
        AgentError: `agent_invalid`, with the place in the file.
        OSError: The file cannot be read.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(f'file "{path}" is not TOML: {error}') from error
    _check_keys(found, _FILE_KEYS, "the file")
    models = {name: _model(name, given) for name, given in _table(found, "models").items()}
    if not models:
        raise _wrong(f'file "{path}" has no [models.NAME]')
    routes = {name: ServedRoute(route=Route(model)) for name, model in models.items()}
    for name, given in _table(found, "routes").items():
        if name in routes:
            raise _wrong(f'"{name}" is both a model and a route')
        routes[name] = _route(name, given, models, path.parent)
    clients = found.get("clients", [])
    if not isinstance(clients, list):
        raise _wrong("clients is no list", "write each as [[clients]]")
    record = found.get("record")
    return GatewayConfig(
        routes=routes,
        listen=_typed(found.get("listen", "127.0.0.1:8080"), str, "listen"),
        clients=[_client(idx, each, path.parent, environ) for idx, each in enumerate(clients)],
        workers=found.get("workers"),
        record=None if record is None else path.parent / _typed(record, str, "record"),
        limits=_table(found, "limits"),
        budgets={name: _budget(name, each) for name, each in _table(found, "tenants").items()},
    )


def _model(name: str, given: Any) -> Model:
    where = f"models.{name}"
    _typed(given, dict, where)
    if "api_key" in given:
        raise _wrong(
            f"{where} holds an api_key, which a file must not",
            "name the environment variable with api_key_env",
        )
    _check_keys(given, _MODEL_KEYS, where)
    if "name" not in given:
        raise _wrong(f"{where} has no name", 'such as name = "openai:gpt-5.4-mini"')
    arguments = dict(given)
    if "endpoints" in arguments:
        listed = _typed(arguments["endpoints"], list, f"{where}.endpoints")
        arguments["endpoints"] = [_endpoint(each, f"{where}.endpoints") for each in listed]
    if isinstance(arguments.get("price"), list):
        arguments["price"] = tuple(arguments["price"])
    try:
        return Model(**arguments)
    except (AgentError, TypeError) as error:
        raise _wrong(f"{where}: {error}") from error


def _endpoint(given: Any, where: str) -> Endpoint:
    _typed(given, dict, where)
    _check_keys(given, ("base_url", "api_key_env", "weight"), where)
    try:
        return Endpoint(**given)
    except (AgentError, TypeError) as error:
        raise _wrong(f"{where}: {error}") from error


def _route(name: str, given: Any, models: Mapping[str, Model], folder: Path) -> ServedRoute:
    where = f"routes.{name}"
    _typed(given, dict, where)
    _check_keys(given, ("models", "verify", "policy", "weights"), where)
    names = _typed(given.get("models", []), list, f"{where}.models")
    unknown = [each for each in names if each not in models]
    if unknown or not names:
        shown = f'names "{unknown[0]}"' if unknown else "names no model"
        raise _wrong(f"{where}.models {shown}, allowed are {', '.join(models)}")
    weights = given.get("weights")
    try:
        route = Route(
            *(models[each] for each in names),
            policy=RoutePolicy(**_table(given, "policy")),
            weights=None if weights is None else folder / _typed(weights, str, f"{where}.weights"),
        )
    except (AgentError, TypeError) as error:
        raise _wrong(f"{where}: {error}") from error
    return ServedRoute(route=route, verify=_verify(given.get("verify", "before"), where))


def _budget(name: str, given: Any) -> Budget:
    where = f"tenants.{name}"
    _typed(given, dict, where)
    _check_keys(given, ("usd", "tokens", "calls", "soft", "per"), where)
    try:
        return Budget(**given)
    except (AgentError, TypeError) as error:
        raise _wrong(f"{where}: {error}") from error


def _verify(given: Any, where: str) -> Literal["before", "never"]:
    if given == "before":
        return "before"
    if given == "never":
        return "never"
    raise _wrong(f"{where}.verify is {given!r}, allowed are before and never")


def _client(idx: int, given: Any, folder: Path, environ: Mapping[str, str]) -> Client:
    where = f"clients[{idx}]"
    _typed(given, dict, where)
    if "token" in given:
        raise _wrong(
            f"{where} holds a token, which a file must not",
            "name the environment variable with token_env, or a file with token_file",
        )
    _check_keys(given, ("token_env", "token_file", "tenant"), where)
    variable, file = given.get("token_env"), given.get("token_file")
    if (variable is None) == (file is None):
        raise _wrong(f"{where} needs token_env or token_file, one of them")
    if variable is not None:
        token = environ.get(_typed(variable, str, f"{where}.token_env"), "").strip()
        source = f"environment variable {variable}"
    else:
        token = (folder / _typed(file, str, f"{where}.token_file")).read_text("utf-8").strip()
        source = f'file "{file}"'
    if not token:
        raise _wrong(f"{where} has no token: {source} is empty or not set")
    return Client(token=token, tenant=_typed(given.get("tenant", ""), str, f"{where}.tenant"))


def _native_config(config: GatewayConfig, environ: Mapping[str, str]) -> dict[str, Any]:
    _check_keys(config.limits, _LIMITS, "limits")
    for name, value in config.limits.items():
        if type(value) is not int or value < 1:
            raise _wrong(f"limits.{name} is {value!r}, must be a whole number from 1")
    workers = config.workers
    if workers is not None and not (type(workers) is int and 1 <= workers <= 64):
        raise _wrong(f"workers is {workers!r}, must be 1 to 64")
    made: dict[str, Any] = {
        "listen": _address(config.listen),
        "routes": [_native_route(name, each, environ) for name, each in config.routes.items()],
        "tokens": [{"token": each.token, "tenant": each.tenant} for each in config.clients],
        "workers": workers,
        "limits": dict(config.limits),
    }
    if config.budgets:
        made["budgets"] = {name: each.spec() for name, each in config.budgets.items()}
    if config.record is not None:
        made["record"] = str(config.record)
    return made


def _native_route(name: str, served: ServedRoute, environ: Mapping[str, str]) -> dict[str, Any]:
    route = served.route
    python = route.verify is not None or any(model.adapter is not None for model in route.models)
    if python:
        raise _wrong(
            f'route "{name}" has a verify function or a model that is Python',
            "a gateway runs no Python: serve a route without them",
        )
    check_single_step(route)
    made: dict[str, Any] = {
        "name": name,
        "models": [
            {"model": model.spec(), "access": model.access(environ)} for model in route.models
        ],
        "streaming": "accepted" if served.verify == "before" else "immediate",
        "policy": {} if route.policy is None else route.policy.spec(),
    }
    if route.weights is not None:
        made["weights"] = route.weights
    return made


def _address(listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise _wrong(
            f'listen is "{listen}", must be an address and a port',
            "such as 127.0.0.1:8080, or 0.0.0.0:8080 with clients",
        )
    return f"127.0.0.1:{port}" if host == "localhost" else listen


def _table(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(_typed(found.get(name, {}), dict, name))


def _typed(value: Any, kind: type[Any], where: str) -> Any:
    if not isinstance(value, kind):
        allowed = {"str": "text", "dict": "a table", "list": "a list"}[kind.__name__]
        raise _wrong(f"{where} is {value!r}, must be {allowed}")
    return value


def _check_keys(given: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    unknown = [each for each in given if each not in allowed]
    if unknown:
        raise _wrong(f'{where} has "{unknown[0]}", allowed are {", ".join(allowed)}')


def _wrong(message: str, hint: str | None = None) -> AgentError:
    return AgentError("agent_invalid", f"gateway: {message}", hint)
