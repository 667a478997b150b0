"""Models that are Python: any SDK, or a model in this process, behind one async method.

Invariant: an adapter sees a Chat Completions request and answers with text, a `ModelReply` or a
chat completion, so the engine checks, counts, limits and records it like a model on a server.
Reading starts at `ModelAdapter`.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["ModelAdapter", "ModelReply", "ModelRequest"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What a model is asked: the body of a Chat Completions request.

    Args:
        body: All of it, as OpenAI's `chat.completions.create` takes it, without `stream`.

    Source:
        OpenAI API reference, "Create chat completion".
    """

    body: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name as the route has it."""
        return str(self.body["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, oldest first, as `{"role": ..., "content": ...}`."""
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools it may call, as `{"type": "function", "function": {...}}`."""
        tools: list[dict[str, Any]] = self.body.get("tools", [])
        return tools


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered.

    Args:
        text: The text; empty when it only called tools.
        tool_calls: Name and arguments of each tool it calls, in order.
        finish_reason: Why it stopped; None: `tool_calls` where there are some, else `stop`.
        input_tokens: Tokens read; 0: not known.
        output_tokens: Tokens written; 0: not known.
        cached_tokens: Of those read, the ones from a prompt cache.
    """

    text: str = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    finish_reason: FinishReason | None = None
    input_tokens: int = field(default=0, kw_only=True)
    output_tokens: int = field(default=0, kw_only=True)
    cached_tokens: int = field(default=0, kw_only=True)


Said = str | ModelReply | Mapping[str, Any]
"""An answer: text, a reply, or a whole chat completion as a dict."""


@runtime_checkable
class ModelAdapter(Protocol):
    """A class with one async method is a model: put an instance into a `Route` or an `Agent`.

    `complete` may be a coroutine function that returns the answer, or an async generator that
    yields pieces of its text as `str` and, where there is more to tell, a `ModelReply` at the end,
    whose text is then the whole. It runs on the engine's event loop. Cancelling the turn, and
    passing one of the model's deadlines, cancels it.

    What it raises fails the attempt. An exception with a `status_code`, as the SDKs of OpenAI and
    Anthropic raise, counts like that status of a server: 429 and 5xx are tried again. A
    `ModelError` stands as it is, `TimeoutError` is `model_timeout`, everything else is
    `model_adapter_failed`.

    Example:
        >>> from mainspring import Agent, ModelRequest
        >>> class Echo:
        ...     async def complete(self, request: ModelRequest) -> str:
        ...         return request.messages[-1]["content"].upper()
        >>> Agent("loud", model=Echo()).run_sync("hello")
        'HELLO'
    """

    def complete(self, request: ModelRequest) -> Awaitable[Said] | AsyncIterator[str | ModelReply]:
        """Answers a request."""
        ...


def completion_of(said: object) -> dict[str, Any]:
    """The body of a chat completion for what an adapter returned.

    Raises:
        TypeError: It is nothing that an adapter may return.
    """
    if isinstance(said, str):
        said = ModelReply(said)
    if isinstance(said, ModelReply):
        return _body(said)
    if isinstance(said, Mapping):
        return dict(said)
    dump = getattr(said, "model_dump", None)
    if callable(dump):
        dumped: Any = dump()
        return dict(dumped)
    raise TypeError(
        f"complete returned {type(said).__name__}, "
        "allowed are str, ModelReply and a chat completion"
    )


def _body(reply: ModelReply) -> dict[str, Any]:
    calls = [
        {"id": "", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for name, given in reply.tool_calls
    ]
    reason = reply.finish_reason or ("tool_calls" if calls else "stop")
    message = {"role": "assistant", "content": reply.text, "tool_calls": calls}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        },
    }
