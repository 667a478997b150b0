"""Scripts in JSON files.

A file holds a list of steps, or an object: `{"steps": [...]}` for every model name, or
`{"models": {"small": [...], "large": [...]}}`, each with an optional `"api_key"`. The steps:

    {"say": "text", "usage": {"input_tokens": 9, "output_tokens": 2}, "finish_reason": "length"}
    {"say_json": {"any": "value"}}
    {"calls": [{"name": "search", "arguments": {"query": "x"}, "id": "call_7"}], "text": "..."}
    {"fail": 429, "message": "slow down", "retry_after_s": 0.5, "times": 2, "then": STEP}
    {"hang": null, "times": 1, "then": STEP}      a number: characters that are sent first
    {"drop": 10, "times": 1, "then": STEP}        null: closes without a status line
    {"garbage": "<html>", "times": 1, "then": STEP}
    {"delay": 0.5, "then": STEP}

Invariant: a file that loads is a script that `ScriptedModel` takes; a file that does not names
the place that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from mainspring.testing._script import (
    Answer,
    Call,
    Step,
    Usage,
    calls,
    check_script,
    delay,
    drop,
    fail,
    garbage,
    hang,
    say,
    say_json,
)

_USAGE_FIELDS = frozenset(Usage.__annotations__)
_NUMBER = (int, float)


class ScriptFile(NamedTuple):
    """What a file says: one script for all names, or one for each, and the key to ask for."""

    steps: list[Step] | None
    models: dict[str, list[Step]] | None
    api_key: str | None


def load_script(path: Path) -> ScriptFile:
    """Reads a script file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no script; the message names the place.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise ValueError(f"{path} is not JSON: {wrong}") from None
    try:
        return _script_file(value)
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"{path}: {wrong}") from None


def _script_file(value: object) -> ScriptFile:
    if isinstance(value, list):
        value = {"steps": value}
    fields = _Fields(value, "script")
    api_key = fields.take("api_key", (str,), default=None)
    if "models" in fields.left:
        named: dict[str, Any] = fields.take("models", (dict,))
        fields.end()
        if not named:
            raise ValueError("models is empty, needs at least 1 name")
        models = {name: _steps(steps, f"models.{name}") for name, steps in named.items()}
        for name, steps in models.items():
            check_script(steps, name=name)
        return ScriptFile(None, models, api_key)
    steps = _steps(fields.take("steps", (list,)), "steps")
    fields.end()
    check_script(steps, name="scripted")
    return ScriptFile(steps, None, api_key)


def _steps(value: object, where: str) -> list[Step]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_kind(value)}, allowed a list of steps")
    return [_step(item, f"{where}[{idx}]") for idx, item in enumerate(value)]


def _step(value: object, where: str) -> Step:
    fields = _Fields(value, where)
    for name, make in _STEPS.items():
        if name in fields.left:
            step = make(fields)
            fields.end()
            return step
    raise ValueError(f"{where} names no step, allowed one of: {', '.join(_STEPS)}")


def _say(fields: _Fields) -> Answer:
    return say(
        fields.take("say", (str,)),
        usage=_usage(fields),
        finish_reason=fields.take("finish_reason", (str,), default="stop"),
    )


def _say_json(fields: _Fields) -> Answer:
    return say_json(fields.take("say_json", (object,)), usage=_usage(fields))


def _calls(fields: _Fields) -> Answer:
    listed: list[object] = fields.take("calls", (list,))
    made = [_call(item, f"{fields.where}.calls[{idx}]") for idx, item in enumerate(listed)]
    return calls(*made, text=fields.take("text", (str,), default=None), usage=_usage(fields))


def _call(value: object, where: str) -> Call:
    fields = _Fields(value, where)
    made = Call(
        fields.take("name", (str,)),
        fields.take("arguments", (dict, str), default={}),
        fields.take("id", (str,), default=None),
    )
    fields.end()
    return made


def _fail(fields: _Fields) -> Step:
    return fail(
        fields.take("fail", (int,)),
        fields.take("message", (str,), default="scripted failure"),
        code=fields.take("code", (str,), default=None),
        retry_after_s=fields.take("retry_after_s", _NUMBER, default=None),
        times=fields.take("times", (int,), default=1),
        then=_then(fields),
    )


def _hang(fields: _Fields) -> Step:
    return hang(
        after_chars=fields.take("hang", (int, type(None))),
        times=fields.take("times", (int,), default=1),
        then=_then(fields),
    )


def _drop(fields: _Fields) -> Step:
    return drop(
        after_chars=fields.take("drop", (int, type(None))),
        times=fields.take("times", (int,), default=1),
        then=_then(fields),
    )


def _garbage(fields: _Fields) -> Step:
    return garbage(
        fields.take("garbage", (str,)).encode(),
        times=fields.take("times", (int,), default=1),
        then=_then(fields),
    )


def _delay(fields: _Fields) -> Step:
    seconds: float = fields.take("delay", _NUMBER)
    then = _then(fields)
    if then is None:
        raise ValueError(f"{fields.where}.then is missing, needs the step that follows")
    return delay(seconds, then=then)


_STEPS: Mapping[str, Callable[[_Fields], Step]]


def _then(fields: _Fields) -> Step | None:
    value = fields.take("then", (dict,), default=None)
    return None if value is None else _step(value, f"{fields.where}.then")


def _usage(fields: _Fields) -> Usage | None:
    value: dict[str, object] | None = fields.take("usage", (dict,), default=None)
    for name, count in (value or {}).items():
        if name not in _USAGE_FIELDS:
            allowed = ", ".join(sorted(_USAGE_FIELDS))
            raise ValueError(f"{fields.where}.usage has {name!r}, allowed: {allowed}")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{fields.where}.usage.{name} is {count!r}, allowed 0 or more")
    return cast("Usage | None", value)


class _Fields:
    """The fields of one JSON object, taken one by one, so that an unknown one is found."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {_kind(value)}, allowed an object")
        self.left: dict[str, object] = dict(value)
        self.where = where

    def take(self, name: str, kinds: tuple[type, ...], **default: Any) -> Any:
        if name not in self.left:
            if "default" in default:
                return default["default"]
            raise ValueError(f"{self.where}.{name} is missing")
        value = self.left.pop(name)
        # A bool is an int in Python, and never one in a script.
        if not isinstance(value, kinds) or (isinstance(value, bool) and object not in kinds):
            allowed = " or ".join(_JSON_NAMES[kind] for kind in kinds)
            raise ValueError(f"{self.where}.{name} is {_kind(value)}, allowed {allowed}")
        return value

    def end(self) -> None:
        if self.left:
            raise ValueError(f"{self.where} has the unknown field {next(iter(self.left))!r}")


_STEPS = {
    "say": _say,
    "say_json": _say_json,
    "calls": _calls,
    "fail": _fail,
    "hang": _hang,
    "drop": _drop,
    "garbage": _garbage,
    "delay": _delay,
}
_JSON_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    type(None): "null",
    object: "any value",
}


def _kind(value: object) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)
