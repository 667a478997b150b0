"""What the scripted model refuses: requests, scripts and script files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from mainspring.testing import (
    ScriptedModel,
    ServerLimits,
    calls,
    delay,
    drop,
    fail,
    hang,
    say,
    say_json,
)

# Ends a broken test; no test passes or fails by it.
GUARD_S = 60.0
USER: Any = [{"role": "user", "content": "find x"}]


def port_of(model: ScriptedModel) -> int:
    return int(model.base_url.split(":")[2].split("/")[0])


def post(model: ScriptedModel, body: bytes) -> tuple[int, str]:
    """The status and the error's message."""
    connection = HTTPConnection("127.0.0.1", port_of(model), timeout=GUARD_S)
    connection.request("POST", "/v1/chat/completions", body)
    answer = connection.getresponse()
    message = json.loads(answer.read())["error"]["message"]
    connection.close()
    return answer.status, message


def refusal(model: ScriptedModel, messages: Any, **more: Any) -> str:
    status, message = post(
        model, json.dumps({"model": "scripted", "messages": messages, **more}).encode()
    )
    assert status == 400
    return message


def called(*ids: str) -> dict[str, Any]:
    function = {"name": "search", "arguments": "{}"}
    listed = [{"id": one, "type": "function", "function": function} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": listed}


def result(call_id: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": "r"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "Invalid 'messages': empty array."),
        ([{"role": "robot", "content": "x"}], "Invalid value: 'robot'."),
        ([{"role": "user", "content": None}], "Invalid value for 'content'"),
        ([{"role": "assistant", "content": None}], "Invalid value for 'content'"),
        ([*USER, result("a")], "must be a response to a preceding message with 'tool_calls'"),
        ([*USER, called("a")], "did not have response messages: a"),
        ([*USER, called("a", "b"), result("a"), *USER], "did not have response messages: b"),
        ([*USER, called("a"), called("b")], "did not have response messages: a"),
        ([*USER, called("a"), result("b")], "'tool_call_id' of 'b' not found in 'tool_calls'"),
        ([*USER, called("a", "b"), result("a"), result("a")], "Duplicate value for 'tool_call_id'"),
        ([*USER, called("a"), result("a"), *USER, result("a")], "must be a response to"),
        ([*USER, called("a", "a"), result("a")], "Duplicate tool call id 'a'"),
        ([*USER, {**called(), "content": "x"}], "Invalid 'tool_calls'"),
        ([*USER, {**called("a"), "tool_calls": [{"id": "a"}]}], "Invalid tool call"),
        ([*USER, called("a"), {"role": "tool", "content": "r"}], "Missing parameter"),
    ],
)
def test_a_conversation_that_the_api_refuses_is_refused(messages: Any, message: str) -> None:
    with ScriptedModel([say("x"), say("y"), say("z")]) as m:
        assert message in refusal(m, messages)
        assert m.requests[0].body["messages"] == messages


def open_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": []}, "Invalid 'tools'"),
        ({"tools": [{"type": "function"}]}, "'tools[0].function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "does not match"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {}}}]},
            "Invalid schema for function 'a'",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "a",
                            "strict": True,
                            "parameters": {
                                **open_object(b=open_object()),
                                "additionalProperties": False,
                                "required": ["b"],
                            },
                        },
                    }
                ]
            },
            "In context=('properties', 'b'), 'additionalProperties' is required",
        ),
        ({"tool_choice": "auto"}, "'tool_choice' is only allowed"),
        ({"stream_options": {"include_usage": True}}, "only allowed when 'stream' is enabled"),
        ({"n": 2}, "one choice"),
        ({"response_format": {"type": "xml"}}, "Invalid value: 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "r",
                        "strict": True,
                        "schema": {
                            **open_object(b={"type": "string"}),
                            "additionalProperties": False,
                            "required": [],
                        },
                    },
                }
            },
            "Missing 'b'",
        ),
    ],
)
def test_a_field_that_the_api_refuses_is_refused(more: dict[str, Any], message: str) -> None:
    with ScriptedModel([say("x")]) as m:
        assert message in refusal(m, USER, **more)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{not json", "could not parse the JSON body"),
        (b"\xff\xfe\xfd", "could not parse the JSON body"),
        (b"[1]", "expected an object, got list"),
        (b"{}", "you must provide a model parameter"),
        (b'{"model": "m"}', "Missing required parameter: 'messages'"),
        (b'{"model": "m", "messages": [7]}', "Invalid value: None"),
        (b'{"model": "m", "messages": [], "stream": "yes"}', "expected a boolean"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, message: str) -> None:
    with ScriptedModel([say("x")]) as m:
        status, refused = post(m, body)
    assert status == 400
    assert message in refused


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 1500 + b"\r\n\r\n", b"431 "),
        (b"POST / HTTP/1.1\r\ncontent-length: 2001\r\n\r\n", b"413 "),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7d1\r\n", b"413 "),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400 "),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400 "),
        (b"hello\r\n\r\n", b"400 "),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400 "),
    ],
)
def test_requests_past_the_limits_are_refused_and_closed(sent: bytes, status: bytes) -> None:
    limits = ServerLimits(head_bytes_max=1000, body_bytes_max=2000)
    with (
        ScriptedModel([say("x")], limits=limits) as m,
        socket.create_connection(("127.0.0.1", port_of(m)), timeout=GUARD_S) as connection,
    ):
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in received


