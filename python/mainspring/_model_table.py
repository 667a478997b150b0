"""What is known of providers and models, as data: the file of this package, and the user's.

Invariant: only facts with a source and a date, read at the first model that is resolved; a file
that cannot be used is an error that names the file and the line or the key. Reading starts at
`table`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mainspring.errors import AgentError

Api = Literal["chat_completions", "responses", "messages"]
Ability = Literal["tools", "parallel_tools", "images", "structured_output", "reasoning", "logprobs"]

APIS = ("chat_completions", "responses", "messages")
ABILITIES = ("tools", "parallel_tools", "images", "structured_output", "reasoning", "logprobs")
SHIPPED = Path(__file__).with_name("models.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a provider's models are served.

    Args:
        base_url: Where its API begins.
        key_env: Environment variable that holds the key; None: it needs none.
        api: Which API it speaks.
        output_mode: `native` where the API holds answers to a schema, else `prompt`.
        max_tokens_field: What Chat Completions calls the limit on written tokens there.
        default_models: What `default_route` uses, smallest first.
        date: When this was last compared with its source.
        source: Where it is from.
    """

    base_url: str
    key_env: str | None = None
    api: Api = "chat_completions"
    output_mode: Literal["native", "prompt"] = "native"
    max_tokens_field: str = "max_tokens"
    default_models: tuple[str, ...] = ()
    date: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of the models of a name, or of those whose name starts with a prefix.

    Args:
        name: The name, lower case, without provider and organisation; or
        prefix: its start.
        provider: Who serves it when nothing else is said; None: nobody in particular.
        api: Which API it is asked through; None: its provider's.
        tool_mode: How it is told to call tools.
        chat_params: Fields that Chat Completions requests to that provider need.
        context_tokens: Tokens it can read and write in one call.
        output_tokens_max: Tokens it can write in one call.
        abilities: What it can do; None: not known.
        price: What it costs at that provider, as the engine takes it.
        date: When this was last compared with its source.
        source: Where it is from.
    """

    name: str = ""
    prefix: str = ""
    provider: str | None = None
    api: Api | None = None
    tool_mode: Literal["native", "json_schema"] = "native"
    chat_params: dict[str, Any] = field(default_factory=dict)
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    abilities: tuple[Ability, ...] | None = None
    price: dict[str, Any] | None = None
    date: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class ModelTable:
    """All that is known, the user's file merged into the shipped one.

    Args:
        providers: By name.
        models: In no order that counts.
        files: What was read.
    """

    providers: dict[str, Provider]
    models: tuple[Entry, ...]
    files: tuple[Path, ...]

    def entry_for(self, name: str) -> Entry | None:
        """The entry that fits a model's name on its server, such as `org/Model-7B`, best."""
        short = name.lower().rpartition("/")[2]
        plain = _DATED.sub("", short)
        exact = [entry for entry in self.models if entry.name and entry.name in (short, plain)]
        if exact:
            return max(exact, key=lambda entry: len(entry.name))
        fits = [entry for entry in self.models if entry.prefix and short.startswith(entry.prefix)]
        return max(fits, key=lambda entry: len(entry.prefix), default=None)


def table(environ: Mapping[str, str] = os.environ) -> ModelTable:
    """The table in force.

    Args:
        environ: `MAINSPRING_MODELS` names the user's file; without it, it is
            `$XDG_CONFIG_HOME/mainspring/models.toml`, else `~/.config/mainspring/models.toml`,
            where there is one.

    Raises:
        AgentError: `agent_invalid`, when a file cannot be used.
    """
    return _table(user_file(environ))


def user_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The user's file, if there is one."""
    if named := environ.get("MAINSPRING_MODELS", "").strip():
        return Path(named).expanduser()
    config = environ.get("XDG_CONFIG_HOME", "").strip()
    root = Path(config) if config else Path(environ.get("HOME", "~")).expanduser() / ".config"
    path = root / "mainspring" / "models.toml"
    return path if path.is_file() else None


# The end of a name that only says which edition it is: -2026-03-17, -20251001, -latest.
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


@cache
def _table(user: Path | None) -> ModelTable:
    files = (SHIPPED,) if user is None else (SHIPPED, user)
    providers: dict[str, dict[str, Any]] = {}
    models: dict[str, dict[str, Any]] = {}
    for path in files:
        data = _read(path)
        for name, given in data.get("providers", {}).items():
            where = f'providers."{name}"'
            providers[name] = providers.get(name, {}) | _checked(path, where, given, _PROVIDER)
        for idx, given in enumerate(data.get("models", [])):
            read = _checked(path, f"models[{idx}]", given, _ENTRY)
            key = _key_of(path, f"models[{idx}]", read)
            models[key] = models.get(key, {}) | read
    for name, given in providers.items():
        if "base_url" not in given:
            raise _unusable(files[-1], f'providers."{name}"', "has no base_url")
    for given in models.values():
        _check_provider(files[-1], given, providers)
    return ModelTable(
        {name: Provider(**given) for name, given in providers.items()},
        tuple(Entry(**given) for given in models.values()),
        files,
    )


