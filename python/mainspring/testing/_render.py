"""Turns a scripted answer into the JSON of Chat Completions, whole or as stream chunks.

Invariant: the chunks of an answer, put together again, are the answer that is sent whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mainspring.testing._checks import ConstrainedForm, Refused, constrained_form
from mainspring.testing._script import Answer, Call, Request

# Long enough to keep streams short, short enough that any sentence comes in several chunks.
_CHUNK_CHARS_MAX = 16
# An estimate is enough where the script gives no usage: tests compare what they set themselves.
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class RenderedCall:
    """A tool call as it is sent: id, tool name, and the arguments' text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer as it is sent: its parts, and the fields that every chunk repeats."""

    text: str | None
    calls: tuple[RenderedCall, ...]
    finish_reason: str
    usage: dict[str, Any]
    stamp: dict[str, Any]


def render(
    answer: Answer, request: Request, *, body_chars: int, number: int, now_s: int
) -> Rendered:
    """Renders an answer for one request: tool calls as native ones or as constrained JSON.

    Args:
        answer: The scripted answer.
        request: The request that it answers.
        body_chars: Length of the request's body, to estimate its tokens.
        number: The answer's number on this server, for its id.
        now_s: Unix time in seconds.
    """
    form = constrained_form(request.body)
    is_native = form is None or not form.has_calls
    text, step = answer.text, request.assistant_count
    if form is not None and not (is_native and answer.calls):
        text = _constrained(answer, form)
    rendered_calls = tuple(
        RenderedCall(one.id or f"call_{step}_{idx}", one.name, one.arguments_text())
        for idx, one in enumerate(answer.calls)
        if is_native
    )
    stamp = {"id": f"chatcmpl-{number}", "created": now_s, "model": request.model}
    return Rendered(
        text=text,
        calls=rendered_calls,
        finish_reason=answer.finish_reason or ("tool_calls" if rendered_calls else "stop"),
        usage=_usage(answer, body_chars=body_chars),
        stamp={**stamp, "system_fingerprint": None, "service_tier": "default"},
    )


def completion(rendered: Rendered) -> dict[str, Any]:
    """The `chat.completion` object."""
    message: dict[str, Any] = {"role": "assistant", "content": rendered.text, "refusal": None}
    if rendered.calls:
        message["tool_calls"] = [
            {
                "id": one.id,
                "type": "function",
                "function": {"name": one.name, "arguments": one.arguments},
            }
            for one in rendered.calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": rendered.finish_reason,
    }
    return {
        "object": "chat.completion",
        **rendered.stamp,
        "choices": [choice],
        "usage": rendered.usage,
    }


def chunks(rendered: Rendered, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The `chat.completion.chunk` objects of a whole answer, in order."""
    yield from opening_chunks(rendered, include_usage=include_usage)
    yield _chunk(rendered, {}, finish_reason=rendered.finish_reason, include_usage=include_usage)
    if include_usage:
        yield {**_chunk(rendered, {}, include_usage=True), "choices": [], "usage": rendered.usage}


def opening_chunks(rendered: Rendered, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The chunks up to the last piece of text or arguments, without the end of the answer."""
    first = {"role": "assistant", "content": None if rendered.calls else "", "refusal": None}
    yield _chunk(rendered, first, include_usage=include_usage)
    for piece in _pieces(rendered.text or ""):
        yield _chunk(rendered, {"content": piece}, include_usage=include_usage)
    for idx, one in enumerate(rendered.calls):
        head = {
            "index": idx,
            "id": one.id,
            "type": "function",
            "function": {"name": one.name, "arguments": ""},
        }
        yield _chunk(rendered, {"tool_calls": [head]}, include_usage=include_usage)
        for piece in _pieces(one.arguments):
            part = {"index": idx, "function": {"arguments": piece}}
            yield _chunk(rendered, {"tool_calls": [part]}, include_usage=include_usage)


def cut(rendered: Rendered, *, chars: int) -> Rendered:
    """The answer's first characters: of its text, then of its calls' arguments."""
    text = rendered.text[:chars] if rendered.text is not None else None
    left = chars - len(text or "")
    kept: list[RenderedCall] = []
    for one in rendered.calls:
        if left <= 0:
            break
        kept.append(replace(one, arguments=one.arguments[:left]))
        left -= len(one.arguments)
    return replace(rendered, text=text, calls=tuple(kept))


def error(refused: Refused) -> dict[str, Any]:
    """The API's error object."""
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    code = refused.code
    if refused.status == 429:
        kind, code = "requests", code or "rate_limit_exceeded"
    elif refused.status == 401:
        code = code or "invalid_api_key"
    fields = {"message": refused.message, "type": kind, "param": refused.param, "code": code}
    return {"error": fields}


def _constrained(answer: Answer, form: ConstrainedForm) -> str | None:
    if answer.calls:
        listed = ",".join(_constrained_call(one) for one in answer.calls)
        return f'{{"tool_calls":[{listed}]}}'
    if not answer.is_json:
        return _answer_json(answer.text) if form.has_calls else answer.text
    value = json.loads(answer.text or "null")
    # Without calls, the form looks like a result type whose one field is `answer`; a value that
    # has that form already is such a result, unless the field itself holds another `answer`.
    inner = form.answer.get("properties") or {}
    is_whole = isinstance(value, dict) and set(value) == {"answer"} and "answer" not in inner
    if not form.has_calls and is_whole:
        return answer.text
    return _answer_json(answer.text if form.answer.get("type") == "string" else value)


def _answer_json(value: object) -> str:
    return json.dumps({"answer": value}, ensure_ascii=False)


def _constrained_call(one: Call) -> str:
    # The arguments are put in as text, so that broken ones break the JSON as they should.
    name = json.dumps(one.name, ensure_ascii=False)
    return f'{{"name":{name},"arguments":{one.arguments_text()}}}'


def _usage(answer: Answer, *, body_chars: int) -> dict[str, Any]:
    if answer.usage is None:
        written_chars = len(answer.text or "")
        written_chars += sum(len(one.name) + len(one.arguments_text()) for one in answer.calls)
        read, written = body_chars // _CHARS_PER_TOKEN, written_chars // _CHARS_PER_TOKEN
        read, written, cached, reasoning = max(read, 1), max(written, 1), 0, 0
    else:
        read = answer.usage.get("input_tokens", 0)
        written = answer.usage.get("output_tokens", 0)
        cached = answer.usage.get("cached_tokens", 0)
        reasoning = answer.usage.get("reasoning_tokens", 0)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


def _chunk(
    rendered: Rendered,
    delta: Mapping[str, Any],
    *,
    finish_reason: str | None = None,
    include_usage: bool,
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {"object": "chat.completion.chunk", **rendered.stamp, "choices": [choice]}
    return {**chunk, "usage": None} if include_usage else chunk


def _pieces(text: str) -> Iterator[str]:
    # A third of a short text, so that even that comes in several chunks.
    size = max(1, min(_CHUNK_CHARS_MAX, -(-len(text) // 3)))
    for start in range(0, len(text), size):
        yield text[start : start + size]
