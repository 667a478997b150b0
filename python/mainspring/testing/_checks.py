"""What the Chat Completions API refuses about a request, refused here too.

Invariant: a conversation with a tool call that has no result, or a result that has no call, never
gets an answer; so a test that runs through the scripted model cannot pass with a broken history.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FORMATS = ("text", "json_object", "json_schema")


@dataclass(eq=False)
class Refused(Exception):
    """An error of the API: its HTTP status and the fields of its `error` object."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None


def check_request(body: Mapping[str, Any]) -> None:
    """Checks a request of Chat Completions as the API would.

    Raises:
        Refused: With status 400, at the first thing that is wrong.
    """
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise _bad("you must provide a model parameter", param="model")
    if not isinstance(body.get("stream"), bool | None):
        raise _bad("Invalid type for 'stream': expected a boolean.", param="stream")
    if body.get("n") not in (None, 1):
        raise _bad("the scripted model gives one choice", param="n")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise _bad(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    _check_messages(body.get("messages"))
    _check_tools(body)
    _check_response_format(body)


@dataclass(frozen=True, slots=True)
class ConstrainedForm:
    """The JSON that a model without native tool calls must answer with.

    Args:
        has_calls: Whether `{"tool_calls": [...]}` is allowed beside `{"answer": ...}`.
        answer: The schema of `answer`.
    """

    has_calls: bool
    answer: Mapping[str, Any]


def constrained_form(body: Mapping[str, Any]) -> ConstrainedForm | None:
    """Finds the form for constrained answers in a request.

    Returns:
        None for a request that offers native tools or asks for no such JSON.
    """
    response_format = body.get("response_format")
    if body.get("tools") or not isinstance(response_format, dict):
        return None
    schema = _schema_of(response_format)
    if schema is None:
        return None
    found: dict[str, Any] = {}
    for branch in [schema, *_branches(schema)]:
        properties = branch.get("properties")
        if isinstance(properties, dict):
            found.update(properties)
    answer = found.get("answer")
    answer = answer if isinstance(answer, dict) else {}
    if "tool_calls" in found:
        return ConstrainedForm(has_calls=True, answer=answer)
    return ConstrainedForm(has_calls=False, answer=answer) if set(found) == {"answer"} else None


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise _bad("Missing required parameter: 'messages'.", param="messages")
    if not messages:
        raise _bad("Invalid 'messages': empty array.", param="messages")
    # The calls of the latest assistant message that still wait for their result.
    waiting: dict[str, None] = {}
    asked: set[str] = set()
    for idx, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            allowed = ", ".join(f"'{name}'" for name in _ROLES)
            raise _bad(
                f"Invalid value: {role!r}. Supported values are: {allowed}.",
                param=f"messages[{idx}].role",
            )
        _check_content(message, idx=idx)
        if role == "tool":
            _check_tool_message(message, idx=idx, waiting=waiting, asked=asked)
            continue
        _check_none_waiting(waiting, idx=idx)
        asked = _call_ids(message, idx=idx) if role == "assistant" else set()
        waiting = dict.fromkeys(sorted(asked))
    _check_none_waiting(waiting, idx=len(messages))


def _check_content(message: Mapping[str, Any], *, idx: int) -> None:
    content = message.get("content")
    if isinstance(content, str) or (isinstance(content, list) and content):
        return
    if message["role"] == "assistant" and content is None and message.get("tool_calls"):
        return
    raise _bad(
        f"Invalid value for 'content': expected a string or a non-empty array, "
        f"got {'null' if content is None else type(content).__name__}.",
        param=f"messages.[{idx}].content",
    )


def _check_tool_message(
    message: Mapping[str, Any], *, idx: int, waiting: dict[str, None], asked: set[str]
) -> None:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str):
        raise _bad(
            f"Missing parameter 'tool_call_id': messages with role 'tool' must have a "
            f"'tool_call_id', messages.[{idx}] has none.",
            param=f"messages.[{idx}].tool_call_id",
        )
    if not asked:
        raise _bad(
            "Invalid parameter: messages with role 'tool' must be a response to a preceding "
            "message with 'tool_calls'.",
            param=f"messages.[{idx}].role",
        )
    if call_id not in asked:
        raise _bad(
            f"Invalid parameter: 'tool_call_id' of '{call_id}' not found in 'tool_calls' of "
            "previous message.",
            param=f"messages.[{idx}].tool_call_id",
        )
    if call_id not in waiting:
        raise _bad(
            f"Duplicate value for 'tool_call_id' of '{call_id}' in messages.[{idx}].",
            param=f"messages.[{idx}].tool_call_id",
        )
    del waiting[call_id]


def _check_none_waiting(waiting: Mapping[str, None], *, idx: int) -> None:
    if waiting:
        raise _bad(
            "An assistant message with 'tool_calls' must be followed by tool messages responding "
            "to each 'tool_call_id'. The following tool_call_ids did not have response messages: "
            + ", ".join(waiting),
            param=f"messages.[{idx}].role",
        )