def wrong_scripts() -> Iterator[tuple[Any, type[Exception], str]]:
    yield lambda: ScriptedModel(), TypeError, "exactly one of them"
    yield lambda: ScriptedModel([say("x")], models={"m": []}), TypeError, "exactly one of them"
    yield lambda: ScriptedModel(models={}), ValueError, "needs at least 1"
    yield lambda: ScriptedModel([]), ValueError, "has no steps"
    yield lambda: ScriptedModel("say"), TypeError, "is str, allowed a list of steps"  # type: ignore[arg-type]
    yield lambda: ScriptedModel(["say"]), TypeError, "step 0 of model 'scripted' is str"  # type: ignore[list-item]
    yield lambda: ScriptedModel([fail(429), say("x")]), ValueError, "step 1 is never reached"
    yield lambda: fail(200), ValueError, "got status 200, allowed 400 to 599"
    yield lambda: fail(429, retry_after_s=-1), ValueError, "retry_after_s -1"
    yield lambda: fail(429, times=0), ValueError, "times 0"
    yield lambda: hang(times=2), ValueError, "without then"
    yield lambda: drop(after_chars=-1), ValueError, "after_chars -1"
    yield lambda: delay(-1, then=say("x")), ValueError, "got -1 s"
    yield lambda: calls(), ValueError, "got no tool call"
    yield lambda: calls("search"), TypeError, "got str"  # type: ignore[arg-type]
    yield lambda: say_json(object()), TypeError, "not JSON serializable"


@pytest.mark.parametrize(("make", "kind", "message"), list(wrong_scripts()))
def test_a_wrong_script_is_refused_before_it_runs(
    make: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert message in str(caught.value)


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mainspring.testing", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=GUARD_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("7", "script is a whole number, allowed an object"),
        ("{}", "script.steps is missing"),
        ("[]", "has no steps"),
        ('{"models": {}}', "models is empty"),
        ('{"models": {"m": 7}}', "models.m is a whole number, allowed a list of steps"),
        ('{"steps": [{"say": "x"}], "stpes": 1}', "script has the unknown field 'stpes'"),
        ('["x"]', "steps[0] is a text, allowed an object"),
        ('[{"tell": "x"}]', "steps[0] names no step, allowed one of: say, say_json, calls, fail"),
        ('[{"say": 7}]', "steps[0].say is a whole number, allowed a text"),
        ('[{"say": "x", "usage": {"tokens": 1}}]', "steps[0].usage has 'tokens'"),
        ('[{"say": "x", "usage": {"input_tokens": -1}}]', "input_tokens is -1"),
        ('[{"calls": [{"arguments": {}}]}]', "steps[0].calls[0].name is missing"),
        ('[{"fail": true}]', "steps[0].fail is true or false, allowed a whole number"),
        ('[{"fail": 200}]', "fail() got status 200"),
        ('[{"fail": 429, "then": {"say": null}}]', "steps[0].then.say is null, allowed a text"),
        ('[{"delay": 1}]', "steps[0].then is missing"),
    ],
)
def test_a_bad_script_file_names_the_place(tmp_path: Path, content: str, message: str) -> None:
    script = tmp_path / "script.json"
    script.write_text(content)
    ran = run_module(str(script))
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_a_missing_script_file_and_a_taken_port_are_told(tmp_path: Path) -> None:
    missing = run_module(str(tmp_path / "none.json"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "No such file or directory" in missing.stderr
    script = tmp_path / "script.json"
    script.write_text('[{"say": "x"}]')
    with ScriptedModel([say("x")]) as m:
        port = port_of(m)
        taken = run_module(str(script), "--port", str(port))
    assert (taken.returncode, taken.stdout) == (1, "")
    assert f"cannot listen on port {port}" in taken.stderr
