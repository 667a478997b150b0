"""The steps of a script, and how one is chosen for a request.

Invariant: choosing a step reads only the request, never the server's past, except for the number
of times that the very same request came before. So one script serves many conversations at once,
in any order, and a process that was killed and resumed gets the answers it would have got.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict


class Usage(TypedDict, total=False):
    """Tokens that an answer claims to have used; a field left out counts as 0."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call.

    Args:
        name: The tool's name; it need not be one that the request offers.
        arguments: The arguments; a text is sent as it is, so it can be broken JSON.
        id: The call's id; without one it is `call_STEP_POSITION`, unique in its conversation.
    """

    name: str
    arguments: Mapping[str, Any] | str
    id: str | None = None

    def arguments_text(self) -> str:
        """The arguments as the model would have written them."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A step that answers: text, tool calls, or both. Made by `say`, `say_json` and `calls`."""

    text: str | None
    calls: tuple[Call, ...]
    is_json: bool
    finish_reason: str | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Fail:
    """A step that refuses with an HTTP error. Made by `fail`."""

    status: int
    message: str
    code: str | None
    retry_after_s: float | None
    times: int
    then: Step | None


@dataclass(frozen=True, slots=True)
class Hang:
    """A step that stops sending and keeps the connection open. Made by `hang`."""

    after_chars: int | None
    of: Answer
    times: int
    then: Step | None


@dataclass(frozen=True, slots=True)
class Drop:
    """A step that closes the connection before the answer is whole. Made by `drop`."""

    after_chars: int | None
    of: Answer
    times: int
    then: Step | None


@dataclass(frozen=True, slots=True)
class Garbage:
    """A step that answers 200 with bytes that are no answer. Made by `garbage`."""

    body: bytes
    times: int
    then: Step | None


@dataclass(frozen=True, slots=True)
class Hold:
    """A step that waits for an event first. Made by `wait_for`."""

    event: threading.Event
    then: Step


@dataclass(frozen=True, slots=True)
class Delay:
    """A step that waits for a time first. Made by `delay`."""

    seconds: float
    then: Step


Step: TypeAlias = Answer | Fail | Hang | Drop | Garbage | Hold | Delay


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the server got it, for a callable script and for assertions.

    Args:
        body: The whole JSON body.
        headers: Names in lower case; the values of headers that carry a key read `hidden`.
        attempt: 1 for the first time that this very body came, 2 for the next, and so on.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    attempt: int

    @property
    def model(self) -> str:
        """The model's name that the request asks for; empty if it has none."""
        name = self.body.get("model")
        return name if isinstance(name, str) else ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, oldest message first."""
        return _dicts(self.body.get("messages"))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the request offers, in the form of the API."""
        return _dicts(self.body.get("tools"))

    @property
    def assistant_count(self) -> int:
        """How many assistant messages the conversation holds: the step that a list script takes."""
        return sum(message.get("role") == "assistant" for message in self.messages)


Script: TypeAlias = Sequence[Step] | Callable[[Request], Step]

_CUT_TEXT = "This answer is longer than what arrives of it, because the connection breaks off."


def say(text: str, *, usage: Usage | None = None, finish_reason: str = "stop") -> Answer:
    """Answers with a text.

    Args:
        text: What the model says. For a model whose tool calls are constrained JSON it is sent
            as `{"answer": text}`.
        usage: Tokens to report; without it, one for every four characters.
        finish_reason: `length` says that the answer was cut at the token limit.
    """
    return Answer(text, (), is_json=False, finish_reason=finish_reason, usage=usage)


def say_json(value: object, *, usage: Usage | None = None) -> Answer:
    """Answers with a value as JSON text, for structured results.

    Raises:
        TypeError: The value has no JSON form.
    """
    text = json.dumps(value, ensure_ascii=False)
    return Answer(text, (), is_json=True, finish_reason="stop", usage=usage)


def call(name: str, /, **arguments: object) -> Call:
    """Makes a tool call for `calls`; use `Call` itself for an own id or broken arguments."""
    return Call(name, arguments)


def calls(*tool_calls: Call, text: str | None = None, usage: Usage | None = None) -> Answer:
    """Answers with tool calls, all in one step.

    Args:
        tool_calls: At least one.
        text: What the model says beside its calls.
        usage: Tokens to report; without it, one for every four characters.
    """
    if not tool_calls:
        raise ValueError("calls() got no tool call, needs at least 1\nhint: use say() for a text")
    for one in tool_calls:
        if not isinstance(one, Call):
            raise TypeError(
                f"calls() got {type(one).__name__}, takes only tool calls"
                '\nhint: write calls(call("search", query="x"))'
            )
    return Answer(text, tool_calls, is_json=False, finish_reason=None, usage=usage)