def _call_ids(message: Mapping[str, Any], *, idx: int) -> set[str]:
    tool_calls = message.get("tool_calls")
    if tool_calls is None:
        return set()
    where = f"messages.[{idx}].tool_calls"
    if not isinstance(tool_calls, list) or not tool_calls:
        raise _bad("Invalid 'tool_calls': expected a non-empty array.", param=where)
    ids: set[str] = set()
    for position, one in enumerate(tool_calls):
        function = one.get("function") if isinstance(one, dict) else None
        if (
            not isinstance(function, dict)
            or one.get("type") != "function"
            or not isinstance(one.get("id"), str)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), str)
        ):
            raise _bad(
                "Invalid tool call: expected an 'id', the 'type' 'function', and a 'function' "
                "with a 'name' and 'arguments', all strings.",
                param=f"{where}[{position}]",
            )
        if one["id"] in ids:
            raise _bad(f"Duplicate tool call id '{one['id']}'.", param=f"{where}[{position}].id")
        ids.add(one["id"])
    return ids


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is None:
        if body.get("tool_choice") not in (None, "none"):
            raise _bad("'tool_choice' is only allowed when 'tools' are specified.", param="tools")
        return
    if not isinstance(tools, list) or not tools:
        raise _bad("Invalid 'tools': expected a non-empty array.", param="tools")
    for idx, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise _bad(f"Missing required parameter: 'tools[{idx}].function'.", param="tools")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _bad(
                f"Invalid 'tools[{idx}].function.name': {name!r} does not match "
                f"'^{_NAME.pattern}$'.",
                param=f"tools[{idx}].function.name",
            )
        parameters = function.get("parameters", {"type": "object", "properties": {}})
        owner = f"function '{name}'"
        if not isinstance(parameters, dict) or parameters.get("type") != "object":
            raise _schema_error(owner, (), "schema must be a JSON Schema of 'type: \"object\"'.")
        if function.get("strict"):
            _check_strict(parameters, owner=owner, path=())


def _check_response_format(body: Mapping[str, Any]) -> None:
    response_format = body.get("response_format")
    if response_format is None:
        return
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind not in _FORMATS:
        raise _bad(
            f"Invalid value: {kind!r}. Supported values are: 'text', 'json_object', 'json_schema'.",
            param="response_format.type",
        )
    if kind != "json_schema":
        return
    given = response_format.get("json_schema")
    if not isinstance(given, dict) or not isinstance(given.get("schema"), dict):
        raise _bad(
            "Missing required parameter: 'response_format.json_schema.schema'.",
            param="response_format.json_schema",
        )
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(
            f"Invalid 'response_format.json_schema.name': {name!r} does not match "
            f"'^{_NAME.pattern}$'.",
            param="response_format.json_schema.name",
        )
    # The constrained form is meant for servers that take a union at the top.
    if given.get("strict") and constrained_form(body) is None:
        owner = f"response_format '{name}'"
        if given["schema"].get("type") != "object":
            raise _schema_error(owner, (), "schema must be a JSON Schema of 'type: \"object\"'.")
        _check_strict(given["schema"], owner=owner, path=())


def _check_strict(schema: object, *, owner: str, path: tuple[str, ...]) -> None:
    """Checks the two rules of strict schemas: every object is closed, every property required."""
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            raise _schema_error(
                owner, path, "'additionalProperties' is required to be supplied and to be false."
            )
        missing = sorted(set(properties or ()) - set(schema.get("required") or ()))
        if missing:
            raise _schema_error(
                owner,
                path,
                "'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'.",
            )
    for key in ("properties", "$defs"):
        for name, child in (schema.get(key) or {}).items():
            _check_strict(child, owner=owner, path=(*path, key, name))
    for position, child in enumerate(schema.get("anyOf") or ()):
        _check_strict(child, owner=owner, path=(*path, "anyOf", str(position)))
    _check_strict(schema.get("items"), owner=owner, path=(*path, "items"))


def _schema_of(response_format: Mapping[str, Any]) -> dict[str, Any] | None:
    given = response_format.get("json_schema")
    # Some OpenAI-compatible servers take the schema beside the type `json_object`.
    holder = given if isinstance(given, dict) else response_format
    schema = holder.get("schema")
    return schema if isinstance(schema, dict) else None


def _branches(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for key in ("anyOf", "oneOf"):
        for branch in schema.get(key) or ():
            reference = branch.get("$ref") if isinstance(branch, dict) else None
            target = branch
            if isinstance(reference, str) and reference.startswith("#/$defs/"):
                target = (schema.get("$defs") or {}).get(reference.removeprefix("#/$defs/"))
            if isinstance(target, dict):
                found.append(target)
    return found


def _schema_error(owner: str, path: tuple[str, ...], reason: str) -> Refused:
    return _bad(
        f"Invalid schema for {owner}: In context={path!r}, {reason}",
        param="response_format" if owner.startswith("response") else "tools",
    )


def _bad(message: str, *, param: str | None) -> Refused:
    return Refused(400, message, param=param)