def _read(path: Path) -> dict[str, Any]:
    # Late, because it is needed only where a model is resolved.
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(
            "agent_invalid",
            f'model table "{path}" cannot be read: {error}',
            "correct MAINSPRING_MODELS or the file, or take it away",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise AgentError(
            "agent_invalid",
            f'model table "{path}" is not TOML: {error}',
            "correct the line",
        ) from error
    for key, kind in data.items():
        wanted = {"providers": dict, "models": list}.get(key)
        if wanted is None or not isinstance(kind, wanted):
            raise _unusable(path, key, "is neither [providers.NAME] nor [[models]]")
    return data


def _unusable(path: Path, where: str, what: str) -> AgentError:
    return AgentError(
        "agent_invalid",
        f'model table "{path}": {where} {what}',
        "`mainspring models table` prints the shipped one, which shows the form",
    )


def _key_of(path: Path, where: str, given: dict[str, Any]) -> str:
    if ("name" in given) == ("prefix" in given):
        raise _unusable(path, where, "needs either name or prefix")
    kind = "name" if "name" in given else "prefix"
    given[kind] = given[kind].lower()
    return f"{kind} {given[kind]}"


def _check_provider(path: Path, given: dict[str, Any], providers: Mapping[str, Any]) -> None:
    provider = given.get("provider")
    if provider is not None and provider not in providers:
        named = given.get("name") or given.get("prefix")
        known = ", ".join(providers)
        raise _unusable(
            path, f'provider of "{named}"', f'is "{provider}", which is none of {known}'
        )


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and value else "must be text"


def _count(value: object) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if good else "must be a whole number above 0"


def _one_of(*allowed: str) -> Any:
    def check(value: object) -> str | None:
        return None if value in allowed else f"must be one of {', '.join(allowed)}"

    return check


def _abilities(value: object) -> str | None:
    good = isinstance(value, list) and all(each in ABILITIES for each in value)
    return None if good else f"must be a list of {', '.join(ABILITIES)}"


def _texts(value: object) -> str | None:
    good = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
    return None if good else "must be a list of texts"


def _object(value: object) -> str | None:
    return None if isinstance(value, dict) else "must be a table"


_PROVIDER: dict[str, Any] = {
    "base_url": _text,
    "key_env": _text,
    "api": _one_of(*APIS),
    "output_mode": _one_of("native", "prompt"),
    "max_tokens_field": _text,
    "default_models": _texts,
    "date": _text,
    "source": _text,
}
_ENTRY: dict[str, Any] = {
    "name": _text,
    "prefix": _text,
    "provider": _text,
    "api": _one_of(*APIS),
    "tool_mode": _one_of("native", "json_schema"),
    "chat_params": _object,
    "context_tokens": _count,
    "output_tokens_max": _count,
    "abilities": _abilities,
    "price": _object,
    "date": _text,
    "source": _text,
}


def _checked(path: Path, where: str, given: object, known: dict[str, Any]) -> dict[str, Any]:
    """What a table of the file holds, each key checked."""
    if not isinstance(given, dict):
        raise _unusable(path, where, "must be a table")
    named = given.get("name") or given.get("prefix")
    where = f'{where} ("{named}")' if named else where
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise _unusable(path, f"{where}.{key}", f"is not known, known are {', '.join(known)}")
        if problem := known[key](value):
            raise _unusable(path, f"{where}.{key}", f"is {value!r}, {problem}")
        if key == "price":
            value = _price(path, f"{where}.price", value)
        read[key] = tuple(value) if isinstance(value, list) else value
    return read


_PRICES = {
    "input": "input_usd",
    "output": "output_usd",
    "cached": "cached_usd",
    "cache_write": "cache_write_usd",
}
_LONG = ("above_tokens", "input_factor", "output_factor")


def _price(path: Path, where: str, given: dict[str, Any]) -> dict[str, Any]:
    """A price as the engine takes it."""
    price: dict[str, Any] = {}
    for key, value in given.items():
        if key == "long" and isinstance(value, dict) and sorted(value) == sorted(_LONG):
            numbers = {each: _amount(path, f"{where}.long.{each}", value[each]) for each in _LONG}
            price["long"] = numbers | {"above_tokens": int(numbers["above_tokens"])}
        elif key in _PRICES:
            price[_PRICES[key]] = _amount(path, f"{where}.{key}", value)
        else:
            known = ", ".join((*_PRICES, f"long ({', '.join(_LONG)})"))
            raise _unusable(path, f"{where}.{key}", f"is not known, known are {known}")
    for key in ("input", "output"):
        if _PRICES[key] not in price:
            raise _unusable(path, where, f"has no {key}")
    return price


def _amount(path: Path, where: str, value: object) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparisons are false for what is no number.
    if not good or not 0 <= float(value) < float("inf"):  # type: ignore[arg-type]
        raise _unusable(path, where, f"is {value!r}, must be a number from 0")
    return float(value)  # type: ignore[arg-type]
