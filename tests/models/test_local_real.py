"""The smallest real model, served for real; `make test-models` runs this, `make test` does not.

Invariant: what comes out is judged by its form and by its process, never by how clever it is.
"""

import json
import os
import select
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.local import LocalModelError, LocalServer, pull

NAME = "qwen2.5-coder-0.5b"


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
READ_FILE = closed({"name": {"const": "read_file"}, "arguments": closed({"path": TEXT})})
COUNT_LINES = closed({"name": {"const": "count_lines"}, "arguments": closed({"path": TEXT})})
CALLS = {
    "type": "array",
    "minItems": 2,
    "maxItems": 3,
    "items": {"anyOf": [READ_FILE, COUNT_LINES]},
}
STEP = {"anyOf": [closed({"tool_calls": CALLS}), closed({"answer": TEXT})]}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    pull(NAME)
    with LocalServer(NAME) as running:
        yield running


def request(server: LocalServer, **more: Any) -> urllib.request.Request:
    system = (
        "Tools: read_file(path), count_lines(path). Reply with JSON: "
        '{"tool_calls": [{"name": ..., "arguments": ...}]} or {"answer": "..."}.'
    )
    question = "What does the Makefile say, and how many lines has README.md?"
    body = {
        "model": server.model_name,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
        ],
        "temperature": 0,
        "max_tokens": 200,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "step", "schema": STEP, "strict": True},
        },
        **more,
    }
    headers = {"Content-Type": "application/json"}
    url = f"{server.base_url}/chat/completions"
    return urllib.request.Request(url, json.dumps(body).encode(), headers)


def check_step(text: str) -> None:
    step = json.loads(text)
    if "answer" in step:
        assert isinstance(step["answer"], str)
        assert list(step) == ["answer"]
        return
    assert list(step) == ["tool_calls"]
    assert 2 <= len(step["tool_calls"]) <= 3
    for call in step["tool_calls"]:
        assert sorted(call) == ["arguments", "name"]
        assert call["name"] in ("read_file", "count_lines")
        assert list(call["arguments"]) == ["path"]


def test_schema_constrains_a_whole_answer_and_usage_is_counted(server: LocalServer) -> None:
    with urllib.request.urlopen(request(server)) as response:
        answer = json.load(response)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    check_step(choice["message"]["content"])
    assert answer["model"] == NAME
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] > 0


def test_schema_constrains_a_streamed_answer_and_usage_is_counted(server: LocalServer) -> None:
    streamed = request(server, stream=True, stream_options={"include_usage": True})
    with urllib.request.urlopen(streamed) as response:
        lines = [line.decode().strip() for line in response]
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    check_step("".join(delta.get("content") or "" for delta in deltas))
    (usage,) = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert usage["completion_tokens"] > 0


def test_prefix_of_a_second_request_is_cached(server: LocalServer) -> None:
    with urllib.request.urlopen(request(server)) as response:
        json.load(response)
    with urllib.request.urlopen(request(server)) as response:
        usage = json.load(response)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] // 2


def test_prompt_over_the_context_is_refused(server: LocalServer) -> None:
    long = [{"role": "user", "content": "one two three four five " * 2000}]
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request(server, messages=long))
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["type"] == "exceed_context_size_error"


def test_server_ends_when_its_parent_is_killed() -> None:
    pull(NAME)
    program = (
        "import sys, threading; sys.path[:] = eval(sys.argv[1])\n"
        "from mainspring.local import LocalServer\n"
        "server = LocalServer(sys.argv[2])\n"
        # The thread that starts the server ends at once: that alone must not end the server.
        "starter = threading.Thread(target=server.start)\n"
        "starter.start(); starter.join()\n"
        "print(server.base_url, flush=True)\n"
        "print(server.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, repr(sys.path), NAME]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        base_url = parent.stdout.readline().strip()
        pid = int(parent.stdout.readline())
        with urllib.request.urlopen(f"{base_url}/models") as response:
            assert response.status == 200
        # The stop is told from the process itself: its descriptor becomes readable at its end.
        descriptor = os.pidfd_open(pid)
        parent.kill()
    select.select([descriptor], [], [])
    os.close(descriptor)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{base_url}/models")


def test_broken_file_ends_in_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(LocalModelError) as caught, LocalServer(broken):
        pass
    assert caught.value.code == "local_server_failed"
    assert (
        'server of model "broken" ended with code 1 before it was ready: ' in caught.value.message
    )
    assert "failed to load model" in caught.value.message


def test_taken_port_is_named_before_the_model_is_loaded(server: LocalServer) -> None:
    port = int(server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(LocalModelError) as caught, LocalServer(NAME, port=port):
        pass
    assert str(caught.value) == (
        f"port {port} on 127.0.0.1 cannot be used: Address already in use\n"
        "hint: give another port, or 0 for a free one"
    )