def fail(
    status: int,
    message: str = "scripted failure",
    *,
    code: str | None = None,
    retry_after_s: float | None = None,
    times: int = 1,
    then: Step | None = None,
) -> Fail:
    """Refuses with an HTTP error in the form of the API.

    Args:
        status: 400 to 599.
        message: The error's message.
        code: The error's code; without it, the one the API uses for this status.
        retry_after_s: Sent as `retry-after` (seconds) and `retry-after-ms`.
        times: How many attempts of one conversation are refused before `then`.
        then: The step after that; without it, every attempt is refused.
    """
    if not 400 <= status <= 599:
        raise ValueError(f"fail() got status {status}, allowed 400 to 599")
    if retry_after_s is not None and retry_after_s < 0:
        raise ValueError(f"fail() got retry_after_s {retry_after_s}, allowed 0 or more")
    _check_times("fail", times=times, then=then)
    return Fail(status, message, code, retry_after_s, times, then)


def hang(
    *,
    after_chars: int | None = None,
    of: Answer | None = None,
    times: int = 1,
    then: Step | None = None,
) -> Hang:
    """Stops sending and keeps the connection open until the client or the server closes it.

    Args:
        after_chars: How many characters of the answer are sent first; without it, not even the
            status line is.
        of: The answer that is cut.
        times: How many attempts of one conversation hang before `then`.
        then: The step after that; without it, every attempt hangs.
    """
    _check_cut("hang", after_chars=after_chars)
    _check_times("hang", times=times, then=then)
    return Hang(after_chars, of or say(_CUT_TEXT), times, then)


def drop(
    *,
    after_chars: int | None = 10,
    of: Answer | None = None,
    times: int = 1,
    then: Step | None = None,
) -> Drop:
    """Closes the connection half-way through the answer.

    Args:
        after_chars: How many characters are sent first: of the answer in a stream, of the body
            otherwise. None closes without a status line.
        of: The answer that is cut.
        times: How many attempts of one conversation are dropped before `then`.
        then: The step after that; without it, every attempt is dropped.
    """
    _check_cut("drop", after_chars=after_chars)
    _check_times("drop", times=times, then=then)
    return Drop(after_chars, of or say(_CUT_TEXT), times, then)


def garbage(
    body: bytes = b"<html>this is no model</html>", *, times: int = 1, then: Step | None = None
) -> Garbage:
    """Answers 200 with bytes that are no answer, under the content type of a good one."""
    _check_times("garbage", times=times, then=then)
    return Garbage(body, times, then)


def wait_for(event: threading.Event, *, then: Step) -> Hold:
    """Holds the answer until the event is set, so that a test needs no sleep."""
    return Hold(event, then)


def delay(seconds: float, *, then: Step) -> Delay:
    """Waits before the step, as a slow model would."""
    if seconds < 0:
        raise ValueError(f"delay() got {seconds} s, allowed 0 or more")
    return Delay(seconds, then)


def check_script(script: Script, *, name: str) -> None:
    """Refuses a script that is not one, or whose later steps no conversation can reach.

    Raises:
        TypeError: The script or one of its steps has the wrong type.
        ValueError: A list is empty, or a step that never answers is followed by another.
    """
    if callable(script):
        return
    given: object = script
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"script of model {name!r} is {type(given).__name__}, "
            "allowed a list of steps or a function from Request to a step"
        )
    if not script:
        raise ValueError(f"script of model {name!r} has no steps, needs at least 1")
    for idx, step in enumerate(script):
        if not isinstance(step, Step):
            raise TypeError(
                f"step {idx} of model {name!r} is {type(step).__name__}, allowed a step"
                "\nhint: make one with say(), calls() or fail()"
            )
        if idx + 1 < len(script) and not _answers(step):
            raise ValueError(
                f"step {idx} of model {name!r} never answers, so step {idx + 1} is never reached"
                "\nhint: give it the next step: fail(429, then=say(...))"
            )


def choose(script: Script, request: Request) -> Step:
    """Picks the step for a request.

    Raises:
        ValueError: The script has no step for it, or its function failed or returned no step.
    """
    if not callable(script):
        if request.assistant_count >= len(script):
            raise ValueError(
                f"script of model {request.model!r} has {len(script)} steps, and this "
                f"conversation already holds {request.assistant_count} assistant messages"
                "\nhint: add a step, or give a function from Request to a step"
            )
        return script[request.assistant_count]
    try:
        step = script(request)
    except Exception as error:
        raise ValueError(
            f"script function of model {request.model!r} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(step, Step):
        raise ValueError(
            f"script function of model {request.model!r} returned {type(step).__name__}, "
            "allowed a step"
        )
    return step


def _answers(step: Step | None) -> bool:
    while step is not None and not isinstance(step, Answer):
        step = step.then
    return step is not None


def _check_times(name: str, *, times: int, then: Step | None) -> None:
    if times < 1:
        raise ValueError(f"{name}() got times {times}, allowed 1 or more")
    if times != 1 and then is None:
        raise ValueError(
            f"{name}() got times {times} without then, needs the step that follows"
            f"\nhint: {name}(..., times={times}, then=say(...))"
        )


def _check_cut(name: str, *, after_chars: int | None) -> None:
    if after_chars is not None and after_chars < 0:
        raise ValueError(f"{name}() got after_chars {after_chars}, allowed 0 or more")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
